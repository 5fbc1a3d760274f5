"""Columns that batches carry besides the model's inputs: the weight and the index of each sample."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
        return type(self)(self, self.columns, self.asked)


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
