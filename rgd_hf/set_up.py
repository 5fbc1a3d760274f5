"""What is checked once: settings, model and data before a training, and its first batch."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from rgd_hf.batches.flattened import has_several_samples
from rgd_hf.gradients import check_gradients_can_be_rescaled, steps_in_backward
from rgd_hf.loss_sources import CustomLosses
from rgd_hf.optimizer_step import OptimizerStepMixin
from rgd_hf.training_args import check_reweighting

if TYPE_CHECKING:
    from rgd_hf.optimizer_step import OptimizerStepMixin as TrainerBase
else:
    TrainerBase = object


class SetUpMixin(TrainerBase):
    """Refuses, before a training or in its first batch, what could not be exact."""

    _first_batch_checked = False

    if TYPE_CHECKING:

        @property
        def _packs(self) -> bool: ...
        def _check_columns_are_kept(self) -> None: ...
        def _check_sample_weights(self, batch: Any) -> None: ...
        def _check_rows_can_be_left_out(self, samples: int, losses: Tensor) -> None: ...
        def _samples_of(self, batch: Any) -> int: ...

    def _check_set_up(self) -> None:
        """Raise where the settings, the model and the data cannot be trained with exactly."""
        args, rule = self.args, self.weighting
        check_reweighting(args, rule)
        self._check_columns_are_kept()
        self._check_one_loss_function()
        if max(self.get_cp_size(), self.get_sp_size(), self.get_tp_size()) > 1:
            raise NotImplementedError(
                "Re-weighting is not written for context, sequence or tensor parallelism, where one process sees a "
                "part of a sample or several see the same: use data parallelism (DDP, FSDP, DeepSpeed ZeRO)."
            )
        source = self._loss_source()
        if source is None:
            if self._needs_weights:
                raise self._cannot_unreduce()
            return
        self._check_scale()
        level = self._level()
        if rule.compares_items and level == "sample" and args.train_batch_size == 1:
            raise self._nothing_to_compare()
        # Settings of TRL's SFTTrainer: the first packed row may have a single sample, so batches do not tell.
        joined = getattr(self, "padding_free", False)
        if level == "sample" and joined and (self._packs or args.train_batch_size > 1):
            raise self._several_samples_in_a_row()
        if self.per_sample_loss_fn is None and getattr(args, "loss_type", "nll") == "dft":
            raise ValueError(
                "loss_type='dft' of TRL's SFTTrainer has its own weights of tokens, which re-weighted training would "
                "silently ignore: set loss_type='nll'."
            )
        if isinstance(source, CustomLosses) and args.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor does not reach a per_sample_loss_fn: smooth the labels inside that function "
                "and leave label_smoothing_factor at 0."
            )
        if self._accumulates and steps_in_backward(args):
            raise ValueError(
                f"optim={args.optim!r} takes a step inside every backward pass, so that the micro-batches of an "
                "accumulated step would be steps of their own: set gradient_accumulation_steps=1."
            )
        if self._rescales:
            check_gradients_can_be_rescaled(args, self.is_deepspeed_enabled, self._needs_rescaling())

    def _check_first_batch(self, losses: Tensor, reference: Tensor, inputs: Any) -> None:
        """Raise, in the first batch of a training, what the settings alone do not tell.

        Args:
            losses: its unreduced losses, `[batch]` or `[batch, tokens]`.
            reference: weights of their items before re-weighting, of the same shape.
            inputs: the columns of the batch.
        """
        if self._first_batch_checked or not self.is_in_train:
            return
        self._check_sample_weights(inputs)
        if self._level() == "sample" and has_several_samples(inputs, reference > 0):
            raise self._several_samples_in_a_row()
        # Only here it is known of a function's losses, and of a batch size that was made smaller.
        if self.weighting.compares_items and losses.numel() == 1:
            raise self._nothing_to_compare()
        self._check_rows_can_be_left_out(self._samples_of(inputs), losses)
        self._first_batch_checked = True

    def _nothing_to_compare(self) -> ValueError:
        return ValueError(
            f"{self.weighting.method_name()} compares the samples of one micro-batch with one another, but there is only one: "
            "raise per_device_train_batch_size (and lower gradient_accumulation_steps)."
        )

    def _check_scale(self) -> None:
        for cls in type(self).__mro__:
            if cls is OptimizerStepMixin:
                return
            if "loss_is_scaled_for_ga" in cls.__dict__:
                raise ValueError(
                    f"{cls.__name__}.loss_is_scaled_for_ga describes the scale of that class's own compute_loss, but here "
                    "the loss is that of ReweightingMixin, which knows its scale: remove it from the class."
                )
