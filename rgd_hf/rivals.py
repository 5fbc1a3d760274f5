"""Weights of other robust objectives, to compare re-weighted gradient descent with under the same Trainer.

An objective that sums a function `G(loss)` over the samples has the gradient of the plain loss with every sample
weighted by `G'(loss)`: the focal loss. The tilted loss and the conditional value at risk (CVaR) do not sum over samples;
their gradients weight each by its loss relative to the others of the micro-batch, with mean one.

This module needs torch alone.
"""

import math

import torch
from torch import Tensor

from rgd_hf.divergences import check_losses


def check_positive(name: str, value: float, at_most: float = math.inf) -> None:
    """Raise `ValueError` unless `value` is a finite number above 0 and not above `at_most`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 < value <= at_most:
        limit = "a positive, finite number" if math.isinf(at_most) else f"above 0 and at most {at_most:g}"
        raise ValueError(f"{name} must be {limit}, not {value!r}.")


@torch.no_grad()
def focal_weights(losses: Tensor, gamma: float = 2.0) -> Tensor:
    """Derivative of the focal loss `(1 - p)**gamma * loss` by the cross-entropy `loss = -log p`.

    `(1 - p)**gamma + gamma * loss * p * (1 - p)**(gamma - 1)`, so that the gradient is that of the focal loss itself.

    Source: Lin et al., "Focal Loss for Dense Object Detection", 2017 (arXiv 1708.02002), without its alpha.

    Args:
        losses: un-reduced cross-entropies, any shape with at least one dimension. With label smoothing, soft labels or
            other losses, p is `exp(-loss)` and no probability of a class. Below 0 they count as 0; NaN as infinite.
        gamma: positive; towards 0 the weights become 1.

    Returns:
        float32 weights of the same shape.

    Raises:
        TypeError, ValueError: as for `rgd_weights`; or `gamma` is not positive and finite.
    """
    check_losses(losses)
    check_positive("focal_gamma", gamma)
    # Beyond 80 the probability is 0 in float32, and 0 * inf would be NaN.
    losses = losses.float().nan_to_num(nan=80.0).clamp(min=0.0, max=80.0)
    p, wrong = torch.exp(-losses), -torch.expm1(-losses)
    ratio = torch.where(wrong > 0, losses / torch.where(wrong > 0, wrong, 1.0), 1.0)
    return wrong**gamma * (1 + gamma * p * ratio)


@torch.no_grad()
def tilted_weights(losses: Tensor, reference: Tensor, tilt: float = 1.0) -> Tensor:
    """Gradient weights of the tilted loss `log(mean(exp(tilt * loss))) / tilt` of a micro-batch.

    Source: Li et al., "Tilted Empirical Risk Minimization", 2021 (arXiv 2007.01162), positive tilt.

    Args:
        losses: un-reduced, any shape with at least one dimension; a NaN or infinite one counts as the largest finite.
        reference: non-negative weight of each item, of the same shape; 0 for items that do not count.
        tilt: positive, in units of 1 / loss; towards 0 the weights become 1.

    Returns:
        float32 weights of the same shape with mean one under `reference`, proportional to `exp(tilt * loss)`; 1 for
        items that do not count.

    Raises:
        TypeError, ValueError: as for `rgd_weights`; or `tilt` is not positive and finite.
    """
    check_losses(losses)
    check_positive("tilt", tilt)
    losses, counts = losses.float(), reference > 0
    usable = counts & torch.isfinite(losses)
    largest = torch.where(usable, losses, -math.inf).amax()
    weights = torch.exp(tilt * torch.where(usable, losses - largest, 0.0))
    weights = weights * (reference.sum() / (weights * reference).sum())
    return torch.where(counts, weights, 1.0)


@torch.no_grad()
def cvar_weights(losses: Tensor, reference: Tensor, fraction: float = 0.5) -> Tensor:
    """Gradient weights of the conditional value at risk: the mean over the top `fraction` of a micro-batch's losses.

    Source: Rockafellar and Uryasev, "Optimization of Conditional Value-at-Risk", 2000; the mean of top losses of a
    batch as in Levy et al., "Large-Scale Methods for Distributionally Robust Optimization", 2020 (arXiv 2010.05893).

    Args:
        losses: un-reduced, any shape with at least one dimension; a NaN one counts as infinite.
        reference: non-negative weight of each item, of the same shape; 0 for items that do not count.
        fraction: above 0 and at most 1, the share of the reference weight that counts; 1 is the plain mean.

    Returns:
        float32 weights of the same shape: `1 / fraction` for the largest losses, 0 for the others, between for the one
        item on the border, so that the mean under `reference` is one.

    Raises:
        TypeError, ValueError: as for `rgd_weights`; or `fraction` is not in (0, 1].
    """
    check_losses(losses)
    check_positive("cvar_fraction", fraction, at_most=1.0)
    flat, mass = losses.float().nan_to_num(nan=math.inf, posinf=math.inf).flatten(), reference.flatten()
    order = torch.where(mass > 0, flat, -math.inf).argsort(descending=True, stable=True)
    sorted_mass = mass[order]
    before = sorted_mass.cumsum(0) - sorted_mass
    taken = (fraction * mass.sum() - before).clamp(min=0).minimum(sorted_mass)
    weights = torch.where(
        sorted_mass > 0, taken / (fraction * torch.where(sorted_mass > 0, sorted_mass, 1.0)), 1.0
    )
    return torch.empty_like(weights).index_copy_(0, order, weights).view(losses.shape)
