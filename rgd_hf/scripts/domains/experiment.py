"""One training on all domains except the held-out ones: its Trainer and the record of its results."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import PartialState
from transformers import DataCollatorWithPadding, PrinterCallback, default_data_collator, set_seed

from rgd_hf import ReweightedTrainingArguments
from rgd_hf.scripts.domains.algorithms import ALGORITHMS, AlgorithmArguments
from rgd_hf.scripts.domains.backbones import Backbone, add_dropout, freeze_batch_norm
from rgd_hf.scripts.domains.batches import DomainSampler, TrainingDomains
from rgd_hf.scripts.domains.data import training_samples
from rgd_hf.scripts.domains.environments import DomainData, seed_hash, split
from rgd_hf.scripts.domains.metrics import accuracy_and_ece
from rgd_hf.scripts.domains.training import VALIDATION, DomainTrainer
from rgd_hf.scripts.domains.views import Subset, View
from rgd_hf.scripts.training.hard_examples import list_hard_examples
from rgd_hf.scripts.training.plans import Run, RunArguments
from rgd_hf.scripts.training.predictions import PREDICTIONS, write_table

SCORES = ("accuracy", "ece", "loss")


@dataclass(frozen=True)
class Experiment:
    """What the trainings of one command share.

    Attributes:
        data: the environments.
        views: one view per environment.
        backbone: the model.
        algorithm: the algorithm and the held-out environments.
        options: which results a run saves.
        card: keyword arguments for `create_model_card`.
        frozen_statistics: whether to freeze the statistics of batch normalizations.
        max_eval_samples: maximum number of samples to evaluate per split (they are in random order); None for all.
    """

    data: DomainData
    views: Sequence[View]
    backbone: Backbone
    algorithm: AlgorithmArguments
    options: RunArguments
    card: Mapping[str, Any]
    frozen_statistics: bool = True
    max_eval_samples: int | None = None

    @property
    def held_out(self) -> list[str]:
        """Names of the environments that are not trained on."""
        return [name for name in self.data.names if name in self.algorithm.held_out]

    @property
    def training(self) -> list[int]:
        """Places of those that are."""
        return [place for place, name in enumerate(self.data.names) if name not in self.algorithm.held_out]

    def train(self, run: Run, checkpoint: str | None, trainer: DomainTrainer) -> dict[str, Any]:
        """Train, evaluate and save one run with what `make_trainer` made; what is recorded of it (see `scores_of`)."""
        trainer.stop_on_non_finite_loss = True
        output = trainer.train(resume_from_checkpoint=checkpoint)
        scores = scores_of(trainer.state.log_history, self.held_out, trainer.training_domains)
        trainer.save_state()
        if scores["step"] != trainer.state.global_step or not trainer.predictions:
            trainer.evaluate()  # card and predictions are those of the model that is saved
        directory, options = Path(str(run.args.output_dir)), self.options
        if options.save_models:
            trainer.save_model(_internal_call=True)  # else it would be pushed now, before the results
        if options.save_predictions and PartialState().is_main_process:
            write_table(self._predictions(trainer), directory / f"{PREDICTIONS}.parquet")
        domains: Any = trainer.train_dataset
        if options.hard_examples:
            samples = training_samples(self.data, self.training, domains)
            list_hard_examples(trainer, options.hard_examples, samples, directory)
        trainer.create_model_card(**self.card, model_name=f"{self.card['dataset']} {run.method}")
        counts = np.bincount(domains.labels, minlength=len(self.data.classes))
        return {**output.metrics, **scores, "train_class_counts": counts.tolist()}

    def make_trainer(self, given: ReweightedTrainingArguments) -> DomainTrainer:
        """A new model and its Trainer; `per_device_train_batch_size` is that of each training domain, `seed` the trial.

        Raises:
            SetupError: the algorithm does not go together with the model or the settings.
        """
        names, trial = self.data.names, given.seed
        splits = [split(len(e.labels), trial, p) for p, e in enumerate(self.data.environments)]
        domains, inside = [names[p] for p in self.training], [splits[p][0] for p in self.training]
        labels = [self.data.environments[p].labels[splits[p][0]] for p in self.training]
        args = copy.copy(given)
        args.per_device_train_batch_size = given.per_device_train_batch_size * len(self.training)
        args.seed = seed_hash(trial, "model")
        # The new classifier and dropout start from the same numbers for every algorithm.
        set_seed(args.seed)
        backbone = self.backbone
        model: Any = backbone.build(len(self.data.classes))
        model.config.id2label = dict(enumerate(self.data.classes))
        model.config.label2id = {name: number for number, name in enumerate(self.data.classes)}
        if self.frozen_statistics:
            freeze_batch_norm(model)
        add_dropout(model, self.algorithm.dropout)
        trainer = ALGORITHMS[self.algorithm.algorithm].trainer(
            model=model,
            args=args,
            train_dataset=TrainingDomains(
                [self.views[p] for p in self.training], inside, np.concatenate(labels)
            ),
            eval_dataset=self._evaluated(splits),
            processing_class=backbone.tokenizer or backbone.processor,
            data_collator=DataCollatorWithPadding(backbone.tokenizer)
            if backbone.tokenizer
            else default_data_collator,
            compute_metrics=accuracy_and_ece,
            sampler=DomainSampler(
                inside,
                self.training,
                trial,
                given.per_device_train_batch_size,
                args.max_steps * args.gradient_accumulation_steps * args.world_size,
            ),
            training_domains=domains,
            **self.algorithm.trainer_settings(args, domains),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _evaluated(self, splits: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Subset]:
        """`out` of every environment, and `in` of the held-out ones: all that the rules of DomainBed read."""
        chosen = {}
        for position, name in enumerate(self.data.names):
            inside, outside = splits[position]
            chosen[f"{name}_out"] = Subset(self.views[position], outside[: self.max_eval_samples])
            if name in self.held_out:
                chosen[f"{name}_in"] = Subset(self.views[position], inside[: self.max_eval_samples])
        return chosen

    def _predictions(self, trainer: DomainTrainer) -> pd.DataFrame:
        """One row per sample of the held-out environments' `in` splits, by the final model.

        Its number in its environment, from 0, is in `row`; the other columns are those of `predictions_table`.
        """
        subsets: Any = trainer.eval_dataset
        tables = []
        for name in self.held_out:
            head = pd.DataFrame({"environment": name, "row": subsets[f"{name}_in"].numbers})
            tables.append(pd.concat([head, trainer.predictions[f"eval_{name}_in"]], axis=1))
        return pd.concat(tables, ignore_index=True)


def scores_of(
    log: Sequence[Mapping[str, Any]], held_out: Sequence[str], training: Sequence[str]
) -> dict[str, Any]:
    """The scores of a training whose model was chosen by training-domain validation.

    The chosen checkpoint is the one with the best mean accuracy on the training domains' `out` splits, the earliest of
    equals; its reported scores are those on the `in` split of the held-out domain, or their mean for two domains.

    Args:
        log: the Trainer's `log_history`.
        held_out: names of the held-out domains.
        training: names of the others.

    Returns:
        `test_accuracy`, `test_ece`, `test_loss`; `eval_accuracy`, the first of them under the name that studies know;
        `eval_validation_accuracy`, which decided; `step` of the checkpoint; and `checkpoints` for other rules, dicts with
        `step` and `<domain>_<in|out>_<accuracy|ece|loss>`.
    """
    splits = [f"{name}_out" for name in (*training, *held_out)] + [f"{name}_in" for name in held_out]
    names = {f"eval_{split}_{score}": f"{split}_{score}" for split in splits for score in SCORES}
    points: dict[int, dict[str, Any]] = {}
    for entry in log:
        found = {names[name]: value for name, value in entry.items() if name in names}
        if found:
            points.setdefault(entry["step"], {"step": entry["step"]}).update(found)
    # SWAD's evaluations during training are of the training domains alone.
    checkpoints = [points[step] for step in sorted(points) if f"{held_out[0]}_in_accuracy" in points[step]]

    def validation(point: Mapping[str, Any]) -> float:
        return float(np.mean([point[f"{name}_out_accuracy"] for name in training]))

    best = max(checkpoints, key=validation)
    test = {
        f"test_{score}": float(np.mean([best[f"{name}_in_{score}"] for name in held_out])) for score in SCORES
    }
    return {
        **test,
        "eval_accuracy": test["test_accuracy"],
        f"eval_{VALIDATION}": validation(best),
        "step": best["step"],
        "checkpoints": checkpoints,
    }
