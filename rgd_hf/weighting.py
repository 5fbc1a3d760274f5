"""From un-reduced losses to weighted items: level, reference distribution, weights of the divergence."""

from typing import NamedTuple

import torch
from torch import Tensor

from rgd_hf.divergences import rgd_weights


class Items(NamedTuple):
    """The items (samples or tokens) of a micro-batch.

    Attributes:
        losses: float32, `[batch]` or `[batch, tokens]`; exactly 0 where `reference` is 0.
        reference: float32 of the same shape: weight of each item in the reference distribution that re-weighting
            departs from; 0 for items that do not count, 1 for plain data.
    """

    losses: Tensor
    reference: Tensor


def reference_weights(valid: Tensor, level: str, sample_weight: Tensor | None = None) -> Tensor:
    """Weight of each item in the reference distribution, from the batch alone.

    Args:
        valid: bool `[batch]` or `[batch, tokens]`, the items that have a loss.
        level: `"sample"` counts a sample once if any of its items is valid, `"token"` counts items.
        sample_weight: non-negative `[batch]`; 1 where None.

    Returns:
        float32 `[batch]` at level `"sample"`, else of the shape of `valid`.
    """
    if level == "sample" and valid.dim() > 1:
        valid = valid.flatten(1).any(dim=1)
    reference = valid.float()
    if sample_weight is not None:
        weight = sample_weight.to(device=reference.device, dtype=torch.float32)
        reference = reference * weight.reshape(-1, *[1] * (reference.dim() - 1))
    return reference


def losses_at_level(losses: Tensor, valid: Tensor, level: str) -> Tensor:
    """Un-reduced losses at `level`: at `"sample"`, the mean over each sample's valid items.

    Args:
        losses: `[batch]` or `[batch, tokens]`.
        valid: bool, of the same shape.
        level: `"sample"` or `"token"`.

    Returns:
        float32 `[batch]` at level `"sample"`, else `[batch, tokens]`; exactly 0 where not valid.
    """
    # where, not a product: an ignored item may be infinite and 0 * inf is NaN.
    losses = torch.where(valid, losses.float(), 0.0)
    if level == "sample" and losses.dim() > 1:
        losses, valid = losses.flatten(1), valid.flatten(1)
        losses = losses.sum(dim=1) / valid.sum(dim=1).clamp(min=1)
    return losses


def item_weights(losses: Tensor, divergence: str, tau: float, warming_up: bool) -> Tensor:
    """Weight of each item in the objective `sum(weight * reference * loss)`, detached, float32, of the same shape."""
    if warming_up or divergence == "none":
        return torch.ones_like(losses, dtype=torch.float32)
    return rgd_weights(losses, divergence, tau)
