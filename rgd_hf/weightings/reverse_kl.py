"""Weights of the reverse Kullback-Leibler divergence."""

import torch
from torch import Tensor

from rgd_hf.weightings.divergence import Divergence


class ReverseKL(Divergence):
    """`1 / (1 - z)` with `z = min(loss, tau) / (tau + 1)`: from 1 to `tau + 1`, for losses >= 0.

    The surrogate, whose gradient the weighted gradient is, is `-(tau + 1) * log(1 - z)`.

    Source: derived here from the f-divergence and the clipping rule of Kumar et al., TMLR 2024 (arXiv 2306.09222); this
    exact form was not read in the paper.
    """

    name = "reverse_kl"
    short = "reverse KL"
    divergence = "reverse KL divergence"
    expression = "1 / (1 - {z})"

    @staticmethod
    def weight_of(z: Tensor) -> Tensor:
        """`1 / (1 - z)`."""
        return 1 / (1 - z)

    @staticmethod
    def surrogate_of(z: Tensor) -> Tensor:
        """`-log(1 - z)`."""
        return -torch.log1p(-z)
