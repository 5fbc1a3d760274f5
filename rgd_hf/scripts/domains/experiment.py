"""Training one run of a sweep, and what it leaves: one record."""

import copy
import gc
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import DataCollatorWithPadding, PrinterCallback, default_data_collator, set_seed

from rgd_hf import ReweightedTrainingArguments
from rgd_hf.scripts.domains.algorithms import ALGORITHMS, draw_hyper_parameters
from rgd_hf.scripts.domains.backbones import Backbone, add_dropout, freeze_batch_norm
from rgd_hf.scripts.domains.batches import DomainSampler, TrainingDomains
from rgd_hf.scripts.domains.environments import DomainData, seed_hash, split
from rgd_hf.scripts.domains.metrics import accuracy_and_ece
from rgd_hf.scripts.domains.predictions import CheckpointPredictions
from rgd_hf.scripts.domains.sweep import Job
from rgd_hf.scripts.domains.training import DomainTrainer
from rgd_hf.scripts.domains.views import Subset, View
from rgd_hf.scripts.results import package_versions
from rgd_hf.weightings.choice import WITH_TARGET_ESS


class Experiment:
    """What all runs of a sweep share.

    Args:
        data: the environments.
        views: one an environment.
        backbone: the model of every run.
        args: training arguments; `per_device_train_batch_size` is that of each training domain.
        space: where random hyper-parameters are drawn from, see `draw_hyper_parameters`.
        frozen_statistics: freeze the statistics of batch normalizations.
        max_eval_samples: evaluate the first so many samples of each split (they are in random order); all where None.
    """

    def __init__(
        self,
        data: DomainData,
        views: list[View],
        backbone: Backbone,
        args: ReweightedTrainingArguments,
        space: str,
        frozen_statistics: bool,
        max_eval_samples: int | None,
    ):
        self.data, self.views, self.backbone, self.args = data, views, backbone, args
        self.space, self.frozen_statistics, self.max_eval_samples = space, frozen_statistics, max_eval_samples

    def train(self, job: Job, kept: CheckpointPredictions | None = None) -> dict[str, Any]:
        """Train and evaluate one run; what is recorded of it.

        Args:
            job: the run.
            kept: is given the predictions of its checkpoints.
        """
        started = time.perf_counter()
        hyper_parameters = draw_hyper_parameters(
            job.algorithm,
            {
                "learning_rate": self.args.learning_rate,
                "batch_size": self.args.per_device_train_batch_size,
                "weight_decay": self.args.weight_decay,
                "dropout": 0.0,
            },
            self.space,
            job.draw,
            job.trial,
        )
        trainer = self._trainer(job, hyper_parameters, kept)
        trainer.train()
        if trainer.finish():
            if kept is not None:
                kept.forget()
            metrics = trainer.evaluate()
            checkpoints = [{"step": trainer.state.global_step, **_accuracies(metrics)}]
        else:
            checkpoints = _checkpoints(trainer.state.log_history)
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        del trainer
        gc.collect()
        return {
            "algorithm": job.algorithm,
            "reweighting": job.reweighting,
            "trial": job.trial,
            "draw": job.draw,
            "held_out": list(job.held_out),
            "hyper_parameters": hyper_parameters,
            "checkpoints": checkpoints,
            **({"training_log": logs} if logs else {}),
            "seconds": round(time.perf_counter() - started, 1),
            "versions": package_versions(),
        }

    def _trainer(
        self, job: Job, hyper_parameters: Mapping[str, Any], kept: CheckpointPredictions | None = None
    ) -> DomainTrainer:
        names = self.data.names
        training = [position for position, name in enumerate(names) if name not in job.held_out]
        splits = [split(len(e.labels), job.trial, p) for p, e in enumerate(self.data.environments)]
        args = copy.copy(self.args)
        args.reweighting = job.reweighting
        args.target_ess = args.target_ess if job.reweighting in WITH_TARGET_ESS else None
        args.learning_rate = hyper_parameters["learning_rate"]
        args.weight_decay = hyper_parameters["weight_decay"]
        args.per_device_train_batch_size = hyper_parameters["batch_size"] * len(training)
        args.seed = seed_hash(job.trial, "model")
        # The new classifier and dropout start from the same numbers for every algorithm.
        set_seed(args.seed)
        model = self.backbone.build(len(self.data.classes))
        if self.frozen_statistics:
            freeze_batch_norm(model)
        add_dropout(model, hyper_parameters["dropout"])
        sampler = DomainSampler(
            [splits[p][0] for p in training],
            training,
            job.trial,
            hyper_parameters["batch_size"],
            args.max_steps * args.gradient_accumulation_steps * args.world_size,
        )
        tokenizer = self.backbone.tokenizer
        trainer = ALGORITHMS[job.algorithm].trainer(
            model=model,
            args=args,
            train_dataset=TrainingDomains(
                [self.views[p] for p in training],
                np.concatenate([self.data.environments[p].labels[splits[p][0]] for p in training]),
            ),
            eval_dataset=self._evaluated(job, splits),
            processing_class=tokenizer,
            data_collator=default_data_collator if tokenizer is None else DataCollatorWithPadding(tokenizer),
            compute_metrics=accuracy_and_ece,
            sampler=sampler,
            hyper_parameters=hyper_parameters,
            training_domains=[names[p] for p in training],
            kept=kept,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _evaluated(self, job: Job, splits: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Subset]:
        """`out` of every environment, and `in` of the held-out ones: all that the selection rules read."""
        chosen = {}
        for position, name in enumerate(self.data.names):
            inside, outside = splits[position]
            chosen[f"{name}_out"] = Subset(self.views[position], outside[: self.max_eval_samples])
            if name in job.held_out:
                chosen[f"{name}_in"] = Subset(self.views[position], inside[: self.max_eval_samples])
        return chosen


def _accuracies(metrics: Mapping[str, Any]) -> dict[str, float]:
    kept = ("_accuracy", "_ece", "_loss")
    return {name.removeprefix("eval_"): value for name, value in metrics.items() if name.endswith(kept)}


def _checkpoints(log_history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One dict a step that was evaluated; the Trainer logs every data set on its own."""
    points: dict[int, dict[str, Any]] = {}
    for entry in log_history:
        found = _accuracies({k: v for k, v in entry.items() if k.startswith("eval_")})
        if found:
            points.setdefault(entry["step"], {"step": entry["step"]}).update(found)
    return [points[step] for step in sorted(points)]
