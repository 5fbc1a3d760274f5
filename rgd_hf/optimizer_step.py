"""One optimizer step, the same however it is cut: each micro-batch's mean loss counts by its share of the step's items.

`compute_loss` returns the mean over a micro-batch, to which overrides may add what they like; `training_step` multiplies
what the outermost override returns by the micro-batch's share. Where the items of the whole step are known ahead, the
share is known before the backward pass; otherwise the gradients are rescaled once, after the last micro-batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import has_length

from rgd_hf.data import SAMPLE_WEIGHT, drop_repeats
from rgd_hf.gradients import gradients_can_be_rescaled, rescale_gradients
from rgd_hf.loss_sources import HeadLosses
from rgd_hf.overrides import foreign_to_the_left, foreign_to_the_right
from rgd_hf.weighting import reference_at_level

if TYPE_CHECKING:
    from rgd_hf.per_sample_losses import PerSampleLossesMixin as TrainerBase
else:
    TrainerBase = object


class _LossCall:
    """One call of the outermost `compute_loss`, by whoever runs the backward pass.

    Attributes:
        mass: 0-dimensional sum of the (reference) weights of the batch's items; None until known.
        losses: what this package's `compute_loss` returned in it, once or several times.
        scale_known: whether the caller has since asked whether the loss is scaled (`loss_is_scaled_for_ga`).
        used: whether the backward pass came to one of `losses`.
    """

    def __init__(self, mass: Tensor | None):
        self.mass = mass
        self.losses: list[Tensor] = []
        self.scale_known = False
        self.used = False

    def watch(self, returned: Tensor) -> None:
        """Find out whether `returned`, what the override makes of the losses, depends on one of them."""
        watched = [loss for loss in self.losses if loss.requires_grad]
        if not watched or any(loss is returned for loss in self.losses):
            self.used = True
            return

        def use(gradient: Tensor) -> None:
            self.used = True

        for loss in watched:
            loss.register_hook(use)


class OptimizerStepMixin(TrainerBase):
    """Makes the objective of an optimizer step one mean over the items of all its micro-batches and processes."""

    # The calls of compute_loss in this package's training_step, and the one under way; None outside of it.
    _loss_calls: list[_LossCall] | None = None
    _loss_call: _LossCall | None = None
    # Items of each micro-batch by the batch's identity, and of the whole step; None where not counted ahead.
    _counted: tuple[dict[int, Tensor], Tensor] | None = None
    # Whether the loss of this package was asked for since the step began.
    _weighed = False
    _steps_begun = 0
    _step_finished = 0
    _step_mass: Tensor
    _step_loss: Tensor

    # --- who does a part of the step --------------------------------------------------------------------------------

    def _foreign_training_steps(self) -> list[type]:
        """Classes that override `training_step` in a way that this package has not looked at."""
        cls = type(self)
        behind = foreign_to_the_right(cls, OptimizerStepMixin, "training_step")
        return foreign_to_the_left(cls, OptimizerStepMixin, "training_step") + ([behind] if behind else [])

    @property
    def _accumulates(self) -> bool:
        return self.args.gradient_accumulation_steps > 1

    def _uncounted(self) -> str | None:
        """What keeps the items of a step from being counted before its forward passes; None where they are counted."""
        source = self._loss_source()
        if self.args.normalize_weights:
            return "normalize_weights"
        if not isinstance(source, HeadLosses):
            return source.name if source is not None else None
        if foreign := self._foreign_training_steps():
            return f"{foreign[0].__name__}.training_step"
        return None

    @property
    def _rescales(self) -> bool:
        """Whether the step's scale is known only after its forward passes, so that gradients are rescaled."""
        if self._loss_source() is None or not self._accumulates:
            return False
        if self._uncounted() is not None:
            return True
        # The Trainer does not step at the end of an epoch whose length it does not know; what was accumulated since
        # the last step belongs to the first step of the next epoch.
        endless = self.train_dataset is not None and not has_length(self.train_dataset)
        return endless and gradients_can_be_rescaled(self.args, self.is_deepspeed_enabled)

    # --- the items of a step ----------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        if self._loss_source() is None:
            return super()._get_num_items_in_batch(batch_samples, device)
        if not batch_samples or not torch.is_grad_enabled():
            return None
        self._stop_if_not_weighed()
        self._steps_begun += 1
        self._weighed = False
        self._begin_step(batch_samples)
        if self._rescales or self._uncounted() is not None:
            self._counted = None
            return None
        masses = {id(batch): self._mass(batch) for batch in batch_samples}
        self._counted = (
            masses,
            at_least_one_item(
                self.accelerator.reduce(torch.stack(list(masses.values())).sum(), reduction="sum")
            ),
        )
        return self._counted[1]

    def _begin_step(self, batch_samples: list) -> None:
        """Called once an optimizer step with all its micro-batches, before their forward passes."""
        drop_repeats(
            batch_samples[-1],
            self.accelerator.gradient_state,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )

    def _mass(self, batch: Any) -> Tensor:
        source = self._loss_source()
        assert isinstance(source, HeadLosses)
        reference = reference_at_level(source.reference(batch), self._level(), batch.get(SAMPLE_WEIGHT))
        return reference.sum().to(self.args.device)

    # --- one micro-batch --------------------------------------------------------------------------------------------

    @property
    def loss_is_scaled_for_ga(self) -> bool | None:  # type: ignore[override]
        """Tells the Trainer that the loss is already divided by the items of the whole optimizer step."""
        if self._loss_calls and self._loss_calls[-1].losses:
            self._loss_calls[-1].scale_known = True
            return True
        return super().loss_is_scaled_for_ga

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch forward and backward; after a step's last one, its gradients get their exact scale.

        Raises:
            NotImplementedError: an override takes this package's part of the step out of the way, or does something
                to it that cannot be exact in this set-up; the message names the override and what to do.
        """
        if self._loss_source() is None:
            self._refuse_sample_weights(inputs)
            return super().training_step(model, inputs, num_items_in_batch)
        counted, num_items = self._counted, num_items_in_batch
        if counted is not None:
            if num_items is not None and num_items is not counted[1]:
                raise self._refusal(
                    "get_batch_samples", "returns another number of items than was counted for the step",
                    "return the one of super().get_batch_samples, or None",
                )  # fmt: skip
            num_items = counted[1]
        rescales = self._rescales or (self._accumulates and num_items is None)
        if rescales:
            self._check_once_a_micro_batch()
            num_items = None
        with self._loss_calls_counted(counted[0].get(id(inputs)) if counted else None, num_items) as calls:
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._check_calls(calls)
        if rescales:
            assert calls[0].mass is not None  # as _check_calls made sure
            self._step_mass = self._step_mass + calls[0].mass / self._rough_items
            loss = self._rescaled(model, loss)
        if self.accelerator.sync_gradients:
            self._counted = None
            self._step_finished = self._steps_begun
        return loss

    @contextmanager
    def _loss_calls_counted(self, mass: Tensor | None, num_items: Any) -> Iterator[list[_LossCall]]:
        """Inside, what the outermost `compute_loss` returns is multiplied by the micro-batch's share of the step."""
        of_instance = self.__dict__.get("compute_loss")
        compute_loss = self.compute_loss
        calls: list[_LossCall] = []

        def share_of_step(*args: Any, **kwargs: Any) -> Any:
            if self._loss_call is not None:
                return compute_loss(*args, **kwargs)
            # Means over this batch are what is multiplied by its share.
            kwargs = {**kwargs, "num_items_in_batch": None} if "num_items_in_batch" in kwargs else kwargs
            self._loss_call = call = _LossCall(mass)
            try:
                returned = compute_loss(*args[:3], *(None for _ in args[3:]), **kwargs)
            finally:
                self._loss_call = None
            calls.append(call)
            if not call.losses:
                return returned
            loss, *outputs = returned if isinstance(returned, tuple) else (returned,)
            call.watch(loss)
            loss = loss * self._share(call, num_items)
            return (loss, *outputs) if outputs else loss

        self._loss_calls = calls
        self.__dict__["compute_loss"] = share_of_step
        try:
            yield calls
        finally:
            self._loss_calls = None
            del self.__dict__["compute_loss"]
            if of_instance is not None:
                self.__dict__["compute_loss"] = of_instance

    @property
    def _rough_items(self) -> int:
        """Any constant that is the same on every process will do where the gradients are rescaled afterwards."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def _share(self, call: _LossCall, num_items: Any) -> Tensor:
        mass, processes = call.mass, self.accelerator.num_processes
        assert mass is not None
        if num_items is None:
            if self._accumulates:
                num_items = self._rough_items
            else:
                num_items = at_least_one_item(self.accelerator.reduce(mass, reduction="sum"))
        # Wrappers average the gradients over the processes; num_items counts the items of all of them.
        return mass * processes / num_items

    def _weighted_loss(self, mean: Tensor, mass: Tensor, num_items: Any) -> Tensor:
        """What `compute_loss` returns of the weighted mean over a batch, whose weights sum to `mass`."""
        self._weighed = True
        if self._loss_call is not None:
            call = self._loss_call
            call.losses.append(mean)
            call.mass = mass if call.mass is None else call.mass
            if len(call.losses) > 1 and self.args.normalize_weights and self._is_cut:
                raise self._refusal(
                    "compute_loss", "calls super().compute_loss more than once, and normalize_weights gives each call "
                    "its own sum of weights",
                    "leave normalize_weights off, or train on one process with gradient_accumulation_steps=1",
                )  # fmt: skip
            return mean
        if self.is_in_train and torch.is_grad_enabled() and self._foreign_training_steps():
            if self._accumulates:
                raise self._refusal(
                    "training_step", "calls compute_loss by itself, so that the share of its loss in the accumulated "
                    "step is not known",
                    "set gradient_accumulation_steps=1 (and raise per_device_train_batch_size)",
                )  # fmt: skip
            num_items = at_least_one_item(self.accelerator.reduce(mass, reduction="sum"))
        if num_items is None:
            return mean
        return mean * mass * self.accelerator.num_processes / num_items

    def _rescaled(self, model: nn.Module, loss: Tensor) -> Tensor:
        so_far = self._step_loss
        self._step_loss = so_far + loss
        if not self.accelerator.sync_gradients:
            return loss
        mass = self.accelerator.reduce(self._step_mass, reduction="sum")
        factor = torch.where(mass > 0, 1 / mass, 0.0)
        rescale_gradients(model.parameters(), factor)
        # The Trainer sums what this method returns over the step: make that sum the rescaled objective.
        corrected = self._step_loss * factor - so_far
        self._reset_step()
        return corrected

    def _reset_step(self) -> None:
        self._counted = None
        self._step_mass = torch.zeros((), device=self.args.device)
        self._step_loss = torch.zeros((), device=self.args.device)

    # --- overrides that cannot hold ---------------------------------------------------------------------------------

    @property
    def _is_cut(self) -> bool:
        return self._accumulates or self.accelerator.num_processes > 1

    def _refusal(self, method: str, does: str, remedy: str) -> NotImplementedError:
        cls = type(self)
        left = foreign_to_the_left(cls, OptimizerStepMixin, method)
        right = foreign_to_the_right(cls, OptimizerStepMixin, method)
        owner = (left or [right or cls])[0]
        return NotImplementedError(f"{owner.__name__}.{method} {does}: {remedy}.")

    def _check_calls(self, calls: list[_LossCall]) -> None:
        if not any(call.losses for call in calls):
            raise self._refusal(
                "compute_loss",
                "never reaches the loss of ReweightingMixin, so that nothing is re-weighted",
                "rename it to compute_per_sample_losses(self, model, inputs) and return (losses, outputs) with the losses "
                "before any reduction; or add to what super().compute_loss returns; or set reweighting='none'",
            )
        if self._needs_weights and not all(call.used for call in calls if call.losses):
            raise self._refusal(
                "compute_loss",
                "calls super().compute_loss but returns a loss without the re-weighted one in it, so that nothing is "
                "re-weighted",
                "rename it to compute_per_sample_losses(self, model, inputs) and return (losses, outputs) with the losses "
                "before any reduction; or add to what super().compute_loss returns; or set reweighting='none'",
            )
        if self._accumulates and (len(calls) > 1 or not calls[0].scale_known):
            raise self._refusal(
                "training_step",
                "calls compute_loss by itself, so that the share of its loss in the accumulated step is not known",
                "set gradient_accumulation_steps=1 (and raise per_device_train_batch_size)",
            )

    def _check_once_a_micro_batch(self) -> None:
        if self._steps_begun and self._step_finished == self._steps_begun:
            raise self._refusal(
                "training_step",
                "calls super().training_step more than once for a micro-batch, so that the gradients of the step were "
                "already rescaled",
                "set gradient_accumulation_steps=1 (and raise per_device_train_batch_size)",
            )

    def _stop_if_not_weighed(self) -> None:
        """Raise where an optimizer step was taken without asking for the loss of this package."""
        if self._steps_begun and not self._weighed and self._needs_weights:
            raise self._refusal(
                "training_step",
                "takes its step without self.compute_loss, so that nothing is re-weighted",
                "take the loss of self.compute_loss(model, inputs) in it, or set reweighting='none'",
            )

    def _refuse_sample_weights(self, inputs: Any) -> None:
        if SAMPLE_WEIGHT in inputs:
            raise NotImplementedError(
                f"The batches have a column {SAMPLE_WEIGHT!r}, but the per-sample losses of this model are not known, so they "
                "cannot be weighted: override compute_per_sample_losses or pass per_sample_loss_fn (see "
                "docs/subclasses.md), or remove or rename the column."
            )


def at_least_one_item(mass: Tensor) -> Tensor:
    """`mass`, but 1 where it is 0, so that a step without items has loss 0 and not 0 / 0."""
    return torch.where(mass > 0, mass, 1.0)
