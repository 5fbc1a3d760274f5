"""What a user's code does to an optimizer step that this package cannot make exact: noticed, and refused by name."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from transformers.trainer_pt_utils import find_batch_size

from rgd_hf.batches.columns import SAMPLE_WEIGHT
from rgd_hf.items import columns_of
from rgd_hf.overrides import Override, all_overrides, set_on

if TYPE_CHECKING:
    from rgd_hf.loss_sources.trainer import PerSampleLossesMixin as TrainerBase
    from rgd_hf.weightings import Weighting
else:
    TrainerBase = object

_ONE_BATCH = "set gradient_accumulation_steps=1 (and raise per_device_train_batch_size)"
_UNREDUCED = (
    "rename it to compute_per_sample_losses(self, model, inputs) and return (losses, outputs) with the losses before any "
    "reduction; or add to what super().compute_loss returns"
)


class Passes:
    """The passes that a user's code makes over one batch.

    Args:
        inputs: the batch.
    """

    def __init__(self, inputs: Any):
        self.size = find_batch_size(inputs)
        self.largest = 0
        self.number = 0

    def in_parts(self, inputs: Any) -> bool:
        """Whether with this one there are several, all over fewer samples than the batch has."""
        self.number += 1
        self.largest = max(self.largest, find_batch_size(inputs) or 0)
        return self.number > 1 and self.size is not None and 0 < self.largest < self.size


class LossCall:
    """One call of the outermost `compute_loss`, by whoever runs the backward pass.

    Attributes:
        mass: 0-dimensional sum of the (reference) weights of the batch's items; None until known.
        reached: whether this package's `compute_loss` was called in it.
        losses: what that returned, once or several times.
        scale_known: whether the caller has since asked whether the loss is scaled (`loss_is_scaled_for_ga`).
        used: whether the backward pass came to one of `losses`.
        passes: that it makes over the batch.
    """

    def __init__(self, mass: Tensor | None, inputs: Any):
        self.mass = mass
        self.passes = Passes(inputs)
        self.reached = False
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


class StepGuardMixin(TrainerBase):
    """Refuses what would take this package's part of a step out of the way, or would not hold exactly."""

    # The calls of compute_loss in this package's training_step, and the one under way; None outside of it.
    _loss_calls: list[LossCall] | None = None
    _loss_call: LossCall | None = None
    # Whether the outermost training_step of a training is under way.
    _in_training_step = False
    # The passes of the outermost training_step under way.
    _passes: Passes | None = None
    # Whether the loss of this package was asked for since the step began.
    _weighed = False
    # Whether the gradients still lack the scale of the whole step.
    _scale_pending = False
    # Whether micro-batches of a step are still to come.
    _step_is_open = False
    _steps_begun = 0
    _step_finished = 0
    _counted: tuple[dict[int, Tensor], Tensor] | None = None
    _micro_batch: int

    if TYPE_CHECKING:
        weighting: Weighting

        def _columns_hidden_from(self, model: nn.Module, inputs: Any) -> AbstractContextManager[None]: ...

        def _count(self, batch_samples: list) -> Tensor | None: ...
        def _begin_step(self, batch_samples: list) -> None: ...

    def _overrides(self, method: str) -> list[Override]:
        """Overrides of `method` that this package has not looked at, the first that is called first."""
        return all_overrides(self, StepGuardMixin, method)

    @property
    def _accumulates(self) -> bool:
        return self.args.gradient_accumulation_steps > 1

    @property
    def _is_cut(self) -> bool:
        return self._accumulates or self.accelerator.num_processes > 1

    # --- around a training ------------------------------------------------------------------------------------------

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Inside, a training sees what its overrides make of batches, micro-batches and steps of an optimizer."""
        outermost_step, outermost_batches = self.training_step, self.get_batch_samples

        def training_step(model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            self._in_training_step, self._weighed = True, False
            self._passes = Passes(inputs)
            if not self._step_is_open and self._step_finished == self._steps_begun and self.unreduces_losses:
                self._begin_step([inputs])  # in a loop that asks for no number of items
            self._micro_batch += 1
            try:
                with self._columns_hidden_from(model, inputs):
                    loss = outermost_step(model, inputs, *args, **kwargs)
            finally:
                self._in_training_step, self._passes = False, None
            self._stop_if_not_weighed("training_step")
            return loss

        def get_batch_samples(*args: Any, **kwargs: Any) -> tuple[list, Any]:
            self._counted, begun = None, self._steps_begun
            batches, count = outermost_batches(*args, **kwargs)
            if self.unreduces_losses and self._overrides("get_batch_samples"):
                if count is not None and count is not (self._counted or (None, None))[1]:
                    raise self._refusal(
                        "get_batch_samples", "returns another number of items than was counted for the step",
                        "return the one of super().get_batch_samples, or None",
                    )  # fmt: skip
                # They may be others than were counted.
                count = self._count(batches)
            elif self._steps_begun == begun and self.unreduces_losses:
                self._count(batches)  # an override of _get_num_items_in_batch has a number of its own
            return batches, count

        with ExitStack() as stack:
            stack.enter_context(set_on(self, "training_step", training_step))
            stack.enter_context(set_on(self, "get_batch_samples", get_batch_samples))
            stack.callback(register_optimizer_step_pre_hook(self._before_optimizer_step).remove)
            yield

    def _before_optimizer_step(self, optimizer: Optimizer, *_: Any) -> None:
        if not self.unreduces_losses:
            return
        early = self._in_training_step and self._accumulates
        early = early and (self._scale_pending or not self.accelerator.sync_gradients)
        unweighed = not self._in_training_step and not self._weighed
        if not (early or unweighed) or not self._trains_the_model(optimizer):
            return
        if early:
            raise NotImplementedError(
                f"{type(optimizer).__name__} takes a step within {self._named('training_step', 'a training_step')} or its "
                f"backward pass, before the accumulated step is complete: {_ONE_BATCH}."
            )
        self._stop_if_not_weighed("_inner_training_loop")

    def _trains_the_model(self, optimizer: Optimizer) -> bool:
        assert self.model is not None
        of_model = {id(parameter) for parameter in self.model.parameters()}
        return any(
            id(parameter) in of_model for group in optimizer.param_groups for parameter in group["params"]
        )

    def _check_gradients_accumulate(self) -> None:
        """Raise where a micro-batch leaves no gradients, as where hooks take a step of their own with them."""
        if not self._accumulates or self.accelerator.sync_gradients:
            return
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return  # They have hooks of their own, and keep the gradients elsewhere.
        assert self.model is not None
        parameters = list(self.model.parameters())
        hooked = any(getattr(p, "_post_accumulate_grad_hooks", None) or p._backward_hooks for p in parameters)
        if hooked and all(parameter.grad is None for parameter in parameters):
            raise NotImplementedError(
                "The gradients of a micro-batch are gone after its backward pass, as where hooks on the parameters take "
                f"a step of their own, so that nothing accumulates: {_ONE_BATCH}."
            )

    # --- refusals ---------------------------------------------------------------------------------------------------

    def _named(self, method: str, otherwise: str) -> str:
        overrides = self._overrides(method)
        return overrides[0].name if overrides else otherwise

    def _refusal(self, method: str, does: str, remedy: str) -> NotImplementedError:
        return NotImplementedError(
            f"{self._named(method, f'{type(self).__name__}.{method}')} {does}: {remedy}."
        )

    def _loss_by_itself(self) -> NotImplementedError:
        return self._refusal(
            "training_step",
            "calls compute_loss by itself, so that the share of its loss in the accumulated step is not known",
            _ONE_BATCH,
        )

    def _miscounted(self, ahead: list[float], found: list[float]) -> NotImplementedError:
        head, source = self._head_ahead(), self._loss_source()
        assert source is not None
        expected, remedy = (
            "one for each sample",
            "return one loss for each sample and no mask, without samples whose label is -100",
        )
        if head is not None:
            expected, remedy = (
                f"those of {head.name}",
                "keep the labels, the shape of the losses and their mask",
            )
        changing = source.name if source is not head else self._named("compute_loss", "an override")
        if source is head and not self._overrides("compute_loss"):
            changing = self._named("training_step", self._named("_prepare_inputs", "an override"))
        return NotImplementedError(
            f"{self.weighting.method_name()} needs the items of a step before its forward passes, and where the step has "
            f"several micro-batches or processes it counts {expected}: {ahead} in this batch. The losses of {changing} are of "
            f"other items: {found}. Either {remedy}; or train on one process with gradient_accumulation_steps=1 (and raise "
            "per_device_train_batch_size), where the items are those of the losses."
        )

    def _check_parts(self, passes: Passes | None, inputs: Any, method: str) -> None:
        """Raise where a batch is divided, so that the means over its parts do not add up to the mean over it."""
        if passes is not None and passes.in_parts(inputs):
            raise self._refusal(
                method,
                "divides the batch and asks for the loss of each part, which is a mean over the part, so that the share of "
                "each in the step is not known",
                "leave the division to a smaller per_device_train_batch_size with more gradient_accumulation_steps, or do "
                "it in compute_per_sample_losses(self, model, inputs), which returns one loss per sample",
            )

    def _never_reached(self, why: str = "") -> NotImplementedError:
        # Where it may come to our loss, as on some condition, its own has no known scale either.
        left_alone = self._needs_weights and self._never_weighed() and not self._has_own_losses
        return self._refusal(
            "compute_loss",
            f"never reaches the loss of ReweightingMixin, so that nothing is re-weighted{why}",
            f"{_UNREDUCED}; or {self._without_weights}"
            if left_alone
            else f"{_UNREDUCED}; or, to train on its loss as it is, use the class without rgd_hf",
        )

    def _check_failure(self, error: Exception, call: LossCall) -> None:
        """Raise where an override fails on the None that this package gave it as the number of a step's items.

        Errors that have nothing to do with a None, and those that come out of this package's loss, are the user's.
        """
        if not call.reached and "NoneType" in str(error):
            raise self._never_reached(
                f" (it fails with {type(error).__name__}: {error}; num_items_in_batch is None here, as losses are means over "
                "a batch, which training_step multiplies by the batch's share of the step)"
            ) from error

    def _check_calls(self, calls: list[LossCall]) -> None:
        if not any(call.losses for call in calls):
            raise self._never_reached()
        if self._needs_weights and not all(call.used for call in calls if call.losses):
            raise self._refusal(
                "compute_loss",
                "calls super().compute_loss but returns a loss without the re-weighted one in it, so that nothing is "
                "re-weighted",
                f"{_UNREDUCED}; or {self._without_weights}",
            )
        if self._accumulates and (len(calls) > 1 or not calls[0].scale_known):
            raise self._loss_by_itself()

    def _check_once_a_micro_batch(self, model: nn.Module, rescales: bool) -> None:
        if rescales and self._steps_begun and self._step_finished == self._steps_begun:
            raise self._refusal(
                "training_step",
                "calls super().training_step more than once for a micro-batch, so that the gradients of the step were "
                "already rescaled",
                _ONE_BATCH,
            )
        if self._steps_begun or self._step_is_open:
            return
        if any(parameter.grad is not None for parameter in model.parameters()):
            loops = ("_run_epoch", "_inner_training_loop", "train")
            loop = next(
                (self._named(name, "") for name in loops if self._overrides(name)), "A loop of its own"
            )
            raise NotImplementedError(
                f"{loop} calls training_step for several batches before the optimizer's step, so that the share of "
                "each in the step is not known: clear the gradients before each call (model.zero_grad()), or leave the loop "
                "to the Trainer, with gradient_accumulation_steps."
            )

    def _stop_if_not_weighed(self, method: str) -> None:
        """Raise where the gradients of an optimizer step do not come from the loss of this package."""
        if self.unreduces_losses and self._needs_weights and not self._weighed:
            raise self._refusal(
                method,
                "takes its step without self.compute_loss, so that nothing is re-weighted",
                f"take the loss of self.compute_loss(model, inputs) in it, or {self._without_weights}",
            )

    def _refuse_sample_weights(self, inputs: Any) -> None:
        if SAMPLE_WEIGHT in columns_of(inputs):
            raise NotImplementedError(
                f"The batches have a column {SAMPLE_WEIGHT!r}, but the per-sample losses of this model are not known, so "
                "they cannot be weighted: override compute_per_sample_losses or pass per_sample_loss_fn (see "
                "docs/subclasses.md), or remove or rename the column."
            )
