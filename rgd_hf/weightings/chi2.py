"""Weights of the chi-squared divergence."""

from torch import Tensor

from rgd_hf.weightings.divergence import Divergence


class Chi2(Divergence):
    """`max(1 + z, 0)` with `z = min(loss, tau) / (tau + 1)`: from 1 to `1 + tau / (tau + 1)`, below 2, for losses >= 0.

    The surrogate, whose gradient the weighted gradient is, is `loss + loss**2 / (2 * (tau + 1))`.

    Source: derived here from the f-divergence and the clipping rule of Kumar et al., TMLR 2024 (arXiv 2306.09222); this
    exact form was not read in the paper.
    """

    name = "chi2"
    short = "χ²"
    divergence = "chi-squared divergence"
    expression = "1 + {z}"

    @staticmethod
    def weight_of(z: Tensor) -> Tensor:
        """`max(1 + z, 0)`."""
        # The f-divergence solution is the positive part; only losses below -(tau + 1) ever reach it.
        return (1 + z).clamp(min=0)

    @staticmethod
    def surrogate_of(z: Tensor) -> Tensor:
        """`z + z**2 / 2`."""
        z = z.clamp(min=-1)
        return z + z.square() / 2
