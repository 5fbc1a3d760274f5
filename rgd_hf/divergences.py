"""Sample weights of stochastic re-weighted gradient descent, as pure functions of a loss tensor.

Distributionally robust optimization with an f-divergence minimizes the worst expected loss over the
distributions near the training distribution. Its stochastic gradient is the gradient of the plain loss with
every sample weighted by a function `g` of its own, detached loss (Kumar et al., TMLR 2024, arXiv 2306.09222).
With `z = min(loss, tau) / (tau + 1)`:

| divergence   | weight g(loss)  | largest weight     | surrogate G(loss) with dG/dloss = g, for loss <= tau |
|--------------|-----------------|--------------------|------------------------------------------------------|
| `kl`         | `exp(z)`        | `exp(tau/(tau+1))` | `(tau+1) * (exp(z) - 1)`                             |
| `chi2`       | `max(1 + z, 0)` | `1 + tau/(tau+1)`  | `loss + loss**2 / (2*(tau+1))`                       |
| `reverse_kl` | `1 / (1 - z)`   | `tau + 1`          | `-(tau+1) * log(1 - z)`                              |
| `none`       | `1`             | `1`                | `loss` (empirical risk minimization, ERM)            |

Beyond `tau` the weight stays at its largest value and the surrogate goes on in a straight line.
`kl` is the form the paper states; the exact `chi2` and `reverse_kl` forms are derived here from the f-divergences
and the same clipping rule, not read in the paper.

This module needs torch alone.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Divergence(NamedTuple):
    """A divergence as two functions of `z = min(loss, tau) / (tau + 1)`, element by element.

    `weight(z)` is g; `surrogate(z)` is G / (tau + 1), whose derivative by z is g.
    """

    weight: Callable[[Tensor], Tensor]
    surrogate: Callable[[Tensor], Tensor]


DIVERGENCES: dict[str, Divergence] = {
    "kl": Divergence(torch.exp, torch.expm1),
    "chi2": Divergence(
        # The f-divergence solution is the positive part; only losses below -(tau + 1) ever reach it.
        lambda z: (1 + z).clamp(min=0),
        lambda z: z.clamp(min=-1) + z.clamp(min=-1).square() / 2,
    ),
    "reverse_kl": Divergence(lambda z: 1 / (1 - z), lambda z: -torch.log1p(-z)),
    "none": Divergence(torch.ones_like, lambda z: z),
}
"""The divergences by name; `none` is empirical risk minimization."""


def check_divergence(divergence: str, tau: float) -> None:
    """Raise `ValueError` unless `divergence` is a known name and `tau` a positive, finite number."""
    if divergence not in DIVERGENCES:
        raise ValueError(
            f"Unknown divergence {divergence!r}: choose one of {', '.join(map(repr, DIVERGENCES))}."
        )
    if not isinstance(tau, (int, float)) or isinstance(tau, bool) or not math.isfinite(tau) or tau <= 0:
        raise ValueError(
            f"tau is the loss from which on weights stop growing: it must be a positive, finite number, not {tau!r}."
        )


def check_losses(losses: Tensor) -> None:
    """Raise unless `losses` is a floating-point tensor with at least one dimension.

    Raises:
        TypeError: `losses` is no tensor.
        ValueError: it is 0-dimensional, so already reduced, or not of a floating-point type.
    """
    if not isinstance(losses, Tensor):
        raise TypeError(f"Losses must be a torch.Tensor, not {type(losses).__name__}.")
    if losses.dim() == 0:
        raise ValueError(
            "Got a 0-dimensional loss, that is one already reduced over the batch. Weighting it would only rescale "
            "the step: pass the un-reduced losses, one element a sample or token (`reduction='none'` in torch)."
        )
    if not losses.is_floating_point():
        raise ValueError(f"Losses must be of a floating-point type, not {losses.dtype}.")


def rgd_weights(losses: Tensor, divergence: str = "kl", tau: float = 1.0) -> Tensor:
    """Weight of each loss in re-weighted gradient descent (arXiv 2306.09222, Algorithm 1).

    Args:
        losses: un-reduced losses, any shape with at least one dimension, any floating-point dtype. They are meant
            to be non-negative; a negative loss gets a weight below 1. A NaN or infinite loss gets the largest
            weight, so that a weight is always finite and the bad value stays visible in the weighted loss.
        divergence: `"kl"`, `"chi2"`, `"reverse_kl"` or `"none"` (all ones).
        tau: clipping threshold, in units of the loss; losses above it share the largest weight.

    Returns:
        float32 weights of the same shape, detached from the graph.

    Raises:
        TypeError: `losses` is no tensor.
        ValueError: `losses` is 0-dimensional or not floating-point, `divergence` is unknown, or `tau` is not
            positive and finite. Each message says what is allowed.

    Example:
        >>> rgd_weights(torch.tensor([0.0, 0.5, 9.0]), "kl", tau=1.0)
        tensor([1.0000, 1.2840, 1.6487])
    """
    check_losses(losses)
    check_divergence(divergence, tau)
    clipped = losses.detach().float().nan_to_num(nan=tau, posinf=tau).clamp(max=tau)
    return DIVERGENCES[divergence].weight(clipped / (tau + 1))


def rgd_surrogate(losses: Tensor, divergence: str = "kl", tau: float = 1.0) -> Tensor:
    """The function G of each loss whose gradient is the re-weighted gradient: dG/dloss = `rgd_weights(loss)`.

    Minimizing the mean of G by plain gradient descent takes the very steps of re-weighted gradient descent, which
    makes it the oracle for tests and an objective for second-order methods. G(0) = 0.

    Args:
        losses: as for `rgd_weights`.
        divergence: as for `rgd_weights`.
        tau: as for `rgd_weights`.

    Returns:
        float32 tensor of the same shape, differentiable with respect to `losses`.

    Raises:
        TypeError, ValueError: as for `rgd_weights`.
    """
    check_losses(losses)
    check_divergence(divergence, tau)
    losses = losses.float()
    # Not clamp: its gradient at loss == tau differs between versions of torch; here the curve owns that point.
    clipped = torch.where(losses <= tau, losses, tau)
    beyond = torch.relu(losses - tau) * largest_weight(divergence, tau)
    return (tau + 1) * DIVERGENCES[divergence].surrogate(clipped / (tau + 1)) + beyond


def largest_weight(divergence: str = "kl", tau: float = 1.0) -> float:
    """The weight of every loss at or above `tau`: the upper bound of `rgd_weights`.

    Raises:
        ValueError: as for `rgd_weights`.
    """
    check_divergence(divergence, tau)
    return DIVERGENCES[divergence].weight(torch.tensor([tau / (tau + 1)], dtype=torch.float64)).item()
