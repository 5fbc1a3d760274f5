"""One optimizer step, the same however it is cut: each micro-batch's mean loss counts by its share of the step's items.

`compute_loss` returns the mean over a micro-batch, to which overrides may add what they like; `training_step` multiplies
what the outermost override returns by the micro-batch's share. Where the items of the whole step are known ahead, the
share is known before the backward pass; otherwise the gradients are rescaled once, after the last micro-batch.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.trainer_utils import has_length

from rgd_hf.batches.columns import SAMPLE_WEIGHT
from rgd_hf.gradients import PendingGradients, gradients_can_be_rescaled
from rgd_hf.items import reference_at_level
from rgd_hf.loss_sources import HeadLosses
from rgd_hf.overrides import overrides_before, set_on
from rgd_hf.step_guard import LossCall, Passes, StepGuardMixin

_SEES_THE_NUMBER = (
    "get_batch_samples",
    "_get_num_items_in_batch",
    "training_step",
    "_run_epoch",
    "_inner_training_loop",
)
"""The methods that make the number of a step's items, or are given it."""


class OptimizerStepMixin(StepGuardMixin):
    """Makes the objective of an optimizer step one mean over the items of all its micro-batches and processes."""

    # Items of each micro-batch by the batch's identity, and of the whole step; None where not counted ahead.
    _counted: tuple[dict[int, Tensor], Tensor] | None = None
    _step_mass: Tensor
    _step_loss: Tensor
    _step_factor: Tensor
    # Those of the step under way, where they are rescaled.
    _pending: PendingGradients | None = None

    # --- the items of a step ----------------------------------------------------------------------------------------

    def _why_not_counted(self) -> str | None:
        """What keeps the items of a step from being counted before its forward passes; None where they are counted."""
        return "normalize_weights" if self.args.normalize_weights else self._what_may_change_items()

    def _what_may_change_items(self) -> str | None:
        """What may give the loss other items than are counted in a batch before the forward pass; None for nothing."""
        source = self._loss_source()
        if not isinstance(source, HeadLosses):
            return source.name if source is not None else None
        changing = [
            *overrides_before(self, OptimizerStepMixin, "compute_loss"),
            *self._overrides("training_step"),
            *self._overrides("_prepare_inputs"),
            *self._overrides("_prepare_input"),
        ]
        return changing[0].name if changing else None

    def _needs_rescaling(self) -> str:
        """What the gradients of accumulated steps are rescaled because of, for messages."""
        unknown = "a training set of unknown length"
        counts = isinstance(self._loss_source(), HeadLosses) and not self.args.normalize_weights
        return unknown if counts and self._is_endless else self._why_not_counted() or unknown

    @property
    def _rescales(self) -> bool:
        """Whether the step's scale is known only after its forward passes, so that gradients are rescaled."""
        if not self._accumulates or self._loss_source() is None:
            return False
        if self._why_not_counted() is not None:
            return True
        return self._is_endless and gradients_can_be_rescaled(self.args, self.is_deepspeed_enabled)

    @property
    def _is_endless(self) -> bool:
        """Whether the length of an epoch is not known.

        The Trainer does not step at the end of such an epoch; what was accumulated since the last step belongs to the
        first step of the next one.
        """
        loader = self.callback_handler.train_dataloader if self.is_in_train else None
        data = self.train_dataset if loader is None else loader
        return data is not None and not has_length(data)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        if self._loss_source() is None:
            return super()._get_num_items_in_batch(batch_samples, device)
        return self._count(batch_samples)

    def _count(self, batch_samples: list) -> Tensor | None:
        """Begin a step with its micro-batches; its number of items where that is known before the forward passes."""
        # Evaluation asks too, maybe between the micro-batches of a step.
        if not batch_samples or not torch.is_grad_enabled():
            return None
        self._counted = None
        self._steps_begun += 1
        self._weighed = False
        self._begin_step(batch_samples)
        source = self._loss_source()
        if not isinstance(source, HeadLosses) or self.args.normalize_weights or not self._number_is_used:
            return None
        if self._rescales and self._is_endless:
            return None
        masses: dict[int, Tensor] = {}
        for batch in batch_samples:
            reference = self._reference_ahead(source, batch)
            if reference is not None:
                levelled = reference_at_level(reference, self._level(), batch.get(SAMPLE_WEIGHT))
                masses[id(batch)] = levelled.sum().to(self.args.device)
        # Labels that an override makes may be missing on some processes only; all of them have to come to the reduction.
        missing = len(masses) < len(batch_samples)
        total = (
            torch.full((), math.nan, device=self.args.device)
            if missing
            else torch.stack(list(masses.values())).sum()
        )
        total = at_least_one_item(self.accelerator.reduce(total, reduction="sum"))
        if missing:
            return None
        if self._why_not_counted() is not None:
            # NaN if another process misses them: any number will do that is the same on every process.
            total = total.nan_to_num(self._step_size)
        self._counted = masses, total
        return total

    def _reference_ahead(self, source: HeadLosses, batch: Any) -> Tensor | None:
        """The items of a batch before its loss is asked for; None where its labels are yet to be made by an override."""
        return source.reference(batch) if self._why_not_counted() is None else source.reference_ahead(batch)

    @property
    def _number_is_used(self) -> bool:
        """Whether the number of a step's items is used: where there are several micro-batches, or by an override."""
        return self._is_cut or any(map(self._overrides, _SEES_THE_NUMBER))

    # --- one micro-batch --------------------------------------------------------------------------------------------

    @property
    def loss_is_scaled_for_ga(self) -> bool | None:
        """Tells the Trainer that the loss is already divided by the items of the whole optimizer step."""
        if self._loss_calls and self._loss_calls[-1].losses:
            self._loss_calls[-1].scale_known = True
            return True
        of_instance = vars(self).get("loss_is_scaled_for_ga")
        return super().loss_is_scaled_for_ga if of_instance is None else of_instance

    @loss_is_scaled_for_ga.setter
    def loss_is_scaled_for_ga(self, value: bool | None) -> None:
        # Of a loss that is the Trainer's own, or that of a class behind.
        vars(self)["loss_is_scaled_for_ga"] = value

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch forward and backward; after a step's last one, its gradients get their exact scale.

        Raises:
            NotImplementedError: an override takes this package's part of the step out of the way, or does something
                to it that cannot be exact in this set-up; the message names the override and what to do.
        """
        if self._loss_source() is None:
            self._refuse_sample_weights(inputs)
            return super().training_step(model, inputs, num_items_in_batch)
        total: Tensor | int | None
        masses, total = self._counted or ({}, None)
        rescales = self._rescales or (self._accumulates and total is None)
        self._check_once_a_micro_batch(model, rescales)
        self._check_parts(self._passes, inputs, "training_step")
        mass = masses.get(id(inputs))
        if rescales:
            # Any number that is the same on every process will do where the gradients are rescaled afterwards.
            mass, total = None, self._step_size if total is None else total
        elif total is not None and self._why_not_counted() is not None:
            mass = total = None
        self._scale_pending = rescales
        with ExitStack() as stack:
            calls = stack.enter_context(self._loss_calls_counted(inputs, mass, total))
            if rescales and total is not None:
                if not self._step_is_open or self._pending is None:
                    self._pending = PendingGradients(model, self._kept_optimizers())
                if self.is_fsdp_enabled:
                    self._check_pending()  # its forward pass puts the gradients elsewhere
                stack.enter_context(self._rescaled_after_backward(calls, total))
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._check_gradients_accumulate()
        self._check_calls(calls)
        if rescales:
            loss = self._rescaled_loss(loss)
        self._step_is_open = not self.accelerator.sync_gradients
        if not self._step_is_open:
            self._counted = None
            self._step_finished = self._steps_begun
        return loss

    def _kept_optimizers(self) -> list[Any]:
        """The Trainer's optimizer, and those that the user's class keeps on the Trainer beside it."""
        return [
            value for name, value in vars(self).items() if name == "optimizer" or isinstance(value, Optimizer)
        ]

    def _check_pending(self) -> None:
        """Raise where others changed the gradients that will be rescaled, unless it may be by 1."""
        assert self._pending is not None
        if not (self._pending.of_others or self._pending.changed()):
            return
        # The items were counted, and it is an override that may change them: the scale is 1 unless it does.
        self._pending.of_others = True
        if self._counted is None:
            raise self._gradients_of_others()

    def _gradients_of_others(self) -> NotImplementedError:
        overrides = [*self._overrides("training_step"), *self._overrides("compute_loss")]
        return NotImplementedError(
            f"{overrides[0].name if overrides else 'A callback or hook'} changes gradients (by a backward pass of its own, or "
            "in place) before the last backward pass of an accumulated step, whose gradients are rescaled after it because of "
            f"{self._needs_rescaling()}, those of others with them: add a penalty to what "
            "super().compute_loss returns in compute_loss; or change gradients after super().training_step, once a step, "
            "where self.accelerator.sync_gradients is true; or set gradient_accumulation_steps=1 (and raise "
            "per_device_train_batch_size)."
        )

    @contextmanager
    def _rescaled_after_backward(self, calls: list[LossCall], total: Tensor | int) -> Iterator[None]:
        """Inside, a backward pass that is the step's last gives the gradients their exact scale.

        Not later, so that overrides of `training_step` see the gradients that the optimizer will see.
        """
        backward, pending = self.accelerator.backward, self._pending
        assert pending is not None

        done = False

        def backward_and_rescale(*args: Any, **kwargs: Any) -> None:
            nonlocal done
            # The first one after the loss was asked for is the Trainer's; others may stand behind this package.
            if done or len(calls) != 1 or calls[0].mass is None:
                backward(*args, **kwargs)
                return
            done = True
            if not self.is_fsdp_enabled:
                self._check_pending()
            pending.backward(lambda: backward(*args, **kwargs))
            self._step_mass = self._step_mass + calls[0].mass / total
            if self.accelerator.sync_gradients:
                mass = self.accelerator.reduce(self._step_mass, reduction="sum")
                self._step_factor = torch.where(mass > 0, 1 / mass, 1.0)
                # Asked of the device only where there are gradients of others.
                if pending.of_others and not math.isclose(self._step_factor.item(), 1.0, rel_tol=1e-5):
                    raise self._gradients_of_others()
                pending.rescale(self._step_factor)
                self._scale_pending, self._pending = False, None

        with set_on(self.accelerator, "backward", backward_and_rescale):
            yield

    @contextmanager
    def _loss_calls_counted(
        self, batch: Any, mass: Tensor | None, num_items: Tensor | int | None
    ) -> Iterator[list[LossCall]]:
        """Inside, what the outermost `compute_loss` returns is multiplied by the micro-batch's share of the step."""
        compute_loss, passes = self.compute_loss, Passes(batch)
        calls: list[LossCall] = []

        def share_of_step(model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if self._loss_call is not None:
                return compute_loss(model, inputs, *args, **kwargs)
            self._check_parts(passes, inputs, "training_step")
            gives_number = len(args) > 1 or "num_items_in_batch" in kwargs
            # Means over this batch are what is multiplied by its share.
            kwargs = {**kwargs, "num_items_in_batch": None} if "num_items_in_batch" in kwargs else kwargs
            self._loss_call = call = LossCall(mass, inputs)
            try:
                returned = compute_loss(model, inputs, *args[:1], *(None for _ in args[1:]), **kwargs)
            except Exception as error:
                if gives_number:
                    self._check_failure(error, call)
                raise
            finally:
                self._loss_call = None
            calls.append(call)
            if not call.losses:
                return returned
            loss, *outputs = returned if isinstance(returned, tuple) else (returned,)
            call.watch(loss)
            if self._is_cut or loss is not call.losses[-1]:
                loss = loss * self._share(call, num_items)
            return (loss, *outputs) if outputs else loss

        self._loss_calls = calls
        try:
            with set_on(self, "compute_loss", share_of_step):
                yield calls
        finally:
            self._loss_calls = None

    @property
    def _step_size(self) -> int:
        """Samples of a full optimizer step."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def _share(self, call: LossCall, num_items: Tensor | int | None) -> Tensor:
        mass = call.mass
        assert mass is not None
        if num_items is None:
            num_items = at_least_one_item(self.accelerator.reduce(mass, reduction="sum"))
        # Wrappers average the gradients over the processes; num_items counts the items of all of them.
        return mass * self.accelerator.num_processes / num_items

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
        if self._trains_by_itself and torch.is_grad_enabled():
            if self._accumulates:
                raise self._loss_by_itself()
            num_items = at_least_one_item(self.accelerator.reduce(mass, reduction="sum"))
        if num_items is None:
            return mean
        return mean * mass * self.accelerator.num_processes / num_items

    @property
    def _trains_by_itself(self) -> bool:
        """Whether a `training_step` of the user's is under way, with a loss that is not asked for by this package's."""
        return self._in_training_step and self._loss_calls is None and bool(self._overrides("training_step"))

    def _rescaled_loss(self, loss: Tensor) -> Tensor:
        so_far = self._step_loss
        self._step_loss = so_far + loss
        if not self.accelerator.sync_gradients:
            return loss
        # The Trainer sums what training_step returns over the step: make that sum the rescaled objective.
        corrected = self._step_loss * self._step_factor - so_far
        self._reset_step()
        return corrected

    def _reset_step(self) -> None:
        self._counted = self._pending = None
        self._step_mass = torch.zeros((), device=self.args.device)
        self._step_loss = torch.zeros((), device=self.args.device)


def at_least_one_item(mass: Tensor) -> Tensor:
    """`mass`, but 1 where it is 0, so that a step without items has loss 0 and not 0 / 0."""
    return mass.masked_fill(mass <= 0, 1.0)
