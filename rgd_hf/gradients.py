"""Rescaling accumulated gradients once per optimizer step, before they are clipped."""

from collections.abc import Iterable
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

    Nothing is copied and no device waited for: a change shows in a tensor's identity and version counter.

    Args:
        model: its gradients are cleared before the step.
        optimizers: their parameters may lie outside the model (a head or a learnt loss weight kept on the Trainer), where
            gradients of earlier steps remain unless the user's code clears them.

    Attributes:
        of_others: whether others added to the gradients of the step; for the caller.
    """

    of_others = False

    def __init__(self, model: nn.Module, optimizers: Iterable[Any]):
        of_model = {id(parameter): parameter for parameter in model.parameters()}
        of_optimizers = {
            id(parameter): parameter
            for optimizer in optimizers
            for group in getattr(optimizer, "param_groups", ())
            for parameter in group["params"]
        }
        self._outside = [of_optimizers[key] for key in of_optimizers if key not in of_model]
        self._parameters = [*of_model.values(), *self._outside]
        self._seen: list[tuple[Tensor, int] | None] = [None] * len(self._parameters)
        self._earlier: list[tuple[nn.Parameter, Tensor]] | None = None

    def changed(self) -> bool:
        """Whether others changed gradients since the last backward pass of the step, or before the first; call it before each."""
        if self._earlier is None:
            self._earlier = [(p, p.grad) for p in self._outside if p.grad is not None]
            for parameter, _ in self._earlier:
                parameter.grad = None
        return any(
            gradient is not None if seen is None else gradient is not seen[0] or gradient._version != seen[1]
            for gradient, seen in zip((p.grad for p in self._parameters), self._seen)
        )

    def keep(self) -> None:
        """Remember them as they are after a backward pass of the step."""
        gradients = (parameter.grad for parameter in self._parameters)
        self._seen = [None if gradient is None else (gradient, gradient._version) for gradient in gradients]

    def rescale(self, factor: Tensor) -> None:
        """Multiply what the step added to the gradients by the 0-dimensional `factor`."""
        rescale_gradients(self._parameters, factor)
        for parameter, gradient in self._earlier or ():
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


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
