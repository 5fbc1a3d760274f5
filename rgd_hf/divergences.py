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

Above `tau` the weight stays at its largest value and the surrogate continues linearly.
`kl` is the form the paper states; the exact `chi2` and `reverse_kl` forms are derived here from the f-divergences
and the same clipping rule, not read in the paper.

This module needs torch alone.
"""

from torch import Tensor

from rgd_hf.weightings import WEIGHTINGS, Divergence


class _Plain(Divergence):
    @staticmethod
    def weight_of(z: Tensor) -> Tensor:
        return z.new_ones(z.shape)

    @staticmethod
    def surrogate_of(z: Tensor) -> Tensor:
        return z


def _divergence(name: str, tau: float) -> Divergence:
    known = divergences()
    if name not in known:
        raise ValueError(f"Unknown divergence {name!r}: choose one of {', '.join(map(repr, known))}.")
    return known[name](tau)


def divergences() -> dict[str, type[Divergence]]:
    """The divergences by name; `none` is empirical risk minimization."""
    return {name: rule for name, rule in WEIGHTINGS.items() if issubclass(rule, Divergence)} | {
        "none": _Plain
    }


def rgd_weights(losses: Tensor, divergence: str = "kl", tau: float = 1.0) -> Tensor:
    """Weight of each loss in re-weighted gradient descent (arXiv 2306.09222, Algorithm 1).

    Args:
        losses: unreduced losses, any shape with at least one dimension, any floating-point dtype. They are meant
            to be non-negative; a negative loss gets a weight below 1. A NaN or infinite loss gets the largest
            weight, so that a weight is always finite and the bad value stays visible in the weighted loss.
        divergence: `"kl"`, `"chi2"`, `"reverse_kl"` or `"none"` (all ones).
        tau: clipping threshold, in units of the loss: losses above it get the same, largest weight.

    Returns:
        float32 weights of the same shape, detached from the graph.

    Raises:
        TypeError: `losses` is not a tensor.
        ValueError: `losses` is 0-dimensional or not floating-point, `divergence` is unknown, or `tau` is not
            positive and finite. Each message says what is allowed.

    Example:
        >>> rgd_weights(torch.tensor([0.0, 0.5, 9.0]), "kl", tau=1.0)
        tensor([1.0000, 1.2840, 1.6487])
    """
    return _divergence(divergence, tau).of_losses(losses)


def rgd_surrogate(losses: Tensor, divergence: str = "kl", tau: float = 1.0) -> Tensor:
    """The function G of each loss whose gradient is the re-weighted gradient: dG/dloss = `rgd_weights(loss)`.

    Minimizing the mean of G by plain gradient descent takes exactly the steps of re-weighted gradient descent, which
    makes it an oracle for tests and an objective for second-order methods. G(0) = 0.

    Args:
        losses: unreduced losses, as for `rgd_weights`.
        divergence: name of the divergence, as for `rgd_weights`.
        tau: clipping threshold, as for `rgd_weights`.

    Returns:
        float32 tensor of the same shape, differentiable with respect to `losses`.

    Raises:
        TypeError, ValueError: as for `rgd_weights`.
    """
    return _divergence(divergence, tau).surrogate(losses)


def largest_weight(divergence: str = "kl", tau: float = 1.0) -> float:
    """The weight of every loss at or above `tau`: the upper bound of `rgd_weights`.

    Raises:
        ValueError: as for `rgd_weights`.
    """
    return _divergence(divergence, tau).largest_weight()
