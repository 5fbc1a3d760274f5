"""How the weights of the items were spread, between one log and the next: counted on the device, kept in the log."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rgd_hf.divergences import largest_weight
from rgd_hf.rivals import focal_weights
from rgd_hf.weighting import Items, clips_at_tau

if TYPE_CHECKING:
    from rgd_hf import ReweightedTrainer as TrainerBase
else:
    TrainerBase = object

BINS = 40
HISTOGRAM = "weight_histogram"
BOUNDS = "weight_histogram_bounds"
LARGEST_SHOWN = 4.0
"""End of the last bin for weights of mean one that have no bound; larger ones are counted in it."""


def weight_bounds(args: Any) -> tuple[float, float]:
    """Where the first bin begins and the last one ends.

    Args:
        args: with the fields of `ReweightingArguments`.
    """
    if clips_at_tau(args):
        return 1.0, largest_weight(args.reweighting, args.tau)
    if args.reweighting == "focal":
        return 0.0, float(focal_weights(torch.linspace(0, 20, 2001), args.focal_gamma).max())
    if args.reweighting == "cvar":
        return 0.0, 1 / args.cvar_fraction
    return 0.0, LARGEST_SHOWN


class WeightHistogramMixin(TrainerBase):
    """Adds `weight_histogram` to the training entries of `log_history`.

    It is a list of 40 counts of items over equal bins between the two numbers of `weight_histogram_bounds`. Reporters
    (TensorBoard, W&B) get neither: they take numbers. With `reweighting="none"` there is none.

    Args:
        count_weights: False for a Trainer without any of this.
    """

    def __init__(self, *args: Any, count_weights: bool = True, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.count_weights = count_weights and self.args.reweighting != "none"
        self._histogram = torch.zeros(BINS, device=self.args.device)
        self._bounds = weight_bounds(self.args) if self.count_weights else (1.0, 1.0)

    def weigh(self, items: Items, inputs: Any) -> Tensor:
        """As the Trainer's; the weights of training batches are counted."""
        weights = super().weigh(items, inputs)
        if self.count_weights and self.is_in_train and torch.is_grad_enabled():
            low, high = self._bounds
            bins = ((weights - low) / (high - low) * BINS).long().clamp(0, BINS - 1)
            counted = (items.reference > 0).to(self._histogram.dtype)
            self._histogram.index_add_(0, bins.flatten(), counted.flatten())
        return weights

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, with the histogram in the entry of `log_history` alone."""
        super().log(logs, *args, **kwargs)
        if "loss" in logs and self.count_weights:
            counts = self.accelerator.reduce(self._histogram.clone(), reduction="sum")
            self._histogram.zero_()
            entry: dict = self.state.log_history[-1]
            entry[HISTOGRAM] = [int(count) for count in counts.tolist()]
            entry[BOUNDS] = list(self._bounds)
