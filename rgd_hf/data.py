"""Columns that batches carry besides the model's inputs: the weight and the index of each sample."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

SAMPLE_WEIGHT = "sample_weight"
"""The column that holds a non-negative weight for every sample."""

SAMPLE_INDEX = "sample_index"
"""The column that holds the number of every sample in the training set, from 0."""


class ColumnCollator:
    """Carry one numeric column past a collator that may not know it.

    Args:
        collator: turns a list of examples into a batch.
        column: name of the column.
        dtype: dtype of the column in the batch; None keeps the dtype of the values.
    """

    def __init__(self, collator: Callable[[list[Any]], Any], column: str, dtype: torch.dtype | None = None):
        self.collator, self.column, self.dtype = collator, column, dtype

    def __call__(self, examples: list[Any]) -> Any:
        """The batch of `collator`, with the column as a tensor `[batch, ...]` where the examples have one."""
        column = self.column
        if not examples or not isinstance(examples[0], Mapping) or column not in examples[0]:
            return self.collator(examples)
        if self.dtype is None:
            values = torch.stack([torch.as_tensor(example[column]) for example in examples])
        else:
            values = torch.tensor([float(example[column]) for example in examples], dtype=torch.float64)
        batch = self.collator([{k: v for k, v in e.items() if k != column} for e in examples])
        batch[column] = values if self.dtype is None else values.to(self.dtype)
        return batch


class SampleWeightCollator(ColumnCollator):
    """Carry the `sample_weight` column, float32, past a collator.

    Args:
        collator: turns a list of examples into a batch.
        check: whether the weights are used, and therefore checked: here they are not on the device yet.
    """

    def __init__(self, collator: Callable[[list[Any]], Any], check: bool = False):
        super().__init__(collator, SAMPLE_WEIGHT, torch.float32)
        self.check = check

    def __call__(self, examples: list[Any]) -> Any:
        """The batch of `collator`, with the weights.

        Raises:
            ValueError: a weight is negative or not finite, and they are checked.
        """
        batch = super().__call__(examples)
        weights = batch.get(SAMPLE_WEIGHT) if isinstance(batch, Mapping) else None
        if self.check and isinstance(weights, Tensor) and weights.device.type == "cpu":
            check_sample_weights(weights)
        return batch


def check_sample_weights(weights: Tensor) -> None:
    """Raise `ValueError` unless all are finite and non-negative; waits for the device."""
    bad = weights[~((weights >= 0) & torch.isfinite(weights))]
    if bad.numel():
        raise ValueError(
            f"The column {SAMPLE_WEIGHT!r} must hold finite, non-negative numbers, but a training batch has "
            f"{bad[0].item():g}. A weight of 0 leaves a sample out: correct the column, or remove it."
        )


def has_column(dataset: Any, column: str, read: bool) -> bool:
    """Whether the examples of `dataset` have a column; False where that is not known.

    Args:
        dataset: a training set.
        column: name of the column.
        read: whether an example may be made to look at it; random states are restored.
    """
    names = getattr(dataset, "column_names", None)
    if isinstance(names, list):
        return column in names
    listed = isinstance(dataset, list | tuple)
    if not (listed or (read and isinstance(dataset, Dataset) and hasattr(dataset, "__len__"))) or not len(
        dataset
    ):
        return False
    try:
        with random_states_kept():
            example = dataset[0]
    except (LookupError, TypeError):
        return False  # its keys are other than 0, 1, ...
    return isinstance(example, Mapping) and column in example


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Inside, examples may be made at random; what comes after is as if they had not been."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class NumberedExamples(Dataset):
    """The examples of a map-style data set, each with its index."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        return _with_number(self.dataset[key], key)

    def __getitems__(self, keys: list[Any]) -> list[dict[str, Any]]:
        fetch = getattr(self.dataset, "__getitems__", None)
        examples = fetch(keys) if fetch is not None else [self.dataset[key] for key in keys]
        return [_with_number(example, key) for example, key in zip(examples, keys, strict=True)]


def _with_number(example: Any, key: Any) -> dict[str, Any]:
    if not isinstance(example, Mapping):
        raise ValueError(
            f"Samples can only be indexed in training sets whose examples are dicts, not {type(example).__name__}."
        )
    return {**example, SAMPLE_INDEX: example.get(SAMPLE_INDEX, key)}


def check_numbered(dataset: Any) -> None:
    """Raise `ValueError` unless the samples of `dataset` have indices, that is, unless it is map-style."""
    streamed = isinstance(dataset, IterableDataset | datasets.IterableDataset)
    if streamed or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise ValueError(
            f"Hard examples are reported by their index in the training set, but {type(dataset).__name__} has no "
            "indices: give a map-style data set (with __getitem__ and __len__), or turn hard examples off "
            "(record_examples=False)."
        )
