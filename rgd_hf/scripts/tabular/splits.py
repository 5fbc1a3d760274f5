"""Training, validation and test rows, encoded once for all methods."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.tabular.columns import Target
from rgd_hf.scripts.tabular.preprocessing import TablePreprocessor

MIN_CLASS_ROWS = 3
"""Of each class: training, validation and test rows."""


@dataclass(frozen=True)
class Part:
    """One split.

    Attributes:
        x_num: float32 `[rows, numeric features]`.
        x_cat: int64 codes `[rows, categorical features]`.
        y: class indices int64 `[rows]`, or the raw target, float64 `[rows]`.
    """

    x_num: np.ndarray
    x_cat: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    def select(self, rows: np.ndarray) -> "Part":
        """The part that has `rows` alone, positions int64, in their order."""
        return Part(self.x_num[rows], self.x_cat[rows], self.y[rows])

    def features(self) -> dict[str, Tensor]:
        """A model's inputs; kinds of features that the table lacks are omitted."""
        inputs = {"x_num": torch.from_numpy(self.x_num), "x_cat": torch.from_numpy(self.x_cat)}
        return {name: values for name, values in inputs.items() if values.shape[1]}


@dataclass(frozen=True)
class Splits:
    """A table cut and encoded for one seed.

    Attributes:
        train: what the encoders and the methods are fitted on.
        validation: decides on early stopping and tuning.
        test: rows of the final score.
        target: what is predicted.
        preprocessor: the fitted encoders.
        seed: random seed of the cut between training and validation.
    """

    train: Part
    validation: Part
    test: Part
    target: Target
    preprocessor: TablePreprocessor
    seed: int


