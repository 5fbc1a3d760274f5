"""A penalty on what a model computes of a batch, added to the re-weighted objective."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rgd_hf.overrides import check_class
from rgd_hf.trainer import ReweightingMixin

if TYPE_CHECKING:
    from rgd_hf.trainer import ReweightedTrainer as TrainerBase
else:
    TrainerBase = object

Forward = Callable[[], tuple[Tensor, Any]]


class PenaltyMixin(TrainerBase):
    """Adds penalties to the (re-weighted) mean of a batch's losses, in training alone: the sum of those of all its classes.

    A class with a penalty of its own extends `with_penalty`.

    The penalty belongs to the batch, not to a sample, so no weight of a sample multiplies it. A step of several
    micro-batches or processes has the mean of their penalties by their share of the step, as it has that of a model's
    auxiliary losses: the share of its samples, or with `normalize_weights` that of the sum of their weights. The penalty
    of a micro-batch is not that of a whole step: how a step is cut changes what is trained.

    Raises:
        TypeError: the class does not derive from `ReweightingMixin`, or lists the Trainer before this mixin.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        check_class(cls, PenaltyMixin)

    def __init__(self, *args: Any, **kwargs: Any):
        if not isinstance(self, ReweightingMixin):
            raise TypeError(
                f"{type(self).__name__} adds a penalty to the objective of rgd_hf, whose scale it knows: derive it from "
                "ReweightedTrainer, or from ReweightingMixin and your Trainer. reweighting='none' is plain training."
            )
        super().__init__(*args, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective of the Trainer plus the penalty; in evaluation the plain loss."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

        def forward() -> tuple[Tensor, Any]:
            return super(PenaltyMixin, self).compute_loss(model, inputs, True, num_items_in_batch)

        (loss, outputs), penalty = self.with_penalty(forward, inputs)
        loss = loss + penalty
        if isinstance(outputs, tuple):
            outputs = (loss, *outputs[1:])
        return (loss, outputs) if return_outputs else loss

    def with_penalty(self, forward: Forward, inputs: Mapping[str, Any]) -> tuple[tuple[Tensor, Any], Tensor]:
        """Run `forward()`, look at what the model computes, and return its result with the penalty.

        An override calls `super().with_penalty(forward, inputs)` in place of `forward()` and adds its penalty to the one
        that this returns, which is 0 if no other class has one.

        Args:
            forward: runs the model on `inputs`; its loss, 0-dimensional, and outputs.
            inputs: a batch, with the columns that the model is not shown.

        Returns:
            What `forward()` returned, and the sum of the penalties times their weights, 0-dimensional.
        """
        result = forward()
        return result, result[0].new_zeros(())

    def bare_model(self) -> nn.Module:
        """The model without the wrappers of distributed training."""
        return self.accelerator.unwrap_model(self.model)
