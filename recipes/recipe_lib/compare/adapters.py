"""How a study calls each recipe, and what it reads of a run: the same entry points and files that a user has."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import domainbed
import glue
import imagenet
import numpy as np
import pandas as pd
import tabular

from recipe_lib.domains.selection import training_domain_validation
from recipe_lib.embedded import minilm_directory
from recipe_lib.errors import UserError, listed
from recipe_lib.predictions import PREDICTIONS
from recipe_lib.runs import RunArguments
from recipe_lib.tabular.columns import ColumnArguments
from recipe_lib.tabular.options import NetworkArguments
from recipe_lib.tabular.scores import LOWER_IS_BETTER
from recipe_lib.tabular.study import StudyArguments
from recipe_lib.text_classification import encode_labels
from recipe_lib.vader import CACHE_DIR, load_vader
from rgd_hf import ReweightedTrainingArguments

SET_BY_THE_STUDY = (
    "seed", "data_seed", "output_dir", "overwrite_output_dir", "compare", "holdout_fraction", "save_models",
    "save_predictions", "report_to", "disable_tqdm", "logging_steps", "seeds", "first_seed", "rivals", "objectives",
    "tune", "reweightings", "algorithms", "n_trials", "first_trial", "n_draws", "selection", "shard", "report_only",
    "dry_run", "push_to_hub",
)  # fmt: skip
LOGS = 0.05
"""A final run logs at every twentieth of its steps."""


@dataclass(frozen=True)
class Outcome:
    """What a study keeps of a run.

    Attributes:
        score: larger is better.
        score_name: of the metric.
        metrics: all scalars that the recipe gave.
        log: the entries of the training log with a training or an evaluation loss.
        predictions: one row an evaluation sample, see `recipe_lib.predictions.predictions_table`; None without classes,
            and in tuning.
        train_class_counts: training samples of every class; None without classes.
    """

    score: float
    score_name: str
    metrics: Mapping[str, float]
    log: Sequence[Mapping[str, Any]] = ()
    predictions: pd.DataFrame | None = None
    train_class_counts: Callable[[], list[int] | None] = field(default=lambda: None)


class Recipe(ABC):
    """A recipe as a study sees it.

    Attributes:
        kind: what it trains on.
        main: its entry point.
        arguments: the dataclasses of its command line.
    """

    kind: str
    main: Callable[[list[str]], list[dict[str, Any]]]
    arguments: Sequence[type]

    def check_score(self, name: str, where: str) -> None:
        """Raise `UserError` where methods cannot be compared by the metric of this name."""
        lower = (*LOWER_IS_BETTER, "loss", "mse")
        if name.removeprefix("eval_") in lower:
            raise UserError(f"{where}: score: {name!r} is better when it is lower: choose one that rises.")

    @abstractmethod
    def options(
        self, options: Mapping[str, Any], seed: int, tuning: bool, holdout_fraction: float
    ) -> dict[str, Any]:
        """The recipe's options for one run.

        Args:
            options: of data set and method.
            seed: of the run.
            tuning: whether the run is one of those that choose the learning rate.
            holdout_fraction: share of the training rows that these are scored on.
        """

    @abstractmethod
    def outcome(
        self,
        records: list[dict[str, Any]],
        directory: Path,
        options: Mapping[str, Any],
        score: str,
        tuning: bool,
    ) -> Outcome:
        """What a study keeps of a run.

        Args:
            records: that `main` returned.
            directory: that it wrote to.
            options: that it was called with.
            score: metric of final runs.
            tuning: whether the run is one of those that choose the learning rate.
        """


class TrainerRecipe(Recipe):
    """`glue.py` and `imagenet.py`: one training, evaluated on rows of the training part in tuning."""

    def check_score(self, name: str, where: str) -> None:
        if not name.startswith("eval_"):
            raise UserError(f"{where}: score must begin with eval_ (eval_accuracy, say), not be {name!r}.")
        super().check_score(name, where)

    def options(
        self, options: Mapping[str, Any], seed: int, tuning: bool, holdout_fraction: float
    ) -> dict[str, Any]:
        fixed = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "save_models": False}
        if tuning:
            # Nothing reads its curves; without them `eval_steps` means nothing, and must not tell one run from another.
            own = {"holdout_fraction": holdout_fraction, "eval_strategy": "no", "logging_strategy": "no"}
            options = {name: value for name, value in options.items() if name != "eval_steps"}
        else:
            own = {"save_predictions": True, "logging_strategy": "steps", "logging_steps": LOGS}
        return {**fixed, **options, **own, "seed": seed}

    def outcome(
        self,
        records: list[dict[str, Any]],
        directory: Path,
        options: Mapping[str, Any],
        score: str,
        tuning: bool,
    ) -> Outcome:
        metrics = _scalars(records[0])
        value = _metric(metrics, score)
        if tuning:
            return Outcome(value, score, metrics)
        log = json.loads((directory / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        predictions = pd.read_parquet(directory / f"{PREDICTIONS}.parquet")
        if "correct" not in predictions or "label" not in predictions:
            return Outcome(value, score, metrics, log)
        return Outcome(value, score, metrics, log, predictions, lambda: self.train_class_counts(options))

    @abstractmethod
    def train_class_counts(self, options: Mapping[str, Any]) -> list[int] | None:
        """Training samples of every class, in the order of the class numbers."""


class Text(TrainerRecipe):
    """`glue.py`."""

    kind = "text"
    main = staticmethod(glue.main)
    arguments = (glue.DataArguments, glue.ModelArguments, RunArguments, ReweightedTrainingArguments)

    def train_class_counts(self, options: Mapping[str, Any]) -> list[int] | None:
        names = glue.DataArguments.__dataclass_fields__
        args = glue.DataArguments(**{name: value for name, value in options.items() if name in names})
        task = glue.find_task(args)
        train = glue.first_rows(
            glue.load_data(args, task)["train"], args.max_train_samples, "max_train_samples"
        )
        labels = glue.describe(args, task, train)[1]
        numbers = encode_labels(train, args.label_column, labels, "the training data")
        return np.bincount(numbers, minlength=len(labels.names)).tolist()


class Images(TrainerRecipe):
    """`imagenet.py`."""

    kind = "images"
    main = staticmethod(imagenet.main)
    arguments = (
        imagenet.ImageDataArguments,
        imagenet.ImageModelArguments,
        imagenet.AugmentationArguments,
        imagenet.OptimizationArguments,
        imagenet.MeasureArguments,
        RunArguments,
        ReweightedTrainingArguments,
    )

    def train_class_counts(self, options: Mapping[str, Any]) -> list[int] | None:
        names = imagenet.ImageDataArguments.__dataclass_fields__
        args = imagenet.ImageDataArguments(**{name: v for name, v in options.items() if name in names})
        return imagenet.load_image_sets(args)[0].counts().tolist()


class Tables(Recipe):
    """`tabular.py`: one network, scored on the validation split in tuning and on the test split in final runs.

    Tuning goes by the recipe's main score, accuracy or RMSE, whatever the final runs are compared by.
    """

    kind = "tabular"
    main = staticmethod(tabular.main)
    arguments = (
        tabular.DataArguments,
        ColumnArguments,
        NetworkArguments,
        StudyArguments,
        ReweightedTrainingArguments,
    )

    def options(
        self, options: Mapping[str, Any], seed: int, tuning: bool, holdout_fraction: float
    ) -> dict[str, Any]:
        fixed = {"rivals": "none", "seeds": 1, "first_seed": seed, "save_models": False}
        return {**fixed, **_with_objective(options), "save_predictions": not tuning}

    def outcome(
        self,
        records: list[dict[str, Any]],
        directory: Path,
        options: Mapping[str, Any],
        score: str,
        tuning: bool,
    ) -> Outcome:
        (record,) = records
        metrics = _scalars(record, leave_out=("seed", "seconds"))
        if tuning:
            (name,) = (name for name in metrics if name.startswith("validation_"))
            sign = -1 if name.removeprefix("validation_") in LOWER_IS_BETTER else 1
            return Outcome(sign * metrics[name], name, metrics)
        value = _metric(metrics, score)
        (state,) = directory.rglob("trainer_state.json")
        log = json.loads(state.read_text(encoding="utf-8"))["log_history"]
        predictions = pd.read_parquet(state.with_name(f"{PREDICTIONS}.parquet"))
        if "correct" not in predictions:
            return Outcome(value, score, metrics, log)
        return Outcome(value, score, metrics, log, predictions, lambda: record["train_class_counts"])


class Domains(Recipe):
    """`domainbed.py`: a model for each held-out environment, all of them one run.

    The checkpoint is that of training-domain validation. Tuning is scored on that validation accuracy, final runs on the
    accuracy on the held-out environment, both averaged over the held-out environments.
    """

    kind = "domains"
    main = staticmethod(domainbed.main)
    arguments = (
        domainbed.DataArguments,
        domainbed.ModelArguments,
        domainbed.SweepArguments,
        ReweightedTrainingArguments,
    )

    def check_score(self, name: str, where: str) -> None:
        if name != "accuracy":
            raise UserError(f"{where}: score: {name!r} is not known: domains are compared by `accuracy`.")

    def options(
        self, options: Mapping[str, Any], seed: int, tuning: bool, holdout_fraction: float
    ) -> dict[str, Any]:
        own = dict(options)
        own["reweightings"] = own.pop("reweighting")
        own |= {"algorithms": "erm", "selection": "training_domain", "n_trials": 1, "first_trial": seed}
        if not tuning:
            own |= {"logging_strategy": "steps", "logging_steps": LOGS}
        return own

    def outcome(
        self,
        records: list[dict[str, Any]],
        directory: Path,
        options: Mapping[str, Any],
        score: str,
        tuning: bool,
    ) -> Outcome:
        held_out = [run["held_out"][0] for run in records]
        found = {name: set(run["checkpoints"][0]) for name, run in zip(held_out, records)}
        suffix = "_out_accuracy"
        environments = sorted(
            {key.removesuffix(suffix) for keys in found.values() for key in keys if key.endswith(suffix)}
        )
        choices = {name: training_domain_validation(records, name, environments) for name in held_out}
        chosen = {name: choice for name, choice in choices.items() if choice is not None}
        validation = float(np.mean([choice.validation for choice in chosen.values()]))
        accuracy = float(np.mean([choice.accuracy for choice in chosen.values()]))
        metrics = {"accuracy": accuracy, "training_domain_validation_accuracy": validation}
        metrics["ece"] = float(np.mean([choice.ece for choice in chosen.values()]))
        metrics |= {f"{name}_accuracy": choice.accuracy for name, choice in chosen.items()}
        if tuning:
            return Outcome(validation, "training_domain_validation_accuracy", metrics)
        return Outcome(accuracy, score, metrics, _mean_log(records, environments))


RECIPES: dict[str, Recipe] = {
    "glue": Text(),
    "imagenet": Images(),
    "tabular": Tables(),
    "domainbed": Domains(),
}


def resolve(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with the paths of what comes with packages: `embedded:minilm` (a model), `embedded:sentences` (data).

    Raises:
        UserError: a package is not installed, or the sentences cannot be fetched.
    """
    sources = {"embedded:minilm": minilm_directory, "embedded:sentences": _sentences_directory}
    return {
        name: sources[value]() if isinstance(value, str) and value in sources else value
        for name, value in options.items()
    }


