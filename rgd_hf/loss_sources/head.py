"""The losses of the head of a known model class."""

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rgd_hf import class_weights as classes
from rgd_hf.batches.columns import SAMPLE_WEIGHT
from rgd_hf.heads import OWN_HEADS, FusedHead, Head, hooks_on_outputs, verify, why_unverified, without_peft
from rgd_hf.items import check_columns, token_reference
from rgd_hf.loss_sources.base import BatchLosses


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
        self.head, self.bare_model, self.class_weights = head, model, class_weights
        self.router_coefficient = router_coefficient
        self.model = without_peft(model)
        self.name, self.token_level = head.name, head.token_level
        self._presumed: dict[Any, Any] = {}  # configurations by the labels' layout, see `reference_ahead`
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
        layout = self._layout(inputs)
        if layout not in self._checked:
            self.head.check(inputs, self.model.config)
            self._checked |= {layout}
        return self.head.valid(inputs, self.model.config)

    def _layout(self, inputs: Mapping[str, Any]) -> tuple[tuple[torch.dtype, int], ...]:
        return tuple((inputs[name].dtype, inputs[name].dim()) for name in self.head.label_names)

    def reference(self, inputs: Mapping[str, Any]) -> Tensor:
        """Weight of each item before any re-weighting: its class weight, 0 where it has no loss; float32."""
        return self._reference(self.valid(inputs), inputs, self.model.config)

    def reference_ahead(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """As `reference`, of a batch whose labels an override may change before the loss.

        They decide nothing of the model (its `problem_type`), and may be missing or of any kind: None where they are no labels
        for this head.
        """
        check_columns(inputs, self.name)
        if not all(isinstance(inputs.get(name), Tensor) for name in self.head.label_names):
            return None
        layout = self._layout(inputs)
        if layout not in self._presumed:
            config = copy.copy(self.model.config)
            try:
                self.head.check(inputs, config)
            except ValueError:
                config = None
            self._presumed[layout] = config
        config = self._presumed[layout]
        return None if config is None else self._reference(self.head.valid(inputs, config), inputs, config)

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
        return self._reference(valid, inputs, self.model.config)

    def _reference(self, valid: Tensor, inputs: Mapping[str, Any], config: Any) -> Tensor:
        if self.class_weights is None or self.head.classes is None:
            return token_reference(valid)
        item_classes = self.head.classes(inputs, config)
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
            NotImplementedError: it is not known how the model computes its loss (see `why_unverified`), and on the first batch
                of training, or of evaluation, it is not the mean of these.
        """
        head, config = self.head, self.model.config
        valid = self.valid(inputs)
        if self.model.training not in self._known:
            self._know(model, inputs)
        reference = self._reference(valid, inputs, config)
        withheld = {*head.label_names, *head.optional_label_names, SAMPLE_WEIGHT}
        forward = {k: v for k, v in inputs.items() if k not in withheld}
        forward |= head.prepare(self.model, inputs)
        if label_smoothing and not self._smoothing_said:
            self._smoothing_said = True
            _say_if_not_smoothed(config)
        losses = None
        # Hooks may read logits, or change them.
        hooked = head.targets is not None and hooks_on_outputs(self.bare_model)
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
        why = why_unverified(self.bare_model)
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
