"""Un-reduced losses of the task heads that transformers trains, one function a task.

Every function takes the model's logits and the targets and returns float32 losses before any reduction. Items whose
target is ignored get a loss of exactly 0; which items count is said in `rgd_hf.heads`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100


def single_label_losses(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each sample.

    Args:
        logits: `[batch, classes]`, any floating-point dtype.
        labels: class indices `[batch]` (or `[batch, 1]`), -100 where ignored; or class probabilities
            `[batch, classes]`, as mixup and cutmix make them.
        label_smoothing: share of the target mass spread evenly over the classes.

    Returns:
        float32 `[batch]`.
    """
    if labels.is_floating_point() and labels.shape == logits.shape:
        targets = labels.float()
    else:
        targets = labels.reshape(-1).long()
    return F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=label_smoothing)


def multi_label_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of each sample, the mean over its classes.

    Args:
        logits: `[batch, classes]`, any floating-point dtype.
        labels: `[batch, classes]`, 0 or 1 (or a probability) for each class.

    Returns:
        float32 `[batch]`.
    """
    losses = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
    return losses.mean(dim=-1)


def regression_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Squared error of each sample, the mean over its outputs.

    Args:
        logits: `[batch, outputs]`, any floating-point dtype.
        labels: `[batch]` or `[batch, outputs]`.

    Returns:
        float32 `[batch]`.
    """
    predictions = logits.float().reshape(logits.shape[0], -1)
    return (predictions - labels.float().reshape(predictions.shape)).square().mean(dim=-1)
