"""Weights whose temperature is solved in every micro-batch for a given effective sample size.

The weights of the KL divergence with a free temperature, `w = exp(loss / temperature)`, scaled to mean one. The paper
ties the temperature to tau; here it follows from the effective sample size `ESS = (sum w)**2 / (n * sum w**2)`, which
falls from 1 (equal weights) as the temperature does. The weights do not depend on the scale of the losses: multiplying
them by a constant, or adding one, changes nothing. No loss is clipped, because the ESS itself bounds the weights: among
n items none can exceed `1 + sqrt((n - 1) * (1 / ESS - 1))`, 2.9 for 32 items at an ESS of 0.9.

This module needs torch alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rgd_hf.items import Items
from rgd_hf.weightings.base import Weighting, check_losses
from rgd_hf.weightings.divergence import CITATION, PAPER

# The inverse temperature is searched between these, in units of 1 / (largest loss - smallest loss). Below the first, all
# weights are 1 to float32's precision; beyond the second, even neighbouring float32 losses have weights far apart.
_LOWEST, _HIGHEST = math.log(1e-3), math.log(1e8)
# Five rounds of 32 candidates find it to one part in a million, in few, wide operations on the device.
_ROUNDS, _CANDIDATES = 5, 32


def check_target_ess(target_ess: float) -> None:
    """Raise `ValueError` unless `target_ess` is a number above 0 and below 1."""
    number = isinstance(target_ess, (int, float)) and not isinstance(target_ess, bool)
    if not number or not 0 < target_ess < 1:
        raise ValueError(
            "target_ess is the effective sample size as a fraction of the items of a micro-batch: it must be above 0 "
            f"and below 1, not {target_ess!r}. 0.9 is a gentle re-weighting."
        )


@torch.no_grad()
def ess_weights(losses: Tensor, target_ess: float, reference: Tensor | None = None) -> Tensor:
    """Weights `exp(loss / temperature)` of mean one whose effective sample size is `target_ess`.

    The temperature is found on the device by a fixed number of operations; nothing waits for it.

    Args:
        losses: unreduced losses of one micro-batch, any shape with at least one dimension, any floating-point dtype.
            A NaN or infinite loss gets the weight of the largest finite one, so that weights stay finite.
        target_ess: effective sample size as a fraction of the items, above 0 and below 1. If more than that fraction
            share the largest loss, it cannot be reached, and they share all the weight.
        reference: non-negative weight of each item before re-weighting, of the same shape; 0 for items that do not
            count, which get weight 1. None for 1 everywhere.

    Returns:
        float32 weights of the same shape, detached; their mean (under `reference`) is 1. All 1 where all losses are
        equal.

    Raises:
        TypeError: `losses` is not a tensor.
        ValueError: `losses` is 0-dimensional or not floating-point, or `target_ess` is not between 0 and 1.

    Example:
        >>> ess_weights(torch.tensor([0.0, 0.5, 9.0]), 0.9)
        tensor([0.7501, 0.7787, 1.4711])
    """
    check_losses(losses)
    check_target_ess(target_ess)
    losses = losses.float()
    reference = torch.ones_like(losses) if reference is None else reference.float()
    counts = reference > 0
    usable = counts & torch.isfinite(losses)
    largest = torch.where(usable, losses, -math.inf).amax()
    smallest = torch.where(usable, losses, math.inf).amin()
    spread = largest - smallest
    differ = torch.isfinite(spread) & (spread > 0)
    # In [-1, 0], so that no exponential overflows.
    scaled = torch.where(usable, (losses - largest) / torch.where(differ, spread, 1.0), 0.0)
    flat, mass = scaled.flatten(), reference.flatten()
    total = mass.sum()

    fractions = torch.linspace(0, 1, _CANDIDATES + 1, device=losses.device)[1:]
    low = torch.full((), _LOWEST, device=losses.device)
    width = _HIGHEST - _LOWEST
    for _ in range(_ROUNDS):
        weights = torch.exp(torch.exp(low + width * fractions)[:, None] * flat)
        ess = (weights @ mass).square() / (total * (weights.square() @ mass))
        # The ESS falls along the candidates: keep the interval in which it falls below the target.
        passed = (ess >= target_ess).sum().clamp(max=_CANDIDATES - 1)
        width = width / _CANDIDATES
        low = low + width * passed
    weights = torch.exp(torch.exp(low) * scaled)
    weights = weights * (total / (weights * reference).sum())
    return torch.where(counts & differ, weights, 1.0)


@dataclass
class TargetESS(Weighting):
    """`exp(loss / temperature)` of mean one, the temperature found in every micro-batch; see `ess_weights`.

    Source: the weights of the KL divergence of Kumar et al., TMLR 2024 (arXiv 2306.09222), who tie the temperature to tau;
    solving it for the effective sample size is an addition of this library.

    Args:
        target: effective sample size as a fraction of the items of a micro-batch, above 0 and below 1; 0.9 is gentle.

    Raises:
        ValueError: `target` is not between 0 and 1.
    """

    target: float = 0.9

    name: ClassVar[str] = "target_ess"
    title: ClassVar[str] = "RGD"
    short: ClassVar[str] = "ESS"
    citation: ClassVar[str | None] = CITATION
    options: ClassVar[Mapping[str, str]] = {"target": "target_ess"}
    compares_items = True

    def __post_init__(self) -> None:
        check_target_ess(self.target)

    def weights(self, items: Items) -> Tensor:
        """`ess_weights` of the items."""
        return ess_weights(items.losses, self.target, items.reference)

    def details(self) -> list[str]:
        """The effective sample size."""
        return [f"target_ess={self.target:g}"]

    def describe(self, item: str) -> str:
        """Weights, and how their temperature was found."""
        return (
            f"Trained with a variant of {PAPER}: the gradient of every {item} was weighted by `exp(loss / temperature)` "
            "of its own, detached loss, with mean one and the temperature found in every micro-batch, so that the "
            f"effective sample size of the weights was {self.target:g} of its {item}s."
        )
