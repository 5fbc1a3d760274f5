"""Training, validation and test rows, encoded once for all methods."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.tabular.columns import Target
from rgd_hf.scripts.tabular.preprocessing import TablePreprocessor


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
    """A random subset of at most `rows` rows, with the classes' proportions kept."""
    left_out = len(frame) - rows
    if left_out <= 0:
        return frame, y
    if left_out < len(target.classes):
        kept = _without_a_few(y, left_out, seed)
    else:
        kept, _ = _cut(np.arange(len(frame)), y, rows, target, seed, "--max_rows")
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
