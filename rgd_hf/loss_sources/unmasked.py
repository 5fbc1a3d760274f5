"""Which losses of a user's function count where it returned no mask: those that `cross_entropy` did not ignore."""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rgd_hf.losses import IGNORE_INDEX, shift_left

FREQUENT = 0.05
"""Fraction of a batch's items from which a label without any loss is reported."""


def not_ignored(losses: Tensor, columns: Mapping[str, Any], by: str, first: bool) -> Tensor | None:
    """The losses that count, bool of their shape, by their labels; None if all do.

    Integer labels of the shape of the losses, or one longer (the next tokens), tell: a loss of 0 whose label is -100 does
    not count. Except for the first batch, nothing waits for the device.

    Args:
        losses: unreduced losses, one element per item.
        columns: the labels that the function was given, by the names of their columns. Of one tensor they tell which losses
            count; several are looked at for what they may hide.
        by: name of the function in messages.
        first: whether this is its first batch.

    Raises:
        ValueError: the labels of the first batch do not tell.
    """
    every = _tensors(columns)
    if len(every) != 1 or len(columns) != 1 or every[0].is_floating_point():
        hidden = next(filter(None, (_hidden(losses, labels) for labels in every)), None) if first else None
        if hidden:
            raise _not_clear(losses, by, hidden)
        return None
    labels = every[0]
    targets = next((found for found in (labels, labels[..., 1:]) if _correspond(losses, found)), None)
    if losses.numel() != labels.numel() and losses.shape == labels.shape[:1]:
        return None  # a loss per sample, made of those of its tokens
    ignored = None if targets is None else targets.to(losses.device).reshape(losses.shape) == IGNORE_INDEX
    if first and (reason := _unclear(losses.detach(), labels.to(losses.device), ignored)):
        raise _not_clear(losses, by, reason)
    if first and targets is not None:
        _tell_of_another_index(losses.detach(), targets.to(losses.device).reshape(losses.shape), by)
    return None if ignored is None else ~(ignored & (losses.detach() == 0))


def _correspond(losses: Tensor, targets: Tensor) -> bool:
    same_rows = losses.dim() == 1 or losses.shape[0] == targets.shape[0]
    return losses.numel() == targets.numel() and same_rows


def _unclear(losses: Tensor, labels: Tensor, ignored: Tensor | None) -> str | None:
    """Why the labels of a batch do not tell which losses count; None if they do."""
    if ignored is None:
        valid = labels != IGNORE_INDEX
        if losses.numel() in (int(valid.sum()), int(valid[..., 1:].sum())):
            return None  # of those that count alone
        found = not bool(valid.all())
        return f"the labels, of shape {list(labels.shape)}, have -100 in other places" if found else None
    if (losses[ignored] != 0).any():
        return "some labels are -100, but the losses there are not 0"
    if labels.dim() == 2 and losses.numel() == labels.numel():
        last = shift_left(labels) == IGNORE_INDEX
        shifted = (losses.reshape(labels.shape)[last] == 0).all() & (last & (labels != IGNORE_INDEX)).any()
        if shifted:
            return "those at the last label of every row are 0, as if of labels that were shifted"
    return None


def _not_clear(losses: Tensor, by: str, reason: str) -> ValueError:
    return ValueError(
        f"{by} returned losses of shape {list(losses.shape)} without a mask, and which of them count is not clear: "
        f"{reason}. Return a bool mask of that shape as well (after the outputs, from a method), true for the losses that "
        "count, such as targets != -100 with the targets that cross_entropy was given."
    )


def _tensors(columns: Mapping[str, Any]) -> list[Tensor]:
    """Labels of at least one dimension, also of columns that are dicts of them."""
    values = [
        each
        for value in columns.values()
        for each in (value.values() if isinstance(value, Mapping) else [value])
    ]
    return [value for value in values if isinstance(value, Tensor) and value.dim()]


def _hidden(losses: Tensor, labels: Tensor) -> str | None:
    """What labels of several columns, or of numbers, say of losses that may not count; None for nothing."""
    if labels.dim() > 1 and losses.shape == labels.shape[:1]:
        return None  # a loss per sample
    if labels.is_floating_point():
        missing = bool(labels.isnan().any()) and bool(losses.detach().isfinite().all())
        return "some labels are NaN, and their losses are numbers" if missing else None
    return "some labels are -100" if (labels == IGNORE_INDEX).any() else None


def _tell_of_another_index(losses: Tensor, targets: Tensor, by: str) -> None:
    """Warn where all losses of a frequent label are exactly 0 and others are not, as of another `ignore_index` than -100."""
    zero = (losses == 0) & (targets != IGNORE_INDEX)
    if not zero.any() or (losses == 0).all():
        return
    label = targets[zero].mode().values
    share = (targets == label).float().mean().item()
    if share >= FREQUENT and bool(zero[targets == label].all()):
        warnings.warn(
            f"In the first batch all losses of {by} with the label {label.item()}, {share:.0%} of them, are exactly 0. If that "
            "label is to be ignored, as with cross_entropy(ignore_index=...), they still count as items of loss 0: return a bool "
            "mask as well, true for the losses that count, or give such labels the number -100.",
            stacklevel=2,
        )
