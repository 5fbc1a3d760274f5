"""The losses of a user's function, or of a subclass's method."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchFeature
from transformers.utils import find_labels

from rgd_hf.batches.columns import SAMPLE_WEIGHT, WithColumns
from rgd_hf.items import check_columns, columns_of, token_reference, zero_uncounted
from rgd_hf.loss_sources.base import BatchLosses, PerSampleLosses, PerSampleLossFn, by_name
from rgd_hf.loss_sources.head import HeadLosses
from rgd_hf.loss_sources.unmasked import not_ignored


class _Broadcasts:
    """Notices losses of every sample with the labels of all others, in the first batch of more than one sample."""

    name: str
    _checked = False

    def _check_pairs(self, losses: Any, valid: Tensor | None, labels: Any, outputs: Any) -> None:
        """Raise `ValueError` where labels `[batch]`, `[batch, 1]` or `[batch, items]` have losses with the batch twice.

        Not where the model's outputs have that shape: a loss of each sample for each class, of as many classes as samples.
        """
        if self._checked or not isinstance(losses, Tensor) or not isinstance(labels, Tensor):
            return
        samples, of_each = (len(labels), labels.shape[1:]) if labels.dim() else (0, ())
        if samples < 2:
            return
        each_with_all = [(samples, samples, *of_each), (samples, samples, *(n for n in of_each if n > 1))]
        of_outputs = any(isinstance(one, Tensor) and one.shape == losses.shape for one in _elements(outputs))
        if valid is None and tuple(losses.shape) in each_with_all and not of_outputs:
            raise ValueError(
                f"{self.name} returned losses of shape {list(losses.shape)} for labels of shape {list(labels.shape)}: those of "
                "each sample with the labels of all others, as where [batch, 1] meets [batch]. Give outputs and labels "
                "the same shape first (logits.squeeze(-1)). Where there is a loss for each of these, return a bool mask "
                "of their shape as well (after the outputs, from a method), true for those that count."
            )
        # Later, a batch may happen to have as many samples as its losses have columns.
        self._checked = True


class CustomLosses(_Broadcasts):
    """The losses of a `per_sample_loss_fn`; how many items there are is known only after the forward pass.

    Args:
        function: `(outputs, labels) -> losses`, or `-> (losses, valid)`.
        label_names: columns of the batch that go to `function`, and not to the model but for those that are inputs of it.
        model: the model without wrappers.
    """

    name = "per_sample_loss_fn"
    token_level = True

    def __init__(self, function: PerSampleLossFn, label_names: Sequence[str], model: Any):
        self.function, self.label_names = function, label_names
        self.withheld = withheld_columns(label_names, model)
        self._first = True

    def run(
        self, model: nn.Module, inputs: Mapping[str, Any], label_smoothing: float, logits: bool = True
    ) -> BatchLosses:
        """One forward pass of `model` without labels; `function` may always look at the logits.

        Raises:
            ValueError: `function` did not return unreduced losses, or its mask does not fit them; or it failed on
                a batch without label columns, or its first batch has labels of -100 and it is not clear which losses
                count.
        """
        check_columns(inputs, self.name)
        labels = {name: inputs[name] for name in self.label_names if name in inputs}
        withheld = {*self.withheld, SAMPLE_WEIGHT}
        outputs = model(**{k: v for k, v in inputs.items() if k not in withheld})
        try:
            returned = self.function(
                outputs, labels if len(labels) > 1 else next(iter(labels.values()), None)
            )
        except Exception as error:
            if labels:
                raise
            raise ValueError(
                f"per_sample_loss_fn failed with labels=None ({type(error).__name__}: {error}): of the label columns "
                f"{list(self.label_names)} the batch has none, only {', '.join(sorted(inputs))}. Name the columns "
                "that hold the labels: TrainingArguments(label_names=[...])."
            ) from error
        losses, valid = returned if isinstance(returned, tuple) else (returned, None)
        self._check_pairs(losses, valid, _only(labels), outputs)
        outputs = _without_loss(outputs, given_labels=not labels.keys() <= withheld)
        first, self._first = self._first, False
        return checked_losses(PerSampleLosses(losses, outputs, valid), self.name, labels, first)


class MovableBatch(WithColumns):
    """A batch for a loss of the user's, which may move it as it moves those of tokenizers and feature extractors.

    Not for the Trainer's own code, which leaves it to whatever has a `to` to move itself.
    """

    def to(self, *args: Any, **kwargs: Any) -> "MovableBatch":
        """Move the tensors in place, further columns included, and return the batch; a dtype is for floating point."""
        for values in (self, self.columns):
            values.update(BatchFeature(dict(values)).to(*args, **kwargs))
        return self


class OverriddenLosses(_Broadcasts):
    """The losses of a subclass's `compute_per_sample_losses`; their number is known only after the forward pass.

    Args:
        method: `(model, inputs) -> PerSampleLosses` or a tuple of its first elements; bound.
        name: name of the method, with its class.
        default: the loss source that the method of `ReweightingMixin` would use, or None; knows the items' classes.
        label_names: columns of the batch that hold labels.
    """

    token_level = True

    def __init__(
        self,
        method: Callable[..., Any],
        name: str,
        default: HeadLosses | CustomLosses | None,
        label_names: Sequence[str],
    ):
        self.method, self.name, self.default, self.label_names = method, name, default, label_names
        self.default_used = False
        self._first = True

    def run(
        self, model: nn.Module, inputs: Mapping[str, Any], label_smoothing: float, logits: bool = True
    ) -> BatchLosses:
        """One call of the method, which may always look at the logits.

        Raises:
            ValueError: it did not return unreduced losses, or ignores a setting that only the default applies.
        """
        self.default_used = False
        given = inputs
        if isinstance(inputs, Mapping):
            given = MovableBatch(inputs, getattr(inputs, "columns", {}))
            given.pop(SAMPLE_WEIGHT, None)
        returned = self.method(model, given)
        if isinstance(returned, Tensor) or not isinstance(returned, tuple) or not 2 <= len(returned) <= 4:
            found = f"a tuple of {len(returned)}" if isinstance(returned, tuple) else type(returned).__name__
            raise ValueError(
                f"{self.name} returned {found}: return (losses, outputs), or (losses, outputs, valid), or a "
                "rgd_hf.PerSampleLosses."
            )
        if not self.default_used:
            for setting, in_use in (
                ("label_smoothing_factor", label_smoothing),
                ("per_sample_loss_fn", isinstance(self.default, CustomLosses)),
            ):
                if in_use:
                    raise ValueError(
                        f"{setting} does not reach {self.name}, which does not call super(): apply it there and "
                        "leave the setting out, or call super().compute_per_sample_losses(model, inputs)."
                    )
        first, self._first = self._first, False
        own, columns = PerSampleLosses(*returned), columns_of(inputs)
        labels = {name: columns[name] for name in (*self.label_names, "labels") if name in columns}
        self._check_pairs(own.losses, own.valid, _only(labels), own.outputs)
        own = own._replace(outputs=_without_loss(own.outputs))
        batch = checked_losses(own, self.name, labels, first)
        if not isinstance(self.default, HeadLosses) or self.default.class_weights is None:
            return batch
        return batch._replace(reference=self.default.reference_of(batch.valid, inputs, self.name))


def checked_losses(
    returned: PerSampleLosses, by: str, labels: Mapping[str, Any] = {}, first: bool = False
) -> BatchLosses:
    """Raise `ValueError` unless `returned` has unreduced losses, and a mask that fits them if any.

    Without a mask, losses of 0 whose label is -100 do not count, as in `cross_entropy`.

    Args:
        returned: losses that a user's function returned.
        by: name of the function in messages.
        labels: the labels that it was given, by the names of their columns.
        first: whether this is its first batch, where the host may wait for the device.
    """
    losses, outputs, valid, auxiliary = returned
    if not isinstance(losses, Tensor) or losses.dim() == 0:
        if losses is None:
            raise ValueError(
                f"{by} returned None. The model is called without labels, so that outputs.loss is None: compute the losses from "
                "outputs.logits and the labels, unreduced, one element per sample or token (`reduction='none'` in torch)."
            )
        found = repr(losses)
        if isinstance(losses, Tensor):
            found = "a 0-dimensional loss, one already reduced over the batch"
        raise ValueError(
            f"{by} returned {found}. Weighting it would only rescale the step: return the "
            "unreduced losses, one element per sample or token (`reduction='none'` in torch)."
        )
    if valid is None:
        valid = not_ignored(losses, labels, by, first)
    all_valid = valid is None
    if valid is None:
        valid = torch.ones_like(losses, dtype=torch.bool)
    if valid.dtype != torch.bool or valid.shape != losses.shape:
        raise ValueError(
            f"{by} returned losses of shape {list(losses.shape)} with a mask of shape "
            f"{list(valid.shape)} and {valid.dtype}: the mask must be bool and of the same shape."
        )
    if auxiliary is not None and (not isinstance(auxiliary, Tensor) or auxiliary.dim() != 0):
        raise ValueError(
            f"{by} returned an auxiliary loss that is not a 0-dimensional tensor: it belongs to the batch as a whole. "
            "Add what belongs to a sample to its loss."
        )
    reference = token_reference(valid)
    losses = losses if all_valid else zero_uncounted(losses, reference)
    return BatchLosses(outputs, losses, valid, reference, auxiliary)


def _elements(outputs: Any) -> list[Any]:
    outputs = by_name(outputs)
    if isinstance(outputs, dict):
        return list(outputs.values())
    return list(outputs) if isinstance(outputs, tuple | list) else [outputs]


def _only(labels: Mapping[str, Any]) -> Any:
    """The labels, where there is one column of them."""
    return next(iter(labels.values())) if len(labels) == 1 else None


def _without_loss(outputs: Any, given_labels: bool = True) -> Any:
    """The outputs of a model without the loss that stands first in a tuple or list of them, or the None in its place."""
    if isinstance(outputs, tuple | list) and outputs:
        first = outputs[0]
        if first is None or (given_labels and isinstance(first, Tensor) and first.dim() == 0):
            return tuple(outputs[1:])
    return outputs


def withheld_columns(label_names: Sequence[str], model: Any) -> set[str]:
    """Those of `label_names` that are not inputs of the model, which a loss may need as well (masks, pixels).

    Models of transformers call all labels by such names. In the forward of others, nothing tells labels from inputs but
    that the model cannot do without.
    """
    parameters = inspect.signature(model.forward).parameters
    if type(model).forward.__module__.startswith("transformers."):
        inputs = parameters.keys() - set(find_labels(type(model)))
    else:
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        inputs = {p.name for p in parameters.values() if p.kind in kinds and p.default is p.empty}
        main = getattr(model, "main_input_name", None)
        inputs |= {main} if isinstance(main, str) else set()
    return set(label_names) - inputs
