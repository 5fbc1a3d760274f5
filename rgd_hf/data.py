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
from transformers.trainer_utils import has_length

SAMPLE_WEIGHT = "sample_weight"
"""The column that holds a non-negative weight for every sample."""

SAMPLE_INDEX = "sample_index"
"""The column that holds the number of every sample in the training set, from 0."""


class WithColumns(dict):
    """A batch or an example with columns that are found by their names, but are not among its items.

    So `batch["group"]`, `batch.get("group")`, `"group" in batch` and `batch.pop("group")` know the column, and
    `model(**batch)`, loops and copies of another type do not.

    Args:
        items: all that is among the items.
        columns: the further columns.
        asked: gets the names of the further columns that are asked for.
    """

    def __init__(
        self, items: Mapping[str, Any] = {}, columns: Mapping[str, Any] = {}, asked: set[str] | None = None
    ):
        super().__init__(items)
        self.columns = dict(columns)
        self.asked = set() if asked is None else asked

    def __getattr__(self, name: str) -> Any:
        """Columns are attributes too, as of the batches that tokenizers and feature extractors make."""
        # Moving and pinning are found out by these names.
        if name in ("columns", "asked", "to", "pin_memory") or name not in self:
            raise AttributeError(f"the batch has no {name!r}, only {', '.join(map(repr, self))}")
        return self[name]

    def _ask(self, name: Any) -> bool:
        if super().__contains__(name) or name not in self.columns:
            return False
        self.asked.add(name)
        return True

    def __missing__(self, name: str) -> Any:
        self._ask(name)
        return self.columns[name]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or self._ask(name)

    def __delitem__(self, name: str) -> None:
        self.pop(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dict, further columns included."""
        return self.columns[name] if self._ask(name) else super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        """As of a dict, further columns included."""
        if self._ask(name):
            return self.columns.pop(name)
        self.columns.pop(name, None)
        return super().pop(name, *default)

    def copy(self) -> "WithColumns":
        """With the further columns."""
        return WithColumns(self, self.columns, self.asked)


class ColumnCollator:
    """Carry one numeric column past a collator that may not know it.

    The collator finds the column in the examples by its name alone, so that one that takes all columns they have does not
    take it. Where it makes a column of that name, that is the one.

    Args:
        collator: turns a list of examples into a batch.
        column: name of the column.
        dtype: dtype of the column in the batch; None keeps the dtype of the values.
        check: given the values, a tensor `[batch, ...]` on the CPU, raises `ValueError` where they are not allowed; can be
            pickled.
        is_needed: whether values that are no numbers are an error; else they are left out.
    """

    def __init__(
        self,
        collator: Callable[[list[Any]], Any],
        column: str,
        dtype: torch.dtype | None = None,
        check: Callable[[Tensor], None] | None = None,
        is_needed: bool = True,
    ):
        self.collator, self.column, self.dtype, self.check = collator, column, dtype, check
        self.is_needed = is_needed
        self._shows = False

    def __call__(self, examples: list[Any]) -> Any:
        """The batch of `collator`, with the column as a tensor `[batch, ...]` where it or the examples have one.

        Raises:
            ValueError: the column does not hold numbers, or not those that are allowed.
        """
        column = self.column
        known = bool(examples) and isinstance(examples[0], Mapping) and column in examples[0]
        values = [example[column] for example in examples] if known else []
        batch: Any = self._batch_of(examples) if known else self.collator(examples)
        if isinstance(batch, WithColumns):
            batch = dict(batch)  # torch's default_collate copies the first example
        if not isinstance(batch, Mapping):
            return batch
        of_collator = column in batch
        unread = self.dtype is None and self.check is None
        if unread if of_collator else not known:
            return batch
        try:
            found = _as_numbers(batch[column] if of_collator else values, column, self.dtype)
        except ValueError:
            if self.is_needed:
                raise
            return batch
        if self.check is not None and found.device.type == "cpu":
            self.check(found)
        if not of_collator or self.dtype is not None:
            batch[column] = found  # type: ignore[index]
        return batch

    def _batch_of(self, examples: list[Any]) -> Any:
        if not self._shows:
            asked = getattr(examples[0], "asked", None)
            shown = [_found_by_name(example, self.column, asked) for example in examples]
            try:
                batch = self.collator(shown)
                if not isinstance(batch, Mapping) or self.column not in dict(batch):
                    return batch
                if any(self.column in example.asked for example in shown):
                    return batch
            except KeyError as error:
                if error.args != (self.column,):
                    raise
            # It looked for the column in copies of the examples.
            self._shows = True
        return self.collator([dict(example) for example in examples])


def _found_by_name(example: Mapping[str, Any], column: str, asked: set[str] | None) -> WithColumns:
    columns = example.columns if isinstance(example, WithColumns) else {}
    items = {name: value for name, value in example.items() if name != column}
    return WithColumns(items, {**columns, column: example[column]}, asked)


def _as_numbers(values: Any, column: str, dtype: torch.dtype | None) -> Tensor:
    try:
        if isinstance(values, list) and dtype is not None:
            return torch.tensor([float(value) for value in values], dtype=torch.float64).to(dtype)
        if isinstance(values, list):
            values = torch.stack([torch.as_tensor(value) for value in values])
        return torch.as_tensor(values, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        some = next((v for v in values if not isinstance(v, int | float | Tensor | np.generic)), values)
        raise ValueError(
            f"The column {column!r} must hold a number for each sample, or arrays of numbers of one shape, but a batch has "
            f"{some!r} ({error}). Give every sample a number; a column of names becomes numbers by "
            f"dataset.class_encode_column({column!r}) of a datasets.Dataset."
        ) from None


class SampleWeightCollator(ColumnCollator):
    """Carry the `sample_weight` column, float32, past a collator.

    Args:
        collator: turns a list of examples into a batch.
        check: whether the weights are used, and therefore checked: here they are not on the device yet.
    """

    def __init__(self, collator: Callable[[list[Any]], Any], check: bool = False):
        checked = check_sample_weights if check else None
        super().__init__(collator, SAMPLE_WEIGHT, torch.float32, checked, is_needed=check)


def check_sample_weights(weights: Tensor) -> None:
    """Raise `ValueError` unless all are finite and non-negative; waits for the device."""
    bad = weights[~((weights >= 0) & torch.isfinite(weights))]
    if bad.numel():
        raise ValueError(
            f"The column {SAMPLE_WEIGHT!r} must hold finite, non-negative numbers, but a training batch has "
            f"{bad[0].item():g}. A weight of 0 leaves a sample out: correct the column, or remove it."
        )


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
            "indices: give a map-style data set (with __getitem__ and __len__), or turn hard examples off "
            "(record_examples=False)."
        )
