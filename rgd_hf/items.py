"""From unreduced losses to the items that are weighted: level and reference distribution.

This module needs torch alone.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rgd_hf.batches.columns import WithColumns

SMALLEST = torch.finfo(torch.float32).tiny
"""A lower bound of divisors: without items their sum of weights is 0, and 0 / SMALLEST is 0 where 0 / 0 is NaN."""


class Items(NamedTuple):
    """The items (samples or tokens) of a micro-batch.

    Attributes:
        losses: float32, `[batch]` or `[batch, tokens]`; exactly 0 where `reference` is 0.
        reference: float32 of the same shape: weight of each item before re-weighting (class and sample weights); 0 for
            items that do not count, 1 where nothing else is set.
        batch: the batch they belong to, with its labels and other columns.
    """

    losses: Tensor
    reference: Tensor
    batch: Mapping[str, Any] = MappingProxyType({})


def columns_of(batch: Any) -> Mapping[str, Any]:
    """The columns of a batch by name; none of one that is no mapping, such as a list of tensors."""
    return batch if isinstance(batch, Mapping) else MappingProxyType({})


def without(batch: Any, *names: str) -> Any:
    """`batch` without columns; as it is if it is no mapping."""
    if not isinstance(batch, Mapping):
        return batch
    return WithColumns({name: value for name, value in batch.items() if name not in names})


def check_columns(batch: Any, by: str) -> None:
    """Raise `ValueError` where a batch has no columns.

    Args:
        batch: the batch.
        by: what reads them, for the message.
    """
    if not isinstance(batch, Mapping):
        raise ValueError(
            f"{by} reads the columns of a batch by name, but this batch is a {type(batch).__name__}: return a dict from the "
            "data collator, or give your Trainer a method compute_per_sample_losses(self, model, inputs) that returns "
            "(losses, outputs), to which the batch comes as it is."
        )


def token_reference(valid: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """Weight of each item of a head before sample weights are applied.

    Args:
        valid: bool `[batch]` or `[batch, tokens]`, the items that have a loss.
        class_weight: the weight of each item's class, of the same shape; None for 1 everywhere.

    Returns:
        float32 of the same shape, 0 where not valid.
    """
    return valid.float() if class_weight is None else valid * class_weight


def reference_at_level(reference: Tensor, level: str, sample_weight: Tensor | None = None) -> Tensor:
    """Reference weight of each item at `level`.

    Args:
        reference: what `token_reference` returned, `[batch]` or `[batch, tokens]`.
        level: `"sample"` counts a sample once if any of its tokens counts; `"token"` counts each token.
        sample_weight: non-negative `[batch]`; None for 1 everywhere.

    Returns:
        float32 `[batch]` at level `"sample"`, else of the shape of `reference`.

    Raises:
        ValueError: `sample_weight` does not have one element per sample.
    """
    if level == "sample" and reference.dim() > 1:
        reference = (reference.flatten(1) > 0).any(dim=1).float()
    if sample_weight is None:
        return reference
    if sample_weight.numel() != reference.shape[0]:
        raise ValueError(
            f"sample_weight has {sample_weight.numel()} elements for losses of shape {list(reference.shape)}: "
            "it needs one for each sample, and losses whose first dimension is the batch."
            + in_one_row(reference)
        )
    weight = sample_weight.to(device=reference.device, dtype=torch.float32)
    return reference * weight.reshape(-1, *[1] * (reference.dim() - 1))


def in_one_row(losses: Tensor) -> str:
    """What to do where the losses of a batch are one row, for messages about columns with an element per sample."""
    if losses.shape[:1] != (1,):
        return ""
    return (
        " Padding-free training puts all samples of a batch into one row: set padding_free=False (TRL), or give a data "
        "collator that pads (in place of DataCollatorWithFlattening)."
    )


def losses_at_level(losses: Tensor, reference: Tensor, level: str) -> Tensor:
    """Unreduced losses at `level`: at `"sample"`, the weighted mean over each sample's tokens.

    Args:
        losses: `[batch]` or `[batch, tokens]`, 0 where `reference` is (see `zero_uncounted`).
        reference: what `token_reference` returned, of the same shape.
        level: `"sample"` or `"token"`.

    Returns:
        float32 `[batch]` at level `"sample"`, else `[batch, tokens]`; exactly 0 where the reference is.
    """
    losses = losses.float()
    if level == "sample" and losses.dim() > 1:
        reference = reference.flatten(1)
        share = reference / reference.sum(dim=1, keepdim=True).clamp(min=SMALLEST)
        losses = (losses.flatten(1) * share).sum(dim=1)
    return losses


def zero_uncounted(losses: Tensor, reference: Tensor) -> Tensor:
    """`losses`, but 0 where `reference` is: an item that does not count may be infinite, and 0 * inf is NaN."""
    return losses.masked_fill(reference <= 0, 0.0)
