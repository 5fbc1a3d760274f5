"""What a data set is asked for: how many samples it has, which columns, and a number for each sample."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from transformers.trainer_utils import has_length

from rgd_hf.batches.columns import SAMPLE_INDEX


def number_of_samples(dataset: Any) -> int | None:
    """The number of samples of a data set; None where it is not known, as of a stream."""
    return len(dataset) if has_length(dataset) else None


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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws of `random`, `numpy.random` and torch (CPU) inside come from `seed`; those outside go on undisturbed.

    Args:
        seed: from 0 to 2**32 - 1.
    """
    with random_states_kept():
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        yield


class NumberedExamples(Dataset):
    """The examples of a map-style data set, each with its index; what else it has, as `set_epoch`, is the data set's."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # not there yet in a process that unpickles it
            raise AttributeError(name)
        return getattr(self.dataset, name)

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


def check_indices(samples: int, indices: Tensor) -> None:
    """Raise `ValueError` unless all are indices of a training set of that many samples; waits for the device."""
    bad = indices[(indices < 0) | (indices >= samples)]
    if bad.numel():
        raise ValueError(
            f"The column {SAMPLE_INDEX!r} must hold the index of each sample in the training set, from 0 to {samples - 1}, but "
            f"a training batch has {bad[0].item()}. Give other numbers, such as those of a database, another name: "
            f"train_dataset.rename_column({SAMPLE_INDEX!r}, 'id'). Without the column, samples are numbered in their order."
        )


def check_numbered(dataset: Any) -> None:
    """Raise `ValueError` unless the samples of `dataset` have indices, that is, unless it is map-style."""
    streamed = isinstance(dataset, IterableDataset | datasets.IterableDataset)
    if streamed or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise ValueError(
            f"Hard examples are reported by their index in the training set, but {type(dataset).__name__} has no "
            "indices: give a map-style data set (with __getitem__ and __len__), or leave hard "
            "examples out."
        )
