"""Where un-reduced losses come from: the head that the model is known to have, or a function of the user's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rgd_hf import class_weights as classes
from rgd_hf.data import SAMPLE_WEIGHT
from rgd_hf.heads import Head, bare_model, find_head
from rgd_hf.weighting import token_reference

PerSampleLossFn = Callable[[Any, Any], Tensor | tuple[Tensor, Tensor]]


class BatchLosses(NamedTuple):
    """What one forward pass gave.

    Attributes:
        outputs: of the model, run without its labels.
        losses: un-reduced, `[batch]` or `[batch, tokens]`.
        valid: bool of the same shape, the items that have a loss.
        reference: float32 of the same shape: class weights, 0 where not valid.
        auxiliary: 0-dimensional loss that the model adds to the mean of its losses, or None.
    """

    outputs: Any
    losses: Tensor
    valid: Tensor
    reference: Tensor
    auxiliary: Tensor | None = None


class HeadLosses:
    """The losses of a head that the library knows; its items can be counted before the forward pass.

    Args:
        head: of `find_head`.
        model: the bare model, without wrappers.
        class_weights: float32 `[classes]`, or None.
    """

    counted_ahead = True

    def __init__(self, head: Head, model: nn.Module, class_weights: Tensor | None):
        self.head, self.model, self.class_weights = head, model, class_weights
        self.name, self.token_level = head.name, head.token_level
        self._checked = False

    def valid(self, inputs: Mapping[str, Any]) -> Tensor:
        """The items of a batch that have a loss, bool `[batch]` or `[batch, tokens]`.

        Raises:
            ValueError: a label column is missing, or (checked on the first batch) labels do not fit the model.
        """
        missing = [name for name in self.head.label_names if inputs.get(name) is None]
        if missing:
            raise ValueError(
                f"{self.name} needs {', '.join(map(repr, missing))} in every batch, but this batch has only "
                f"{', '.join(sorted(inputs))}. Check the dataset's columns, the data collator and `label_names`."
            )
        if not self._checked:
            self.head.check(inputs, self.model.config)
            self._checked = True
        return self.head.valid(inputs, self.model.config)

    def reference(self, inputs: Mapping[str, Any]) -> Tensor:
        """Weight of each item before any re-weighting: its class weight, 0 where it has no loss; float32."""
        return self._reference(self.valid(inputs), inputs)

    def _reference(self, valid: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        if self.class_weights is None or self.head.classes is None:
            return token_reference(valid)
        item_classes = self.head.classes(inputs, self.model.config)
        return token_reference(valid, classes.weight_of_items(item_classes, self.class_weights))

    def run(self, model: nn.Module, inputs: Mapping[str, Any], label_smoothing: float) -> BatchLosses:
        """One forward pass of `model`, the wrapped model of training, without labels."""
        head, config = self.head, self.model.config
        valid = self.valid(inputs)
        reference = self._reference(valid, inputs)
        withheld = {*head.label_names, *head.optional_label_names, SAMPLE_WEIGHT}
        forward = {k: v for k, v in inputs.items() if k not in withheld}
        outputs = model(**forward, **head.prepare(self.model, inputs))
        losses = head.losses(outputs, inputs, config, label_smoothing)
        auxiliary = head.auxiliary(outputs, config, self.model)
        return BatchLosses(outputs, losses, valid.to(losses.device), reference.to(losses.device), auxiliary)


class CustomLosses:
    """The losses of a `per_sample_loss_fn`; how many items there are is known only after the forward pass.

    Args:
        function: `(outputs, labels) -> losses`, or `-> (losses, valid)`.
        label_names: columns of the batch that go to `function` and not to the model.
    """

    counted_ahead = False
    name = "per_sample_loss_fn"
    token_level = True

    def __init__(self, function: PerSampleLossFn, label_names: Sequence[str]):
        self.function, self.label_names = function, label_names

    def run(self, model: nn.Module, inputs: Mapping[str, Any], label_smoothing: float) -> BatchLosses:
        """One forward pass of `model` without labels.

        Raises:
            ValueError: `function` returned no un-reduced losses, or a mask that does not fit them.
        """
        labels = {name: inputs[name] for name in self.label_names if name in inputs}
        outputs = model(**{k: v for k, v in inputs.items() if k not in labels and k != SAMPLE_WEIGHT})
        returned = self.function(outputs, labels if len(labels) > 1 else next(iter(labels.values()), None))
        losses, valid = returned if isinstance(returned, tuple) else (returned, None)
        if not isinstance(losses, Tensor) or losses.dim() == 0:
            found = repr(losses)
            if isinstance(losses, Tensor):
                found = "a 0-dimensional loss, one already reduced over the batch"
            raise ValueError(
                f"per_sample_loss_fn returned {found}. Weighting it would only rescale the step: return the "
                "un-reduced losses, one element a sample or token (`reduction='none'` in torch)."
            )
        if valid is None:
            valid = torch.ones_like(losses, dtype=torch.bool)
        if valid.dtype != torch.bool or valid.shape != losses.shape:
            raise ValueError(
                f"per_sample_loss_fn returned losses of shape {list(losses.shape)} with a mask of shape "
                f"{list(valid.shape)} and {valid.dtype}: the mask must be bool and of the same shape."
            )
        return BatchLosses(outputs, losses, valid, token_reference(valid))


def find_loss_source(
    model: Any,
    per_sample_loss_fn: PerSampleLossFn | None,
    label_names: Sequence[str],
    class_weights: str | None,
    train_dataset: Any,
    device: torch.device,
) -> HeadLosses | CustomLosses | None:
    """What un-reduces the losses of `model` (unwrapped, but a PEFT model as it is); None where nothing does.

    Args:
        model: the model.
        per_sample_loss_fn: goes before the head that the model is known to have.
        label_names: columns that go to `per_sample_loss_fn` and not to the model.
        class_weights: `"balanced"`, numbers joined by commas, or None.
        train_dataset: whose labels `"balanced"` counts.
        device: of the class weights.

    Raises:
        ValueError: class weights for items without classes, or as for `class_weights_of`.
    """
    head = None if per_sample_loss_fn is not None else find_head(model)
    if class_weights is not None and (per_sample_loss_fn is not None or (head and head.classes is None)):
        raise ValueError(
            "class_weights need a head with a class for every item (classification, token classification, semantic "
            "segmentation). Give the samples a sample_weight column, or weight the losses inside a "
            "per_sample_loss_fn."
        )
    if per_sample_loss_fn is not None:
        return CustomLosses(per_sample_loss_fn, label_names)
    if head is None:
        return None
    bare = bare_model(model)
    weights = None
    if class_weights is not None:
        num_labels = bare.config.num_labels
        weights = classes.class_weights_of(class_weights, num_labels, train_dataset, *head.label_names)
    return HeadLosses(head, bare, None if weights is None else weights.to(device))
