"""From un-reduced losses to weighted items: level, reference distribution, weights of the divergence."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rgd_hf.divergences import DIVERGENCES, check_divergence, rgd_weights
from rgd_hf.rivals import check_positive, cvar_weights, focal_weights, tilted_weights
from rgd_hf.target_ess import check_target_ess, ess_weights

if TYPE_CHECKING:
    from rgd_hf.training_args import ReweightingArguments

REWEIGHTINGS = (*(name for name in DIVERGENCES if name != "none"), "focal", "tilted", "cvar", "none")
"""What `reweighting` may be: the divergences, rivals to compare them with, and plain training."""


class Items(NamedTuple):
    """The items (samples or tokens) of a micro-batch.

    Attributes:
        losses: float32, `[batch]` or `[batch, tokens]`; exactly 0 where `reference` is 0.
        reference: float32 of the same shape: weight of each item in the reference distribution that re-weighting
            departs from; 0 for items that do not count, 1 for plain data.
    """

    losses: Tensor
    reference: Tensor


def token_reference(valid: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """Weight of each item of a head, before levels and sample weights.

    Args:
        valid: bool `[batch]` or `[batch, tokens]`, the items that have a loss.
        class_weight: the weight of each item's class, of the same shape; 1 where None.

    Returns:
        float32 of the same shape, 0 where not valid.
    """
    return valid.float() if class_weight is None else torch.where(valid, class_weight, 0.0)


def reference_at_level(reference: Tensor, level: str, sample_weight: Tensor | None = None) -> Tensor:
    """Weight of each item of `level` in the reference distribution.

    Args:
        reference: of `token_reference`, `[batch]` or `[batch, tokens]`.
        level: at `"sample"` a sample of several tokens counts once if any of them does; `"token"` counts each.
        sample_weight: non-negative `[batch]`; 1 where None.

    Returns:
        float32 `[batch]` at level `"sample"`, else of the shape of `reference`.

    Raises:
        ValueError: `sample_weight` does not have one element a sample.
    """
    if level == "sample" and reference.dim() > 1:
        reference = (reference.flatten(1) > 0).any(dim=1).float()
    if sample_weight is None:
        return reference
    if sample_weight.numel() != reference.shape[0]:
        raise ValueError(
            f"sample_weight has {sample_weight.numel()} elements for losses of shape {list(reference.shape)}: "
            "it needs one for each sample, and losses whose first dimension is the batch."
        )
    weight = sample_weight.to(device=reference.device, dtype=torch.float32)
    return reference * weight.reshape(-1, *[1] * (reference.dim() - 1))


def losses_at_level(losses: Tensor, reference: Tensor, level: str) -> Tensor:
    """Un-reduced losses at `level`: at `"sample"`, the weighted mean over each sample's tokens.

    Args:
        losses: `[batch]` or `[batch, tokens]`.
        reference: of `token_reference`, of the same shape.
        level: `"sample"` or `"token"`.

    Returns:
        float32 `[batch]` at level `"sample"`, else `[batch, tokens]`; exactly 0 where the reference is.
    """
    # where, not a product: an ignored item may be infinite and 0 * inf is NaN.
    losses = torch.where(reference > 0, losses.float(), 0.0)
    if level == "sample" and losses.dim() > 1:
        losses, reference = losses.flatten(1), reference.flatten(1)
        mass = reference.sum(dim=1)
        losses = (losses * reference).sum(dim=1) / torch.where(mass > 0, mass, 1.0)
    return losses


def item_weights(items: Items, settings: "ReweightingArguments", active: bool = True) -> Tensor:
    """Weight of each item in the objective `sum(weight * reference * loss)`, detached, float32, of the same shape.

    Args:
        items: of one micro-batch on one process; `target_ess`, `tilted` and `cvar` compare these with one another.
        settings: anything with the fields of `ReweightingArguments`.
        active: False gives every item weight 1.
    """
    losses, reference = items.losses.detach(), items.reference
    if not active or settings.reweighting == "none":
        return torch.ones_like(losses, dtype=torch.float32)
    if settings.target_ess is not None:
        return ess_weights(losses, settings.target_ess, reference)
    if settings.reweighting == "focal":
        return focal_weights(losses, settings.focal_gamma)
    if settings.reweighting == "tilted":
        return tilted_weights(losses, reference, settings.tilt)
    if settings.reweighting == "cvar":
        return cvar_weights(losses, reference, settings.cvar_fraction)
    return rgd_weights(losses, settings.reweighting, settings.tau)


def clips_at_tau(settings: "ReweightingArguments") -> bool:
    """Whether losses above `tau` share the largest weight; other settings leave `tau` out."""
    return (
        settings.target_ess is None and settings.reweighting in DIVERGENCES and settings.reweighting != "none"
    )


def compares_items(settings: "ReweightingArguments") -> bool:
    """Whether an item's weight depends on the losses of the others of its micro-batch."""
    of_batch = settings.target_ess is not None or settings.reweighting in ("tilted", "cvar")
    return of_batch and settings.reweighting != "none"


def check_weights(settings: "ReweightingArguments") -> None:
    """Raise `ValueError` where a setting of the weights is not allowed, saying what is."""
    if settings.reweighting not in REWEIGHTINGS:
        raise ValueError(
            f"Unknown reweighting {settings.reweighting!r}: choose one of {', '.join(map(repr, REWEIGHTINGS))}."
        )
    check_divergence("none", settings.tau)
    check_positive("focal_gamma", settings.focal_gamma)
    check_positive("tilt", settings.tilt)
    check_positive("cvar_fraction", settings.cvar_fraction, at_most=1.0)
    if settings.target_ess is None:
        return
    check_target_ess(settings.target_ess)
    if settings.reweighting not in ("kl", "none"):
        raise ValueError(
            "target_ess solves the temperature of the weights of the KL divergence: leave reweighting at 'kl', or leave "
            f"target_ess out for {settings.reweighting!r}."
        )
