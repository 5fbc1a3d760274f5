"""How the weights of the items were spread, between one log and the next: counted on the device, kept in the log."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rgd_hf.divergences import largest_weight
from rgd_hf.weighting import Items

if TYPE_CHECKING:
    from rgd_hf import ReweightedTrainer as TrainerBase
else:
    TrainerBase = object

BINS = 40
HISTOGRAM = "weight_histogram"


class WeightHistogramMixin(TrainerBase):
    """Adds `weight_histogram` to the training entries of `log_history`.

    It is a list of 40 counts of items over equal bins from 1 to the largest weight of the divergence. Reporters
    (TensorBoard, W&B) do not get it: they take numbers.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._histogram = torch.zeros(BINS, device=self.args.device)

    def weigh(self, items: Items, inputs: Any) -> Tensor:
        """As the Trainer's; the weights of training batches are counted."""
        weights = super().weigh(items, inputs)
        if self.is_in_train and torch.is_grad_enabled() and self.args.reweighting != "none":
            largest = largest_weight(self.args.reweighting, self.args.tau)
            bins = ((weights - 1) / (largest - 1) * BINS).long().clamp(0, BINS - 1)
            counted = (items.reference > 0).to(self._histogram.dtype)
            self._histogram.index_add_(0, bins.flatten(), counted.flatten())
        return weights

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, with the histogram in the entry of `log_history` alone."""
        super().log(logs, *args, **kwargs)
        if "loss" in logs and self.args.reweighting != "none":
            counts = self.accelerator.reduce(self._histogram.clone(), reduction="sum")
            self._histogram.zero_()
            entry: dict = self.state.log_history[-1]
            entry[HISTOGRAM] = [int(count) for count in counts.tolist()]
