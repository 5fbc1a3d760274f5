"""Which source a model's unreduced losses have."""

from collections.abc import Sequence
from typing import Any

import torch

from rgd_hf import class_weights as classes
from rgd_hf.heads import find_head, without_peft
from rgd_hf.heads.classification import check_exclusive_classes
from rgd_hf.loss_sources.base import PerSampleLossFn
from rgd_hf.loss_sources.head import HeadLosses
from rgd_hf.loss_sources.user import CustomLosses


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
        label_names: columns that go to `per_sample_loss_fn`, see `CustomLosses`.
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
        return CustomLosses(per_sample_loss_fn, label_names, without_peft(model))
    if head is None:
        return None
    if class_weights is not None:
        check_exclusive_classes(head, without_peft(model).config, "class_weights")
    weights = None
    if class_weights is not None and not classes.uncounted(class_weights, train_dataset):
        num_labels = without_peft(model).config.num_labels
        weights = classes.class_weights_of(class_weights, num_labels, train_dataset, *head.label_names)
    return HeadLosses(head, model, None if weights is None else weights.to(device), router_coefficient)
