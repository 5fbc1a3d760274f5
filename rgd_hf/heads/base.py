"""The interface of a head, and helpers that heads share."""

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Inputs = Mapping[str, Any]
"""A batch as it goes to the model, labels included."""


def _nothing_to_prepare(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    return {}


def _no_auxiliary_loss(
    outputs: Any, config: Any, model: nn.Module, router_coefficient: float | None = None
) -> Tensor | None:
    return None


def _nothing_to_check(inputs: Inputs, config: Any) -> None:
    return None


@dataclass(frozen=True)
class Head:
    """How a kind of model head turns a batch into unreduced losses.

    Attributes:
        name: name of the head in messages, e.g. `"sequence classification"`.
        label_names: the batch columns that are withheld from the model's forward and used here instead. Every batch
            must have them.
        valid: `(inputs, config) -> bool [batch] or [batch, items]`: the items that have a loss. Reads the batch
            alone, no model output.
        losses: `(outputs, inputs, config, label_smoothing) -> float32`, of the shape of `valid`, 0 where not valid.
            `outputs` is what the model's forward returned when the labels were withheld; `inputs` still has them.
        token_level: items are `[batch, items]` (tokens, pixels) and the model's own loss is their mean, so that
            `"token"` is the default level; otherwise there is one loss per sample and `"sample"` is the only level.
        check: `(inputs, config) -> None`; raises a `ValueError` that explains why labels do not fit the model. Called
            once, on the first batch; the only one of these functions that may wait for the device.
        optional_label_names: columns withheld from the forward where a batch has them.
        prepare: `(model, inputs) -> dict`: further inputs that the forward needs when the labels are withheld, e.g.
            the decoder's input ids, which the model otherwise derives from the labels.
        auxiliary: `(outputs, config, model, router_coefficient=None) -> 0-dimensional Tensor or None`: the auxiliary loss
            that the model adds to the mean of the losses, times its coefficient (e.g. the load-balancing loss of a
            mixture of experts). It belongs to the batch, not to an item, so it is never weighted. `router_coefficient`
            takes the place of the model's own for a load-balancing loss.
        targets: `(inputs, config) -> Tensor [batch, items]`, for language models whose logits come from an output
            embedding: the token id that each of the last positions predicts, -100 where ignored, of the shape of
            `valid`; it allows computing the losses without logits. None for other heads.
        positions_after: number of positions after that of the last target, which predict nothing.
        classes: `(inputs, config) -> Tensor`: the class of each item for class weights, integers of the shape of
            `valid` (any value where not valid) or probabilities `[batch, classes]`; None if items have no class.
    """

    name: str
    label_names: tuple[str, ...]
    valid: Callable[[Inputs, Any], Tensor]
    losses: Callable[[Any, Inputs, Any, float], Tensor]
    token_level: bool = False
    check: Callable[[Inputs, Any], None] = _nothing_to_check
    optional_label_names: tuple[str, ...] = ()
    prepare: Callable[[nn.Module, Inputs], dict[str, Any]] = _nothing_to_prepare
    auxiliary: Callable[..., Tensor | None] = _no_auxiliary_loss
    targets: Callable[[Inputs, Any], Tensor] | None = None
    positions_after: int = 0
    classes: Callable[[Inputs, Any], Tensor] | None = None


def without_peft(model: Any) -> Any:
    """The transformers model inside a PEFT model; any other model unchanged."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def transformers_class(model: nn.Module) -> type | None:
    """The first class of transformers that `model` derives from; None where there is none."""
    return next((cls for cls in type(model).__mro__ if cls.__module__.startswith("transformers.")), None)


def logits_of(outputs: Any) -> Tensor:
    """The logits of a `ModelOutput`, dict or tuple that a forward without labels returned.

    Raises:
        ValueError: there are none.
    """
    if isinstance(outputs, Mapping):
        logits = outputs.get("logits")
    else:
        # In a tuple, a router's auxiliary loss (0-dimensional) stands in front of the logits.
        logits = outputs[0] if outputs[0].ndim > 0 else outputs[1]
    if logits is None:
        raise ValueError(
            "The model returned no logits (fused or chunked losses do not compute them), so its losses per sample "
            "cannot be computed. Turn the fused loss off (for Liger: use_liger_kernel=False or "
            "fused_linear_cross_entropy=False; for TRL: loss_type='nll')."
        )
    return logits


def replace_logits(outputs: Any, tensor: Tensor | None) -> Any:
    """`outputs` with `tensor` where `logits_of` finds the logits; with None a tuple loses that element."""
    if isinstance(outputs, MutableMapping):
        outputs["logits"] = tensor
        return outputs
    at = 0 if outputs[0].ndim > 0 else 1
    return (*outputs[:at], *([] if tensor is None else [tensor]), *outputs[at + 1 :])


def check_class_indices(
    labels: Tensor, ignored: int, num_classes: int | None, what: str, remedy: str
) -> None:
    """Raise `ValueError` unless every label is `ignored` or from 0 to `num_classes - 1`.

    Args:
        labels: class indices, any shape.
        ignored: the label of items without a loss.
        num_classes: number of classes; None if it is not known before the forward pass.
        what: name of the classes in the message, e.g. `"token ids"`.
        remedy: a sentence on what to do.
    """
    if labels.is_floating_point():
        raise ValueError(f"Labels are {labels.dtype}, but must be integer indices of {what}. {remedy}")
    real = labels[labels != ignored]
    if not real.numel():
        return
    low, high = int(real.min()), int(real.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        allowed = "0 or more" if num_classes is None else f"between 0 and {num_classes - 1}"
        raise ValueError(
            f"The first batch has labels from {low} to {high}, but they must be {allowed} ({what}), or {ignored} "
            f"to be ignored. {remedy}"
        )
