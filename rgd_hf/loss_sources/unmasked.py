"""Which losses of a user's function count where it returned no mask: those that `cross_entropy` did not ignore."""

from typing import Any

from torch import Tensor

from rgd_hf.losses import IGNORE_INDEX, shift_left


def not_ignored(losses: Tensor, labels: Any, by: str, first: bool) -> Tensor | None:
    """The losses that count, bool of their shape, by their labels; None if all do.

    Integer labels of the shape of the losses, or one longer (the next tokens), tell: a loss of 0 whose label is -100 does
    not count. Except for the first batch, nothing waits for the device.

    Args:
        losses: unreduced losses, one element per item.
        labels: the labels that the function was given; anything but one tensor tells nothing.
        by: name of the function in messages.
        first: whether this is its first batch.

    Raises:
        ValueError: the labels of the first batch do not tell.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or not labels.dim():
        return None
    targets = next((found for found in (labels, labels[..., 1:]) if _correspond(losses, found)), None)
    if losses.numel() != labels.numel() and losses.shape == labels.shape[:1]:
        return None  # a loss per sample, made of those of its tokens
    ignored = None if targets is None else targets.to(losses.device).reshape(losses.shape) == IGNORE_INDEX
    if first and (reason := _unclear(losses.detach(), labels.to(losses.device), ignored)):
        raise ValueError(
            f"{by} returned losses of shape {list(losses.shape)} without a mask, and which of them count is not clear: "
            f"{reason}. Return a bool mask of that shape as well (after the outputs, from a method), true for the losses that "
            "count, such as targets != -100 with the targets that cross_entropy was given."
        )
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
