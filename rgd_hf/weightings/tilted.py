"""Weights whose gradient is that of the tilted loss of a micro-batch.

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
def tilted_weights(losses: Tensor, reference: Tensor, tilt: float = 1.0) -> Tensor:
    """Gradient weights of the tilted loss `log(mean(exp(tilt * loss))) / tilt` of a micro-batch.

    Source: Li et al., "Tilted Empirical Risk Minimization", 2021 (arXiv 2007.01162), positive tilt.

    Args:
        losses: unreduced losses, any shape with at least one dimension; NaN and infinite ones count as the largest
            finite one.
        reference: non-negative weight of each item, of the same shape; 0 for items that do not count.
        tilt: how fast weights grow with the loss, positive, in units of 1 / loss; towards 0 the weights become 1.

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


@dataclass
class Tilted(Weighting):
    """The gradient of the tilted loss `log(mean(exp(tilt * loss))) / tilt` of every micro-batch.

    Source: Li et al., "Tilted Empirical Risk Minimization", 2021 (arXiv 2007.01162), positive tilt. Weights are proportional
    to `exp(tilt * loss)`, with mean one.

    Args:
        tilt: how fast weights grow with the loss, positive and finite, in units of 1 / loss.

    Raises:
        ValueError: `tilt` is not positive and finite.
    """

    tilt: float = 1.0

    name: ClassVar[str] = "tilted"
    title: ClassVar[str] = "Tilted loss"
    short: ClassVar[str] = "tilted loss"
    options: ClassVar[Mapping[str, str]] = {"tilt": "tilt"}
    compares_items = True
    citation: ClassVar[str | None] = """\
@inproceedings{li2021tilted,
  title     = {Tilted Empirical Risk Minimization},
  author    = {Li, Tian and Beirami, Ahmad and Sanjabi, Maziar and Smith, Virginia},
  booktitle = {International Conference on Learning Representations},
  year      = {2021},
  url       = {https://arxiv.org/abs/2007.01162}
}"""

    def __post_init__(self) -> None:
        check_positive("tilt", self.tilt)

    def weights(self, items: Items) -> Tensor:
        """`tilted_weights` of the items."""
        return tilted_weights(items.losses, items.reference, self.tilt)

    def describe(self, item: str) -> str:
        """The loss and its tilt."""
        loss = "[tilted loss](https://arxiv.org/abs/2007.01162)"
        return (
            f"Trained with the gradient of the {loss} of every micro-batch, tilt = {self.tilt:g}: the gradient of every "
            f"{item} was weighted in proportion to `exp({self.tilt:g} * loss)`, with mean one."
        )
