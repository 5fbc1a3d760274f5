"""Where unreduced losses come from: the head of a known model class, or a user's function or method."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rgd_hf import class_weights as classes
from rgd_hf.data import SAMPLE_WEIGHT, WithColumns
from rgd_hf.heads import OWN_HEADS, FusedHead, Head, bare_model, doubt, find_head, hooks_on_outputs, verify
from rgd_hf.items import check_columns, columns_of, token_reference, zero_uncounted
from rgd_hf.unmasked_losses import not_ignored

PerSampleLossFn = Callable[[Any, Any], Tensor | tuple[Tensor, Tensor]]


class PerSampleLosses(NamedTuple):
    """What `compute_per_sample_losses` returns for one batch.

    Attributes:
        losses: unreduced losses, one element per item: `[batch]`, or `[batch, tokens]` for a loss per token.
        outputs: outputs of the model, for the metrics: all of a tensor, of the values of a dict, or of the elements of a
            tuple or list but for the model's own loss (0-dimensional) that may be the first; None for none.
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


class HeadLosses:
    """The losses of a head that the library knows; its items can be counted before the forward pass.

    Args:
        head: what `find_head` returned.
        model: the model without wrappers except PEFT's.
        class_weights: float32 `[classes]`, or None.
        router_coefficient: factor of the load-balancing loss of a mixture of experts; None for the model's own.
    """

    # Dtypes and dimensions of the labels that were checked: a check waits for the device.
    _checked: frozenset[tuple[tuple[torch.dtype, int], ...]] = frozenset()

    def __init__(
        self,
        head: Head,
        model: nn.Module,
        class_weights: Tensor | None,
        router_coefficient: float | None = None,
    ):
        self.head, self.unwrapped, self.class_weights = head, model, class_weights
        self.router_coefficient = router_coefficient
        self.model = bare_model(model)
        self.name, self.token_level = head.name, head.token_level
        self._smoothing_said = False
        self._known: frozenset[bool] = frozenset()  # training modes in which the model's loss is known
        self._fused_head = FusedHead(self.model, head.positions_after)

    def missing_labels(self, inputs: Mapping[str, Any]) -> list[str]:
        """The label columns that a batch lacks.

        Raises:
            ValueError: it has no columns.
        """
        check_columns(inputs, self.name)
        return [name for name in self.head.label_names if inputs.get(name) is None]

    def valid(self, inputs: Mapping[str, Any]) -> Tensor:
        """The items of a batch that have a loss, bool `[batch]` or `[batch, tokens]`.

        Raises:
            ValueError: a label column is missing, or labels do not fit the model (checked on the first batch, and on
                the first whose labels have another dtype or number of dimensions).
        """
        if missing := self.missing_labels(inputs):
            raise ValueError(
                f"{self.name} needs {', '.join(map(repr, missing))} in every batch, but this batch has only "
                f"{', '.join(sorted(inputs))}. Check the dataset's columns, the data collator and `label_names`."
            )
        layout = tuple((inputs[name].dtype, inputs[name].dim()) for name in self.head.label_names)
        if layout not in self._checked:
            self.head.check(inputs, self.model.config)
            self._checked |= {layout}
        return self.head.valid(inputs, self.model.config)

    def reference(self, inputs: Mapping[str, Any]) -> Tensor:
        """Weight of each item before any re-weighting: its class weight, 0 where it has no loss; float32."""
        return self._reference(self.valid(inputs), inputs)

    def reference_of(self, valid: Tensor, inputs: Mapping[str, Any], by: str) -> Tensor:
        """As `reference`, of items that a user's method computed; `valid` are those that count.

        Raises:
            ValueError: they are other items than the head's, whose classes are not known.
        """
        known = self.valid(inputs)
        if known.shape != valid.shape:
            raise ValueError(
                f"class_weights know the classes of {list(known.shape)} items ({self.name}), but {by} returned losses "
                f"of shape {list(valid.shape)}: remove class_weights and multiply the losses instead."
            )
        return self._reference(valid, inputs)

    def _reference(self, valid: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        if self.class_weights is None or self.head.classes is None:
            return token_reference(valid)
        item_classes = self.head.classes(inputs, self.model.config)
        return token_reference(valid, classes.weight_of_items(item_classes, self.class_weights))

    def run(
        self, model: nn.Module, inputs: Mapping[str, Any], label_smoothing: float, logits: bool = True
    ) -> BatchLosses:
        """One forward pass of `model`, the wrapped model of training, without labels.

        Args:
            model: with its wrappers.
            inputs: the batch.
            label_smoothing: share of the target mass spread evenly over the classes.
            logits: whether the outputs must have their logits; without them, the losses of a language model are made
                inside its LM head where that is exact (`FusedHead`).

        Raises:
            NotImplementedError: nobody has read how the model computes its loss (see `doubt`), and on the first batch
                of training, or of evaluation, it is not the mean of these.
        """
        head, config = self.head, self.model.config
        valid = self.valid(inputs)
        if self.model.training not in self._known:
            self._know(model, inputs)
        reference = self._reference(valid, inputs)
        withheld = {*head.label_names, *head.optional_label_names, SAMPLE_WEIGHT}
        forward = {k: v for k, v in inputs.items() if k not in withheld}
        forward |= head.prepare(self.model, inputs)
        if label_smoothing and not self._smoothing_said:
            self._smoothing_said = True
            _say_if_not_smoothed(config)
        losses = None
        # Hooks may read logits, or change them.
        hooked = head.targets is not None and hooks_on_outputs(self.unwrapped)
        if logits or hooked or head.targets is None or isinstance(model, nn.DataParallel):
            outputs = model(**forward)
        else:
            targets = head.targets(inputs, config)
            outputs, losses = self._fused_head.run(model, forward, targets, label_smoothing)
        if losses is None:
            losses = head.losses(outputs, inputs, config, label_smoothing)
        auxiliary = head.auxiliary(outputs, config, self.model, self.router_coefficient)
        valid, reference = valid.to(losses.device), reference.to(losses.device)
        if head not in OWN_HEADS:
            losses = losses.masked_fill(~valid, 0.0)
        return BatchLosses(outputs, losses, valid, reference, auxiliary)

    def _know(self, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        why = doubt(self.unwrapped)
        if why is None:
            self._known = frozenset({True, False})
            return
        own = {k: v for k, v in inputs.items() if k != SAMPLE_WEIGHT}
        own |= {name: inputs[name] for name in self.head.label_names}  # a rule may read them too
        if verify(self.head, self.model, model, own, why):
            self._known |= {self.model.training}


def _say_if_not_smoothed(config: Any) -> None:
    kind = getattr(config, "problem_type", None)
    if kind in ("multi_label_classification", "regression"):
        warnings.warn(
            f"label_smoothing_factor has no effect here: it moves probability between mutually exclusive classes, which "
            f"{kind} does not have. The losses are not smoothed.",
            stacklevel=2,
        )


class CustomLosses:
    """The losses of a `per_sample_loss_fn`; how many items there are is known only after the forward pass.

    Args:
        function: `(outputs, labels) -> losses`, or `-> (losses, valid)`.
        label_names: columns of the batch that go to `function` and not to the model, unless it cannot do without.
        model: the bare model, without wrappers.
    """

    name = "per_sample_loss_fn"
    token_level = True

    def __init__(self, function: PerSampleLossFn, label_names: Sequence[str], model: Any):
        self.function, self.label_names = function, label_names
        self.withheld = set(label_names) - _needed(model)
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
        if not labels.keys() <= withheld:
            outputs = _without_loss(outputs)
        first, self._first = self._first, False
        only = next(iter(labels.values())) if len(labels) == 1 else None
        return checked_losses(PerSampleLosses(losses, outputs, valid), self.name, only, first)


class OverriddenLosses:
    """The losses of a subclass's `compute_per_sample_losses`; their number is known only after the forward pass.

    Args:
        method: `(model, inputs) -> PerSampleLosses` or a tuple of its first elements; bound.
        name: name of the method, with its class.
        default: the loss source that the method of `ReweightingMixin` would use, or None; knows the items' classes.
    """

    token_level = True

    def __init__(self, method: Callable[..., Any], name: str, default: HeadLosses | CustomLosses | None):
        self.method, self.name, self.default = method, name, default
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
            given = WithColumns(inputs, getattr(inputs, "columns", {}))
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
        own = PerSampleLosses(*returned)
        own = own._replace(outputs=_without_loss(own.outputs))
        batch = checked_losses(own, self.name, columns_of(inputs).get("labels"), first)
        if not isinstance(self.default, HeadLosses) or self.default.class_weights is None:
            return batch
        return batch._replace(reference=self.default.reference_of(batch.valid, inputs, self.name))


def checked_losses(
    returned: PerSampleLosses, by: str, labels: Any = None, first: bool = False
) -> BatchLosses:
    """Raise `ValueError` unless `returned` has unreduced losses, and a mask that fits them if any.

    Without a mask, losses of 0 whose label is -100 do not count, as in `cross_entropy`.

    Args:
        returned: losses that a user's function returned.
        by: name of the function in messages.
        labels: the labels that it was given, if there is one tensor of them.
        first: whether this is its first batch, where the host may wait for the device.
    """
    losses, outputs, valid, auxiliary = returned
    if not isinstance(losses, Tensor) or losses.dim() == 0:
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


def _without_loss(outputs: Any) -> Any:
    """The outputs of a model that was given labels, without the loss that stands first in a tuple or list of them."""
    if isinstance(outputs, tuple | list) and outputs:
        first = outputs[0]
        if isinstance(first, Tensor) and first.dim() == 0:
            return tuple(outputs[1:])
    return outputs


def _needed(model: Any) -> set[str]:
    """Columns that the model's forward cannot do without, labels or not."""
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    required = {p.name for p in parameters if p.kind in kinds and p.default is p.empty}
    main = getattr(model, "main_input_name", None)
    return required | ({main} if isinstance(main, str) else set())


def find_loss_source(
    model: Any,
    per_sample_loss_fn: PerSampleLossFn | None,
    label_names: Sequence[str],
    class_weights: str | None,
    train_dataset: Any,
    device: torch.device,
    router_coefficient: float | None = None,
) -> HeadLosses | CustomLosses | None:
    """The source of the unreduced losses of `model` (without wrappers except PEFT's); None if they are not known.

    Args:
        model: the model.
        per_sample_loss_fn: the user's function, which takes precedence over the head of the model; or None.
        label_names: columns that go to `per_sample_loss_fn` and not to the model.
        class_weights: `"balanced"`, numbers joined by commas, or None.
        train_dataset: the training set, whose labels `"balanced"` counts; without one there is nothing to weight yet.
        device: device of the class weights.
        router_coefficient: as of `HeadLosses`.

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
        return CustomLosses(per_sample_loss_fn, label_names, bare_model(model))
    if head is None:
        return None
    weights = None
    if class_weights is not None and not classes.uncounted(class_weights, train_dataset):
        num_labels = bare_model(model).config.num_labels
        weights = classes.class_weights_of(class_weights, num_labels, train_dataset, *head.label_names)
    return HeadLosses(head, model, None if weights is None else weights.to(device), router_coefficient)
