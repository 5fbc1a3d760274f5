"""What the divergences have in common: weights that are a function of `z = min(loss, tau) / (tau + 1)`.

Distributionally robust optimization with an f-divergence minimizes the worst expected loss over the distributions near
the training distribution. Its stochastic gradient is the gradient of the plain loss with every sample weighted by a
function `g` of its own, detached loss (Kumar et al., TMLR 2024, arXiv 2306.09222).

This module needs torch alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rgd_hf.items import Items
from rgd_hf.weightings.base import Weighting, check_losses

PAPER = "[stochastic re-weighted gradient descent](https://arxiv.org/abs/2306.09222)"

CITATION = """\
@article{kumar2024stochastic,
  title   = {Stochastic Re-weighted Gradient Descent via Distributionally Robust Optimization},
  author  = {Kumar, Ramnath and Majmundar, Kushal Alpesh and Nagaraj, Dheeraj Mysore and Suggala, Arun Sai},
  journal = {Transactions on Machine Learning Research},
  year    = {2024},
  url     = {https://arxiv.org/abs/2306.09222}
}"""


FOR_NEGATIVE_LOSSES = (
    "reweighting='kl' and target_ess=0.9, whose weights do not change if a constant is added to all losses; or "
    "reweighting='relative_kl', which measures losses in units of their size"
)
"""What to set where losses are negative, for warnings."""


def check_tau(tau: Any) -> None:
    """Raise `ValueError` unless `tau` is a positive, finite number."""
    if not isinstance(tau, (int, float)) or isinstance(tau, bool) or not math.isfinite(tau) or tau <= 0:
        raise ValueError(
            f"tau is the clipping threshold of the losses: it must be a positive, finite number, not {tau!r}."
        )


@dataclass
class Divergence(Weighting):
    """A divergence as two functions of `z = min(loss, tau) / (tau + 1)`, element by element: write both.

    Above `tau` the weight stays at its largest value and the surrogate continues linearly.

    Args:
        tau: clipping threshold, in units of the loss: losses above it get the same weight. Positive and finite.

    Weights are at least 1 for losses >= 0. A negative loss gets a weight below 1, which vanishes as losses fall; a warning
    says so where the mean loss is negative.

    Attributes:
        divergence: name of the divergence in model cards.
        expression: the weight as a Python expression of `{z}`.

    Raises:
        ValueError: `tau` is not positive and finite.
    """

    tau: float = 1.0

    title: ClassVar[str] = "RGD"
    citation: ClassVar[str | None] = CITATION
    options: ClassVar[Mapping[str, str]] = {"tau": "tau"}
    divergence: ClassVar[str]
    expression: ClassVar[str]

    def __post_init__(self) -> None:
        check_tau(self.tau)

    @staticmethod
    def weight_of(z: Tensor) -> Tensor:
        """The weight g(z), of the shape of `z`."""
        raise NotImplementedError

    @staticmethod
    def surrogate_of(z: Tensor) -> Tensor:
        """The function of z whose derivative is g, 0 at 0."""
        raise NotImplementedError

    def weights(self, items: Items) -> Tensor:
        """`weight_of(z)` of each item; the largest weight for a NaN or infinite loss."""
        return self.of_losses(items.losses)

    def of_losses(self, losses: Tensor) -> Tensor:
        """Weight of each loss, float32, detached; see `rgd_hf.rgd_weights`."""
        check_losses(losses)
        clipped = losses.detach().float().nan_to_num(nan=self.tau, posinf=self.tau).clamp(max=self.tau)
        return self.weight_of(clipped / (self.tau + 1))

    def surrogate(self, losses: Tensor) -> Tensor:
        """The function of each loss whose derivative is its weight; see `rgd_hf.rgd_surrogate`."""
        check_losses(losses)
        losses = losses.float()
        # Not clamp: its gradient at loss == tau differs between versions of torch; here the curve owns that point.
        clipped = torch.where(losses <= self.tau, losses, self.tau)
        beyond = torch.relu(losses - self.tau) * self.largest_weight()
        return (self.tau + 1) * self.surrogate_of(clipped / (self.tau + 1)) + beyond

    def largest_weight(self) -> float:
        """The weight of every loss at or above `tau`."""
        return self.weight_of(torch.tensor([self.tau / (self.tau + 1)], dtype=torch.float64)).item()

    def clips_above(self) -> float:
        """`tau`."""
        return self.tau

    def bounds(self) -> tuple[float, float]:
        """1 and the largest weight, of losses >= 0."""
        return 1.0, self.largest_weight()

    def details(self) -> list[str]:
        """The divergence's name and `tau`."""
        return [self.name or type(self).__name__, f"tau={self.tau:g}"]

    def formula(self) -> str:
        """The weight, with the numbers of `tau`."""
        return self.expression.format(z=f"min(loss, {self.tau:g}) / {self.tau + 1:g}")

    def describe(self, item: str) -> str:
        """Divergence, formula and range."""
        return (
            f"Trained with {PAPER} ({self.divergence}, tau = {self.tau:g}): in each optimization step, the gradient of "
            f"every {item} was weighted by `{self.formula()}` of its own, detached loss, that is, by 1 to "
            f"{self.largest_weight():.3g} for losses >= 0."
        )

    def advice(self, statistics: Mapping[str, float]) -> str | None:
        """Advice to raise `tau` if most losses are above it, and to take another rule if they are negative."""
        if statistics.get("unweighted_loss", 0.0) < 0:
            return (
                f"The mean loss since the last log is {statistics['unweighted_loss']:.3g}, but the weights of {self.method_name()} "
                "are made for losses >= 0: those of negative losses are below 1 and vanish as the losses fall, and training "
                f"with them. Set {FOR_NEGATIVE_LOSSES}."
            )
        if statistics.get("clipped_fraction", 0.0) <= 0.5:
            return None
        mean = statistics["unweighted_loss"]
        return (
            f"{statistics['clipped_fraction']:.0%} of the losses since the last log are above tau={self.tau:g}, so most "
            "weights are equal and re-weighting does little more than scale the step. Raise tau: the mean loss is "
            f"{mean:.3g}, so tau={2 * mean:.2g} would leave room."
        )
