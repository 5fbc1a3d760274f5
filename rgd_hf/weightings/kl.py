"""Weights of the Kullback-Leibler divergence, the paper's main ones."""

import torch
from torch import Tensor

from rgd_hf.weightings.divergence import Divergence


class KL(Divergence):
    """`exp(z)` with `z = min(loss, tau) / (tau + 1)`: from 1 to `exp(tau / (tau + 1))`, below e, for losses >= 0.

    The surrogate, whose gradient the weighted gradient is, is `(tau + 1) * (exp(z) - 1)`.

    Source: Kumar et al., TMLR 2024 (arXiv 2306.09222), Algorithm 1.
    """

    name = "kl"
    short = "KL"
    divergence = "KL divergence"
    expression = "exp({z})"

    @staticmethod
    def weight_of(z: Tensor) -> Tensor:
        """`exp(z)`."""
        return torch.exp(z)

    @staticmethod
    def surrogate_of(z: Tensor) -> Tensor:
        """`exp(z) - 1`."""
        return torch.expm1(z)
