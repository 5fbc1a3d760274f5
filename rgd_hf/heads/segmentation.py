"""Semantic segmentation: one loss per pixel, or their mean over an image."""

from typing import Any

import torch
from torch import Tensor

from rgd_hf import losses as un_reduced
from rgd_hf.heads.base import Head, Inputs, check_class_indices, logits_of


def _ignore_index(config: Any) -> int:
    # UperNet calls it by a name of its own.
    if hasattr(config, "loss_ignore_index"):
        return config.loss_ignore_index
    return getattr(config, "semantic_loss_ignore_index", 255)


def _valid(inputs: Inputs, config: Any) -> Tensor:
    labels = inputs["labels"].flatten(1)
    if config.num_labels == 1:
        # With one class the model divides by all pixels, the ignored ones too.
        return torch.ones_like(labels, dtype=torch.bool)
    return labels != _ignore_index(config)


def _losses(outputs: Any, inputs: Inputs, config: Any, label_smoothing: float) -> Tensor:
    logits = logits_of(outputs)
    labels, ignored = inputs["labels"].to(logits.device), _ignore_index(config)
    if config.num_labels == 1:
        return un_reduced.binary_segmentation_losses(logits, labels, ignored)
    return un_reduced.semantic_segmentation_losses(logits, labels, ignored, label_smoothing)


def _check(inputs: Inputs, config: Any) -> None:
    labels = inputs["labels"]
    if labels.ndim != 3:
        raise ValueError(
            f"Segmentation labels have shape {tuple(labels.shape)}, but must be a class index for each pixel, "
            "[batch, height, width]."
        )
    if config.num_labels > 1:
        remedy = "Load the model with num_labels=<number of classes>, or map the labels (reduce_labels=True)."
        check_class_indices(labels, _ignore_index(config), config.num_labels, "classes", remedy)


def _classes(inputs: Inputs, config: Any) -> Tensor:
    return inputs["labels"].flatten(1)


SEMANTIC_SEGMENTATION = Head(
    name="semantic segmentation",
    label_names=("labels",),
    valid=_valid,
    losses=_losses,
    token_level=True,
    check=_check,
    classes=_classes,
)
"""Pixels are the items, row after row; the level `"sample"` weights whole images."""
