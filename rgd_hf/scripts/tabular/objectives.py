"""What a network is trained on: un-reduced losses, how they are weighted, and what the tables call it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rgd_hf.divergences import DIVERGENCES
from rgd_hf.weighting import REWEIGHTINGS

DIVERGENCE_NAMES = tuple(name for name in DIVERGENCES if name != "none")
# Of samples by their losses. `focal` is the loss itself here, so that every member of an ensemble has its own; for one
# network its gradient is that of the weights of the same name.
WEIGHTED = tuple(name for name in REWEIGHTINGS if name not in ("none", "focal"))
OBJECTIVES = ("erm", *WEIGHTED, "focal", "class_weights")
FOR_CLASSES_ONLY = ("focal", "class_weights")


def focal_losses(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss `-(1 - p)**gamma * log p` of each sample, p the probability of its class.

    Source: Lin et al., "Focal Loss for Dense Object Detection", 2017 (arXiv 1708.02002), without its alpha.

    Args:
        logits: `[batch, classes]`.
        labels: class indices `[batch]`.
        gamma: 0 makes it the cross-entropy.

    Returns:
        float32 `[batch]`.
    """
    cross_entropy = F.cross_entropy(logits.float(), labels, reduction="none")
    wrong = -torch.expm1(-cross_entropy)
    return wrong**gamma * cross_entropy


def cross_entropies(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each sample, float32 `[batch]`.

    Args:
        logits: `[batch, classes]`.
        labels: class indices `[batch]`.
        smoothing: share of the label that goes to all classes alike, where there are gradients: an evaluation's loss
            is the plain one.
    """
    smoothing = smoothing if logits.requires_grad else 0.0
    return F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing)


def squared_errors(logits: Tensor, labels: Tensor) -> Tensor:
    """Squared error of each sample, float32 `[batch]`, of logits `[batch, 1]`."""
    return (logits.squeeze(-1).float() - labels.float()).square()


def per_sample_loss(loss: Callable[..., Tensor], **settings: Any) -> Callable[[Any, Tensor], Tensor]:
    """A `per_sample_loss_fn`: of an ensemble, the mean over the losses of its members, which train side by side.

    Args:
        loss: `(logits [batch, outputs], labels [batch]) -> [batch]`.
        settings: passed on to `loss`.
    """

    def losses(outputs: Any, labels: Tensor) -> Tensor:
        members = outputs.get("member_logits")
        if members is None:
            return loss(outputs["logits"], labels, **settings)
        batch, k = members.shape[:2]
        return loss(members.flatten(0, 1), labels.repeat_interleave(k), **settings).view(batch, k).mean(dim=1)

    losses.__name__ = loss.__name__  # model cards tell it
    return losses


def class_weights(y: np.ndarray, classes: int) -> np.ndarray:
    """Weight of each sample that makes all classes weigh the same and the mean weight 1, float32 `[rows]`."""
    counts = np.bincount(y, minlength=classes)
    return (len(y) / (np.count_nonzero(counts) * np.maximum(counts, 1)))[y].astype(np.float32)


@dataclass(frozen=True)
class Objective:
    """How a network is trained.

    Attributes:
        name: one of `OBJECTIVES`.
        tau: of a divergence.
        gamma: of the focal loss.
        label_smoothing: of the cross-entropy, in training.
    """

    name: str
    tau: float = 1.0
    gamma: float = 2.0
    label_smoothing: float = 0.0

    @property
    def reweighting(self) -> str:
        """The library's `reweighting`, `"none"` where samples are not weighted by their loss."""
        return self.name if self.name in WEIGHTED else "none"

    def loss(self, is_regression: bool) -> Callable[[Any, Tensor], Tensor]:
        """The `per_sample_loss_fn`."""
        if is_regression:
            return per_sample_loss(squared_errors)
        if self.name == "focal":
            return per_sample_loss(focal_losses, gamma=self.gamma)
        return per_sample_loss(cross_entropies, smoothing=self.label_smoothing)
