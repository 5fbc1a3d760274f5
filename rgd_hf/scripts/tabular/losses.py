"""Un-reduced losses of a table: of one network, or of an ensemble whose members train side by side."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F


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


def loss_of(is_regression: bool, label_smoothing: float = 0.0) -> Callable[[Any, Tensor], Tensor]:
    """The `per_sample_loss_fn` of a table."""
    if is_regression:
        return per_sample_loss(squared_errors)
    return per_sample_loss(cross_entropies, smoothing=label_smoothing)
