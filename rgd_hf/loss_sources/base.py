"""Unreduced losses of a batch: what a user's function or method returns, and what a source makes of it."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from torch import Tensor

PerSampleLossFn = Callable[[Any, Any], Tensor | tuple[Tensor, Tensor]]


class PerSampleLosses(NamedTuple):
    """What `compute_per_sample_losses` returns for one batch.

    Attributes:
        losses: unreduced losses, one element per item: `[batch]`, or `[batch, tokens]` for a loss per token.
        outputs: the model's outputs, for `compute_metrics`: a tensor, dict, dataclass, tuple or list. A 0-dimensional first
            element of a tuple or list is taken for the model's own loss and left out, fields of a dataclass that are None too.
            None for no outputs; metrics see no outputs of an object of another kind either.
        valid: bool mask of the shape of `losses`, true for the items that count; None if all do.
        auxiliary: 0-dimensional loss of the batch as a whole, which is added to the (weighted) mean of the losses and
            is never weighted itself, e.g. a penalty on the parameters or on the batch's features; None for none.
    """

    losses: Tensor
    outputs: Any
    valid: Tensor | None = None
    auxiliary: Tensor | None = None


class BatchLosses(NamedTuple):
    """The result of one forward pass.

    Attributes:
        outputs: outputs of the model, which was called without labels.
        losses: unreduced losses, `[batch]` or `[batch, tokens]`; exactly 0 where not valid.
        valid: bool of the same shape, the items that have a loss.
        reference: float32 of the same shape: class weights, 0 where not valid.
        auxiliary: 0-dimensional loss that the model adds to the mean of its losses, or None.
    """

    outputs: Any
    losses: Tensor
    valid: Tensor
    reference: Tensor
    auxiliary: Tensor | None = None


def by_name(outputs: Any) -> Any:
    """A model's outputs, a dict if they have names: those of a dataclass are its fields that are not None."""
    if isinstance(outputs, dict):
        return outputs
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if not is_dataclass(outputs):
        return outputs
    values = ((field.name, getattr(outputs, field.name)) for field in fields(outputs))
    return {name: value for name, value in values if value is not None}
