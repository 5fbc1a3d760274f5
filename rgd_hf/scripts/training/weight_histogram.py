"""Histograms of the weights in the logs of recipes that draw them."""

from typing import TYPE_CHECKING, Any

from rgd_hf.observers import WeightHistogram

if TYPE_CHECKING:
    from rgd_hf import ReweightedTrainer as TrainerBase
else:
    TrainerBase = object


class WeightHistogramMixin(TrainerBase):
    """Adds the observer `WeightHistogram`.

    Args:
        count_weights: False for a Trainer without any of this.
    """

    def __init__(self, *args: Any, count_weights: bool = True, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if count_weights:
            self.add_observer(WeightHistogram)
