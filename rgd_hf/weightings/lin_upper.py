"""Weights that grow with a loss's position between the smallest and the largest of its micro-batch, up to the middle.

This module needs torch alone.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rgd_hf.items import Items
from rgd_hf.weightings.base import Weighting, check_positive


@dataclass
class LinUpper(Weighting):
    """`exp(min(h + 1, 1) / temperature)` with mean one, h the loss scaled to -1 to 1 over its micro-batch.

    The smallest loss of the micro-batch has h = -1 and the largest h = 1, so that weights rise up to the middle between
    them and are equal above it: items with small losses count less, and outliers count no more than others. The weights
    do not depend on the scale of the losses.

    Source: the strategy "LinUpper" of Sow et al., "Dynamic Loss-Based Sample Reweighting for Improved Large Language Model
    Pretraining", ICLR 2025 (arXiv 2502.06733): its normalization, its bound and its softmax were read in the code that the
    authors publish, not in the paper's text. There h runs from -delta to delta; the quotient of delta and the temperature is
    all that matters, so delta is 1 here. Theirs are the losses of a whole batch, gathered from all processes; here they are
    those of one micro-batch on one process. A schedule of the temperature is not built in.

    Args:
        temperature: positive and finite; the larger, the more equal the weights.

    Raises:
        ValueError: `temperature` is not positive and finite.
    """

    temperature: float = 1.0

    name: ClassVar[str] = "lin_upper"
    title: ClassVar[str] = "LinUpper"
    short: ClassVar[str] = "LinUpper"
    compares_items = True
    citation: ClassVar[str | None] = """\
@inproceedings{sow2025dynamic,
  title     = {Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining},
  author    = {Sow, Daouda and Woisetschl{\\"a}ger, Herbert and Bulusu, Saikiran and Wang, Shiqiang and Jacobsen, Hans-Arno and
               Liang, Yingbin},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  url       = {https://arxiv.org/abs/2502.06733}
}"""

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)

    def weights(self, items: Items) -> Tensor:
        """The weights; 1 where all losses are equal. A NaN or infinite loss has the weight of the largest finite one."""
        losses, reference = items.losses.float(), items.reference
        usable = (reference > 0) & torch.isfinite(losses)
        largest = torch.where(usable, losses, -math.inf).amax()
        spread = largest - torch.where(usable, losses, math.inf).amin()
        # A spread of 0, or of no losses at all, leaves h + 1 at 2 or more.
        spread = torch.where(torch.isfinite(spread) & (spread > 0), spread, 1.0)
        below = torch.where(usable, (losses - largest) / spread, 0.0)
        weights = torch.exp((2 * below + 2).clamp(max=1.0) / self.temperature - 1 / self.temperature)
        mean = (weights * reference).sum() / torch.where(usable.any(), reference.sum(), 1.0)
        return torch.where(reference > 0, weights / torch.where(mean > 0, mean, 1.0), 1.0)

    def describe(self, item: str) -> str:
        """The normalization, the bound, and the mean."""
        paper = "[linear upper-bounded strategy](https://arxiv.org/abs/2502.06733)"
        return (
            f"Trained with the {paper} of loss-based sample weights: losses were scaled to h from -1 to 1 over every "
            f"micro-batch, and the gradient of every {item} was weighted by `exp(min(h + 1, 1) / {self.temperature:g})` of its "
            "own, detached loss, with mean one."
        )
