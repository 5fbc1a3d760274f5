"""How a study calls each recipe, and what it reads of a run: the same entry points and files that a user has."""

import json
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import glue
import imagenet
import tabular
from benchmarks.study.domains import Domains
from benchmarks.study.recipe import LOGS, Outcome, Recipe
from rgd_hf import ReweightedTrainingArguments
from rgd_hf.scripts.embedded import minilm_directory
from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.predictions import PREDICTIONS
from rgd_hf.scripts.runs import RunArguments
from rgd_hf.scripts.tabular.columns import ColumnArguments
from rgd_hf.scripts.tabular.options import NetworkArguments
from rgd_hf.scripts.tabular.scores import LOWER_IS_BETTER
from rgd_hf.scripts.tabular.study import StudyArguments
from rgd_hf.scripts.text_classification import encode_labels
from rgd_hf.scripts.vader import CACHE_DIR, load_vader

SET_BY_THE_STUDY = (
    "seed", "data_seed", "output_dir", "overwrite_output_dir", "compare", "holdout_fraction", "save_models",
    "save_predictions", "report_to", "disable_tqdm", "logging_steps", "seeds", "first_seed", "rivals", "objectives",
    "tune", "reweightings", "algorithms", "n_trials", "first_trial", "n_draws", "selection", "shard", "report_only",
    "dry_run", "push_to_hub",
)  # fmt: skip


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
        for name in ("data", "networks"):
            given = options.get(name)
            if (isinstance(given, list) and len(given) > 1) or given in ("all", ["all"]):
                raise UserError(
                    f"{name} must be a single one, not {given!r}: a data set of a study is one table and one network. "
                    "Make a data set of each."
                )
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
        if options["objectives"] == "focal":
            # The recipe evaluates it by itself: no plain loss to compare with.
            log = [{name: value for name, value in entry.items() if name != "eval_loss"} for entry in log]
        predictions = pd.read_parquet(state.with_name(f"{PREDICTIONS}.parquet"))
        if "correct" not in predictions:
            return Outcome(value, score, metrics, log)
        return Outcome(value, score, metrics, log, predictions, lambda: record["train_class_counts"])


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
    """The sentences of `rgd_hf.scripts.vader` as parquet files, written once."""
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
