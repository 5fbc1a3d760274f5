"""SWAD: the average of all weights between the end of fitting and the start of overfitting.

Cha et al., "SWAD: Domain Generalization by Seeking Flat Minima", NeurIPS 2021, Algorithm 1. The weights of every step
between two evaluations are averaged into a segment; the validation loss at its end decides about the segment.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from rgd_hf.scripts.domains.training import DomainTrainer

PATIENCE_TO_START = 3
PATIENCE_TO_END = 6

T = TypeVar("T")


class LossValley(Generic[T]):
    """Which segments belong to the average, told one after the other.

    The start is the first segment whose loss is the lowest of the `PATIENCE_TO_START` that begin with it. From then
    on, the threshold is `tolerance` times the mean of these losses; the end is reached when `PATIENCE_TO_END`
    segments in a row lie above it, and the last segment of the average is the one before them.

    Args:
        tolerance: factor of the threshold, above 1.
    """

    def __init__(self, tolerance: float):
        self.tolerance = tolerance
        self.start: int | None = None
        self.threshold = float("inf")
        self.ended = False
        self._count = 0
        self._pending: deque[tuple[float, T]] = deque()

    def add(self, loss: float, segment: T) -> list[T]:
        """Tell the next segment and its validation loss; the segments that are now known to belong to the average."""
        if self.ended:
            return []
        self._count += 1
        self._pending.append((loss, segment))
        if self.start is None:
            self._look_for_start()
            return []
        if len(self._pending) > PATIENCE_TO_END:
            accepted = [self._pending.popleft()[1]]
        else:
            accepted = []
        window = [loss for loss, _ in self._pending]
        if len(window) == PATIENCE_TO_END and min(window) > self.threshold:
            self.ended = True
            self._pending.clear()
        return accepted

    def finish(self) -> list[T]:
        """The segments that belong to the average because training ended before overfitting was found.

        Empty where no start was found: the validation loss was still falling.
        """
        left = [] if self.start is None else [segment for _, segment in self._pending]
        self._pending.clear()
        return left

    def _look_for_start(self) -> None:
        if len(self._pending) > PATIENCE_TO_START:
            self._pending.popleft()
        losses = [loss for loss, _ in self._pending]
        if len(losses) == PATIENCE_TO_START and losses[0] == min(losses):
            self.start = self._count - PATIENCE_TO_START
            self.threshold = self.tolerance * sum(losses) / len(losses)


class WeightAverage:
    """Running mean of a model's parameters and buffers, in float32 (whole numbers are taken as they are)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, weights: Mapping[str, Tensor], count: int = 1) -> None:
        """Add weights that stand for `count` steps."""
        self.count += count
        for name, tensor in weights.items():
            if name not in self.mean or not tensor.is_floating_point():
                self.mean[name] = (
                    tensor.detach().clone().float() if tensor.is_floating_point() else tensor.clone()
                )
            else:
                self.mean[name].lerp_(tensor.detach().float(), count / self.count)


class SwadTrainer(DomainTrainer):
    """Empirical risk minimization with SWAD. Its hyper-parameter `swad_tolerance` is the factor of the threshold.

    During training only the `out` splits of the training domains are evaluated; the mean of their losses is the
    validation loss. The model of the run is the average alone; where the validation loss never stopped falling, it is
    the last model.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.valley: LossValley[WeightAverage] = LossValley(self.hyper_parameters["swad_tolerance"])
        self.segment, self.average = WeightAverage(), WeightAverage()
        self.add_callback(_EveryStep(self))

    def bare_model(self) -> nn.Module:
        """The model without the wrappers of distributed training."""
        return self.accelerator.unwrap_model(self.model)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the Trainer's; during training, of the training domains alone, and it ends a segment."""
        if eval_dataset is not None or not self.is_in_train:
            return super().evaluate(eval_dataset, *args, **kwargs)
        everything: Any = self.eval_dataset
        outside = {f"{name}_out": everything[f"{name}_out"] for name in self.training_domains}
        metrics = super().evaluate(outside, *args, **kwargs)
        losses = [metrics[f"eval_{name}_loss"] for name in outside]
        self._take(self.valley.add(sum(losses) / len(losses), self.segment))
        self.segment = WeightAverage()
        return metrics

    def _take(self, segments: list[WeightAverage]) -> None:
        for segment in segments:
            self.average.add(segment.mean, segment.count)

    def finish(self) -> bool:
        """Load the average into the model."""
        self._take(self.valley.finish())
        if self.average.count:
            model = self.bare_model()
            like = model.state_dict()
            model.load_state_dict(
                {name: mean.to(like[name].dtype) for name, mean in self.average.mean.items()}
            )
        return True


class _EveryStep(TrainerCallback):
    def __init__(self, trainer: SwadTrainer):
        self.trainer = trainer

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.segment.add(self.trainer.bare_model().state_dict())
