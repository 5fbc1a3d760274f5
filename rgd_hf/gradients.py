"""Rescaling accumulated gradients once per optimizer step, before they are clipped."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# These take their step inside the backward pass, when the scale of the whole step is not yet known.
_STEP_IN_BACKWARD = ("lomo", "adalomo")


@torch.no_grad()
def rescale_gradients(parameters: Iterable[nn.Parameter], factor: Tensor) -> None:
    """Multiply every gradient by the 0-dimensional `factor`, in place, without waiting for the device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        # A sharded gradient (FSDP2) is scaled where it lies; the factor is the same on every process.
        local = gradient.to_local() if hasattr(gradient, "to_local") else gradient
        if local.layout == torch.strided:
            by_device.setdefault(local.device, []).append(local)
        else:
            local.mul_(factor.to(local.device))
    for device, gradients in by_device.items():
        torch._foreach_mul_(gradients, factor.to(device))


class PendingGradients:
    """The gradients of an accumulated step whose scale is known only after its last micro-batch.

    Those of the model are not copied: a change shows in a tensor's identity and version counter. Of parameters outside it
    (a head or a learnt loss weight kept on the Trainer), what the step's backward passes add is kept apart, since the user's
    code may clear their gradients when it likes, or step with an optimizer of its own.

    Args:
        model: its gradients are cleared before the step, to None or to zeros.
        optimizers: their parameters may lie outside the model.

    Attributes:
        of_others: whether others added to the gradients of the step; for the caller.
    """

    def __init__(self, model: nn.Module, optimizers: Iterable[Any]):
        self._parameters = list(model.parameters())
        of_model = set(map(id, self._parameters))
        of_optimizers = {
            id(parameter): parameter
            for optimizer in optimizers
            for group in getattr(optimizer, "param_groups", ())
            for parameter in group["params"]
        }
        self._outside = [parameter for key, parameter in of_optimizers.items() if key not in of_model]
        self._added: dict[int, tuple[nn.Parameter, Tensor]] = {}
        self._seen: dict[int, tuple[Tensor, int]] = {}
        # Zeros are what some clear gradients to; nothing else is asked of the device.
        left = (parameter.grad for parameter in self._parameters)
        self.of_others = any(bool(gradient.any()) for gradient in left if gradient is not None)
        self._keep()

    def changed(self) -> bool:
        """Whether others changed gradients of the loss since its last backward pass, or before the first."""
        return any(self._is_changed(parameter) for parameter in self._parameters) or any(
            self._is_changed(parameter) for parameter, _ in self._added.values() if self._is_kept(parameter)
        )

    def backward(self, run: Callable[[], Any]) -> None:
        """A backward pass of the step: `run`."""
        before = [parameter.grad for parameter in self._outside]
        for parameter in self._outside:
            parameter.grad = None
        run()
        for parameter, gradient in zip(self._outside, before):
            added = parameter.grad
            if added is None:
                parameter.grad = gradient
                continue
            earlier = self._added.get(id(parameter))
            seen = self._seen.get(id(parameter))
            if earlier is None or seen is None or seen[0] is not gradient:  # cleared since
                self._added[id(parameter)] = parameter, added.clone()
            else:
                earlier[1].add_(added)
            if gradient is not None:
                parameter.grad = gradient.add_(added)
        self._keep()

    def rescale(self, factor: Tensor) -> None:
        """Multiply what the step added to the gradients by the 0-dimensional `factor`."""
        rescale_gradients(self._parameters, factor)
        for parameter, added in self._added.values():
            if self._is_kept(parameter):
                parameter.grad.add_(added * (factor.to(added.device) - 1))  # type: ignore[union-attr]

    def _keep(self) -> None:
        of_loss = [*self._parameters, *(parameter for parameter, _ in self._added.values())]
        self._seen = {id(p): (p.grad, p.grad._version) for p in of_loss if p.grad is not None}

    def _is_kept(self, parameter: nn.Parameter) -> bool:
        """Whether the gradient is still the tensor of the last backward pass, and was not cleared since."""
        return id(parameter) in self._seen and self._seen[id(parameter)][0] is parameter.grad

    def _is_changed(self, parameter: nn.Parameter) -> bool:
        gradient, seen = parameter.grad, self._seen.get(id(parameter))
        if gradient is None or seen is None:
            return gradient is not None or seen is not None
        return gradient is not seen[0] or gradient._version != seen[1]


def steps_in_backward(args: Any) -> bool:
    """Whether the optimizer takes its step inside the backward pass, so that every micro-batch is a step."""
    optimizer = _optimizer_name(args)
    return optimizer in _STEP_IN_BACKWARD or optimizer.endswith("layerwise")


def gradients_can_be_rescaled(args: Any, deepspeed: bool) -> bool:
    """Whether gradients can be rescaled between backward and clipping; arguments as in the next function."""
    return not deepspeed and not steps_in_backward(args)


def check_gradients_can_be_rescaled(args: Any, deepspeed: bool, asked_by: str) -> None:
    """Raise `ValueError` where the gradients of a step cannot be reached between backward and clipping.

    Args:
        args: the `TrainingArguments`.
        deepspeed: whether DeepSpeed owns the gradients.
        asked_by: the setting that needs the rescaling, for the message.
    """
    if deepspeed:
        raise ValueError(
            f"{asked_by} rescales the gradients once an accumulated optimizer step, but DeepSpeed partitions and "
            "reduces them inside its engine, so this cannot be exact. Leave it off (un-normalized re-weighting "
            "works with DeepSpeed), set gradient_accumulation_steps=1, or use DDP or FSDP."
        )
    if steps_in_backward(args):
        raise ValueError(
            f"{asked_by} rescales the gradients once an accumulated optimizer step, but optim="
            f"{_optimizer_name(args)!r} takes its step inside the backward pass. Set gradient_accumulation_steps=1, or "
            "choose another optimizer."
        )


def _optimizer_name(args: Any) -> str:
    return str(getattr(args.optim, "value", args.optim))
