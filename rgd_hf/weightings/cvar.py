"""Weights whose gradient is that of the conditional value at risk (CVaR) of a micro-batch.

This module needs torch alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rgd_hf.items import Items
from rgd_hf.weightings.base import Weighting, check_losses, check_positive


@torch.no_grad()
def cvar_weights(losses: Tensor, reference: Tensor, fraction: float = 0.5) -> Tensor:
    """Gradient weights of the conditional value at risk: the mean over the top `fraction` of a micro-batch's losses.

    Source: Rockafellar and Uryasev, "Optimization of Conditional Value-at-Risk", 2000; the mean of top losses of a
    batch as in Levy et al., "Large-Scale Methods for Distributionally Robust Optimization", 2020 (arXiv 2010.05893).

    Args:
        losses: unreduced losses, any shape with at least one dimension; NaN counts as infinite.
        reference: non-negative weight of each item, of the same shape; 0 for items that do not count.
        fraction: fraction of the reference weight that counts, above 0 and at most 1; 1 is the plain mean.

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


@dataclass
class CVaR(Weighting):
    """The mean over the top `fraction` of every micro-batch's losses: weights between 0 and `1 / fraction`, mean one.

    Source: Rockafellar and Uryasev, "Optimization of Conditional Value-at-Risk", 2000; the mean of top losses of a
    batch as in Levy et al., "Large-Scale Methods for Distributionally Robust Optimization", 2020 (arXiv 2010.05893).

    Args:
        fraction: fraction of a micro-batch's items that is trained on, above 0 and at most 1.

    Raises:
        ValueError: `fraction` is not in (0, 1].
    """

    fraction: float = 0.5

    name: ClassVar[str] = "cvar"
    title: ClassVar[str] = "CVaR"
    short: ClassVar[str] = "CVaR"
    options: ClassVar[Mapping[str, str]] = {"fraction": "cvar_fraction"}
    compares_items = True
    citation: ClassVar[str | None] = """\
@inproceedings{levy2020large,
  title     = {Large-Scale Methods for Distributionally Robust Optimization},
  author    = {Levy, Daniel and Carmon, Yair and Duchi, John C. and Sidford, Aaron},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2020},
  url       = {https://arxiv.org/abs/2010.05893}
}"""

    def __post_init__(self) -> None:
        check_positive("cvar_fraction", self.fraction, at_most=1.0)

    def weights(self, items: Items) -> Tensor:
        """`cvar_weights` of the items."""
        return cvar_weights(items.losses, items.reference, self.fraction)

    def bounds(self) -> tuple[float, float]:
        """0 and `1 / fraction`."""
        return 0.0, 1 / self.fraction

    def details(self) -> list[str]:
        """The fraction in percent."""
        return [f"top {self.fraction:.0%}"]

    def describe(self, item: str) -> str:
        """The risk measure and its fraction."""
        risk = "[conditional value at risk](https://arxiv.org/abs/2010.05893)"
        return (
            f"Trained on the {risk}: the mean over the {self.fraction:.0%} of every micro-batch's {item}s whose losses "
            "were largest."
        )
