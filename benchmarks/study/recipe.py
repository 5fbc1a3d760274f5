"""What a study asks of a recipe, and what it keeps of its runs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.tabular.scores import LOWER_IS_BETTER

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
        predictions: one row an evaluation sample, see `rgd_hf.scripts.predictions.predictions_table`; None without classes,
            and in tuning. A column `row` numbers the samples of the data set where runs with other seeds have others.
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
    main: Callable[[list[str]], Any]
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