def _sentences_directory() -> str:
    """The sentences of `recipe_lib.vader` as parquet files, written once."""
    if not all((CACHE_DIR / f"{split}.parquet").is_file() for split in ("train", "validation")):
        for split, rows in load_vader().items():
            partial = CACHE_DIR / f"{split}.{os.getpid()}.partial"
            rows.to_parquet(partial)
            os.replace(partial, CACHE_DIR / f"{split}.parquet")
    return str(CACHE_DIR)


def _with_objective(options: Mapping[str, Any]) -> dict[str, Any]:
    """`--reweighting` and `--class_weights` as the objective that `tabular.py` calls by one name."""
    own = dict(options)
    reweighting, weights = own.get("reweighting", "none"), own.pop("class_weights", None)
    if weights is not None and (weights != "balanced" or reweighting != "none"):
        raise UserError(
            f"tables have balanced class weights without re-weighting alone, not {weights!r} with {reweighting!r}."
        )
    own["objectives"] = "class_weights" if weights else "erm" if reweighting == "none" else reweighting
    return own


def _scalars(record: Mapping[str, Any], leave_out: Sequence[str] = ()) -> dict[str, float]:
    timing = ("runtime", "per_second", "preparation_time", "seconds")
    return {
        name: value
        for name, value in record.items()
        if isinstance(value, int | float) and not name.endswith(timing) and name not in leave_out
    }


def _metric(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        raise UserError(f"score: the recipe gave no {name!r}, but {listed(metrics)}.")
    return metrics[name]


def _mean_log(runs: Sequence[Mapping[str, Any]], environments: Sequence[str]) -> list[dict[str, Any]]:
    """The training logs of the held-out environments' models averaged, with the loss on the training ones' `out` splits."""
    entries: list[tuple[int, str, float]] = []
    for run in runs:
        training = [name for name in environments if name not in run["held_out"]]
        for entry in run.get("training_log", []):
            entries += [
                (entry["step"], name, value)
                for name, value in entry.items()
                if isinstance(value, int | float)
            ]
        for point in run["checkpoints"]:
            loss = float(np.mean([point[f"{name}_out_loss"] for name in training]))
            entries.append((point["step"], "eval_loss", loss))
    frame = pd.DataFrame(entries, columns=["step", "name", "value"])
    table = frame[frame["name"] != "step"].groupby(["step", "name"])["value"].mean().unstack()
    return [{"step": int(step), **row.dropna().to_dict()} for step, row in table.iterrows()]
