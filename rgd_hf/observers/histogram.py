"""Histogram of the weights between two logs: counted on the device, kept in the log history."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rgd_hf.items import Items
from rgd_hf.observers.base import Observer

BINS = 40
HISTOGRAM = "weight_histogram"
BOUNDS = "weight_histogram_bounds"
LARGEST_SHOWN = 4.0
"""Upper end of the last bin for rules whose weights are unbounded; larger weights are counted in it."""


class WeightHistogram(Observer):
    """Adds `weight_histogram` to the training entries of `trainer.state.log_history`.

    It is a list of 40 counts of items over equal bins between the two numbers of `weight_histogram_bounds`. Reporters
    (TensorBoard, W&B) get neither, because they take single numbers. With `reweighting="none"` there is no histogram.
    """

    name = "weight_histogram"

    def __init__(self) -> None:
        self.bounds: tuple[float, float] | None = None

    def start(self, trainer: Any) -> None:
        """Take the range of the bins from the rule."""
        self.bounds = None
        if trainer.reweights:
            bounds = None if trainer.weigh_override else trainer.weighting.bounds()
            self.bounds = bounds or (0.0, LARGEST_SHOWN)

    def initial_state(self) -> dict[str, Tensor]:
        """Counts, float64 `[40]`: float32 would stop counting at 2**24."""
        return {"counts": torch.zeros(BINS, dtype=torch.float64)}

    def observe(self, items: Items, weights: Tensor, step: int) -> None:
        """Count the items of one micro-batch."""
        if self.bounds is None:
            return
        low, high = self.bounds
        bins = ((weights - low) / (high - low) * BINS).long().clamp(0, BINS - 1)
        counts = self.state["counts"]
        counts.index_add_(0, bins.flatten(), (items.reference > 0).to(counts.dtype).flatten())

    def collect(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The counts and their bounds."""
        if self.bounds is None:
            return {}
        return {HISTOGRAM: [int(count) for count in state["counts"].tolist()], BOUNDS: list(self.bounds)}
