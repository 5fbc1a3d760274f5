"""Weights whose gradient is that of the focal loss.

This module needs torch alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rgd_hf.items import Items
from rgd_hf.weightings.base import Weighting, check_losses, check_positive
from rgd_hf.weightings.divergence import FOR_NEGATIVE_LOSSES


@torch.no_grad()
def focal_weights(losses: Tensor, gamma: float = 2.0) -> Tensor:
    """Derivative of the focal loss `(1 - p)**gamma * loss` by the cross-entropy `loss = -log p`.

    `(1 - p)**gamma + gamma * loss * p * (1 - p)**(gamma - 1)`, so that the gradient is that of the focal loss itself.

    Source: Lin et al., "Focal Loss for Dense Object Detection", 2017 (arXiv 1708.02002), without its alpha.

    Args:
        losses: unreduced cross-entropies, any shape with at least one dimension. With label smoothing, soft labels or
            other losses, p is `exp(-loss)` and not a class probability. Negative losses count as 0, NaN as infinite.
        gamma: focusing exponent, positive; towards 0 the weights become 1.

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


@dataclass
class Focal(Weighting):
    """The gradient of the focal loss `(1 - p)**gamma * loss` of every item, p its `exp(-loss)`.

    Source: Lin et al., "Focal Loss for Dense Object Detection", 2017 (arXiv 1708.02002), without its alpha. Weights lie
    between 0 and a largest value a little above 1. A negative loss, which no cross-entropy is, has weight 0; a warning says so
    where the mean loss is negative.

    Args:
        gamma: focusing exponent, positive and finite: the larger, the less easy items count.

    Raises:
        ValueError: `gamma` is not positive and finite.
    """

    gamma: float = 2.0

    name: ClassVar[str] = "focal"
    title: ClassVar[str] = "Focal loss"
    short: ClassVar[str] = "focal loss"
    options: ClassVar[Mapping[str, str]] = {"gamma": "focal_gamma"}
    citation: ClassVar[str | None] = """\
@inproceedings{lin2017focal,
  title     = {Focal Loss for Dense Object Detection},
  author    = {Lin, Tsung-Yi and Goyal, Priya and Girshick, Ross and He, Kaiming and Doll\\'ar, Piotr},
  booktitle = {Proceedings of the IEEE International Conference on Computer Vision},
  year      = {2017},
  url       = {https://arxiv.org/abs/1708.02002}
}"""

    def __post_init__(self) -> None:
        check_positive("focal_gamma", self.gamma)

    def weights(self, items: Items) -> Tensor:
        """`focal_weights` of the losses."""
        return focal_weights(items.losses, self.gamma)

    def bounds(self) -> tuple[float, float]:
        """0 and the largest weight, found on a grid."""
        return 0.0, float(focal_weights(torch.linspace(0, 20, 2001), self.gamma).max())

    def formula(self) -> str:
        """The derivative of the focal loss by the loss."""
        wrong, gamma = "(1 - exp(-loss))", self.gamma
        return f"{wrong}**{gamma:g} + {gamma:g} * loss * exp(-loss) * {wrong}**{gamma - 1:g}"

    def describe(self, item: str) -> str:
        """The loss and its exponent."""
        loss = "[focal loss](https://arxiv.org/abs/1708.02002)"
        return (
            f"Trained with the gradient of the {loss} of every {item}, gamma = {self.gamma:g}: the gradient of the plain "
            f"loss was weighted by `{self.formula()}`."
        )

    def advice(self, statistics: Mapping[str, float]) -> str | None:
        """Advice to take another rule if losses are negative."""
        if statistics.get("unweighted_loss", 0.0) >= 0:
            return None
        return (
            f"The mean loss since the last log is {statistics['unweighted_loss']:.3g}, but focal weights are those of "
            f"cross-entropies, which are not negative: a negative loss has weight 0, and is not trained on. Set {FOR_NEGATIVE_LOSSES}."
        )
