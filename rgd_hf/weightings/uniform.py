"""Plain training: all weights are 1."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rgd_hf.items import Items
from rgd_hf.weightings.base import Weighting


@dataclass
class Uniform(Weighting):
    """Weight 1: plain training (empirical risk minimization, ERM), the baseline to compare with."""

    name = "none"
    title = "ERM"
    short = "ERM"
    is_plain = True

    def weights(self, items: Items) -> Tensor:
        """All 1."""
        return torch.ones_like(items.losses, dtype=torch.float32)

    def bounds(self) -> tuple[float, float]:
        """1 and 1."""
        return 1.0, 1.0

    def formula(self) -> str:
        """`1`."""
        return "1"

    def describe(self, item: str) -> str:
        """A sentence that says that nothing was re-weighted."""
        return f"Plain training (empirical risk minimization, ERM): no {item} was re-weighted by its loss."