def limit_rows(
    frame: pd.DataFrame, y: np.ndarray, target: Target, rows: int, seed: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """A random subset of at most `rows` rows, with the classes' proportions kept; rare classes may lose all of theirs."""
    left_out = len(frame) - rows
    if left_out <= 0:
        return frame, y
    if left_out < len(target.classes):
        kept = _without_a_few(y, left_out, seed)
    else:
        kept, _ = _cut(np.arange(len(frame)), _drawn_together(y, target), rows, target, seed, "--max_rows")
    return frame.iloc[kept], y[kept]


def _without_a_few(y: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Positions of all rows but `count`, fewer than there are classes: each is drawn from the class that has most."""
    counts = np.bincount(y)
    for _ in range(count):
        counts[counts.argmax()] -= 1
    random = np.random.default_rng(seed)
    kept = [
        random.choice(np.flatnonzero(y == number), size, replace=False) for number, size in enumerate(counts)
    ]
    return np.sort(np.concatenate(kept))


def _drawn_together(y: np.ndarray, target: Target) -> np.ndarray:
    """Classes to draw by: one with a single row, which has no proportion, is drawn with the smallest of the others."""
    if target.is_regression:
        return y
    counts = np.bincount(y, minlength=len(target.classes))
    several = counts > 1
    if not several.any():
        return np.zeros_like(y)
    smallest = np.where(several, counts, len(y) + 1).argmin()
    return np.where(several[y], y, smallest)


def without_rare_classes(
    frame: pd.DataFrame,
    y: np.ndarray,
    target: Target,
    *,
    drop: bool,
    limited: bool,
    warn: Callable[[str], Any],
) -> tuple[pd.DataFrame, np.ndarray, Target]:
    """The table without classes that are too rare to split into training, validation and test rows.

    Args:
        frame: the rows.
        y: the encoded target of every row, `[rows]`.
        target: its classes; a regression stays as it is.
        drop: leave out the rows of classes with one or two.
        limited: whether the rows are those that `--max_rows` keeps, for messages.
        warn: called with a sentence for the classes that are left out.

    Raises:
        UserError: classes have one or two rows, and `drop` is not set; or fewer than two classes are left.
    """
    if target.is_regression:
        return frame, y, target
    counts = np.bincount(y, minlength=len(target.classes))
    among = f" among the {len(y):,} rows that --max_rows keeps" if limited else ""
    absent = [name for name, count in zip(target.classes, counts) if not count]
    rare = [number for number in np.argsort(-counts, kind="stable") if 0 < counts[number] < MIN_CLASS_ROWS]
    if rare:
        shown = ", ".join(f"{target.classes[number]!r} ({counts[number]})" for number in rare[:10])
        if not drop:
            more = ", and a larger --max_rows keeps more of them" if limited else ""
            raise UserError(
                f"{len(rare)} class(es) of {target.name!r} are too rare to split{among}, since training, validation and test "
                f"need one row each: {shown}. --drop_rare_classes leaves their rows out{more}; for a number to be predicted, "
                "give --task regression."
            )
        warn(f"the rows of {len(rare)} class(es) with fewer than 3 rows{among} are skipped: {shown}.")
    if absent:
        warn(
            f"{len(absent)} class(es) of {target.name!r} have no row{among}, and the model does not learn them: "
            f"{listed(absent[:10])}."
        )
    left = counts >= MIN_CLASS_ROWS
    if left.sum() < 2:
        raise UserError(
            f"the target column {target.name!r} has {left.sum()} class(es) of 3 rows or more{among}. Two at least are needed."
        )
    kept = left[y]
    classes = tuple(name for name, stays in zip(target.classes, left) if stays)
    return frame[kept], (np.cumsum(left) - 1)[y[kept]], Target(target.name, classes)


@dataclass(frozen=True)
class PreparedTable:
    """A table whose columns and target are known.

    Attributes:
        name: name of the data.
        frame: the table; its index has the position of each row in the table as it was given.
        y: the encoded target of every row.
        target: what `y` means; classes keep their proportions in all splits.
        columns: as `TablePreprocessor` takes them.
        test_size: share of all rows.
        validation_size: share of the rows that are not for the test.
        split_seed: random seed of the test rows.
        marks: as `Table` has them.
    """

    name: str
    frame: pd.DataFrame
    y: np.ndarray
    target: Target
    columns: list[dict[str, str]]
    test_size: float = 0.2
    validation_size: float = 0.2
    split_seed: int = 0
    marks: Mapping[str, str] = field(default_factory=dict)

    def split(self, seed: int) -> Splits:
        """The same test rows for every seed, validation rows that depend on the seed; all encoded.

        Raises:
            UserError: there are too few rows.
        """
        train, validation, test = self.rows(seed)
        preprocessor = TablePreprocessor(self.columns).fit(self.frame.iloc[train], seed)
        if not preprocessor.n_num_features and not preprocessor.cardinalities:
            raise UserError(
                f"all columns of {self.name} are constant in the {len(train)} training rows, so nothing can be learned."
            )

        def encode(rows: np.ndarray) -> Part:
            return Part(*preprocessor.transform(self.frame.iloc[rows]), self.y[rows])

        return Splits(encode(train), encode(validation), encode(test), self.target, preprocessor, seed)

    def rows(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions in `frame` of the rows of `split(seed)`: training, validation and test, each in order.

        Raises:
            UserError: there are too few rows.
        """
        target, y = self.target, self.y
        rest, test = _cut(np.arange(len(y)), y, 1 - self.test_size, target, self.split_seed, "--test_size")
        train, validation = _cut(rest, y[rest], 1 - self.validation_size, target, seed, "--validation_size")
        return train, validation, test


def _cut(
    rows: np.ndarray, y: np.ndarray, first: float | int, target: Target, seed: int, option: str
) -> tuple[np.ndarray, np.ndarray]:
    try:
        one, other = train_test_split(
            rows, train_size=first, random_state=seed, stratify=None if target.is_regression else y
        )
    except ValueError as error:
        raise UserError(
            f"{len(rows)} rows in {max(1, len(target.classes))} class(es) cannot be split ({option}): {error}"
        ) from error
    return np.sort(one), np.sort(other)
