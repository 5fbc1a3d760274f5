"""Which un-reduced loss belongs to which model, and which of its items count.

A head knows two things about a batch: from the labels alone, the items (samples, or tokens of samples) that have a
loss; and from the model's outputs, the loss of each of them. The first gives the number of items of a whole
optimizer step before any forward pass.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

from rgd_hf import losses as un_reduced

Inputs = Mapping[str, Any]
"""A batch as it goes to the model, labels included."""


@dataclass(frozen=True)
class Head:
    """How a kind of model head turns a batch into un-reduced losses.

    Attributes:
        name: as messages call it, e.g. `"sequence classification"`.
        label_names: the batch columns that are withheld from the model's forward and used here instead.
        valid: `(inputs, config) -> bool [batch] or [batch, tokens]`: the items that have a loss. Reads the batch
            alone, no model output.
        losses: `(outputs, inputs, config, label_smoothing) -> float32`, of the shape of `valid`, 0 where not valid.
            `outputs` is what the model's forward returned when the labels were withheld; `inputs` still has them.
        token_level: items are `[batch, tokens]` and the model's own loss is their mean, so that `"token"` is the
            default level; otherwise there is one loss a sample and `"sample"` is the only level.
        check: `(inputs, config) -> None`; raises `ValueError` where the labels do not fit the model, saying how.
            Called once, on the first batch.
    """

    name: str
    label_names: tuple[str, ...]
    valid: Callable[[Inputs, Any], Tensor]
    losses: Callable[[Any, Inputs, Any, float], Tensor]
    token_level: bool = False
    check: Callable[[Inputs, Any], None] = lambda inputs, config: None


def logits_of(outputs: Any) -> Tensor:
    """The logits of a `ModelOutput`, dict or tuple that a forward without labels returned."""
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else outputs[0]
    if logits is None:
        raise ValueError(
            "The model returned no logits (fused or chunked losses leave them out), so its losses cannot be "
            "un-reduced. Turn the fused loss off (for Liger: use_liger_kernel=False or "
            "fused_linear_cross_entropy=False; for TRL: loss_type='nll')."
        )
    return logits


# --- sequence, image, video and audio classification ----------------------------------------------------------------


def _resolve_problem_type(inputs: Inputs, config: Any) -> None:
    """Set `config.problem_type` from the first batch, as the model's own forward would.

    The rule is transformers' (`loss/loss_utils.py`), with one addition: fractional labels whose rows sum to one are
    class probabilities (mixup, cutmix), not independent binary labels.
    """
    labels = inputs["labels"]
    if getattr(config, "problem_type", None) is None:
        if config.num_labels == 1:
            config.problem_type = "regression"
        elif not labels.is_floating_point():
            config.problem_type = "single_label_classification"
        elif labels.shape[-1] == config.num_labels and _are_probabilities(labels):
            config.problem_type = "single_label_classification"
        else:
            config.problem_type = "multi_label_classification"
    if config.problem_type == "single_label_classification" and not labels.is_floating_point():
        real = labels[labels != un_reduced.IGNORE_INDEX]
        if real.numel() and not 0 <= int(real.min()) <= int(real.max()) < config.num_labels:
            raise ValueError(
                f"The first batch has labels from {int(real.min())} to {int(real.max())}, but the model has "
                f"{config.num_labels} classes: labels must lie between 0 and {config.num_labels - 1}. Load the model "
                "with num_labels=<number of classes>, or map the labels."
            )


def _are_probabilities(labels: Tensor) -> bool:
    sums_to_one = torch.isclose(labels.float().sum(dim=-1), torch.ones((), device=labels.device), atol=1e-3).all()
    fractional = ((labels > 0) & (labels < 1)).any()
    return bool(sums_to_one & fractional)


def _classification_valid(inputs: Inputs, config: Any) -> Tensor:
    labels = inputs["labels"]
    if labels.is_floating_point() or config.problem_type != "single_label_classification":
        return torch.ones(labels.shape[0], dtype=torch.bool, device=labels.device)
    return labels.reshape(-1) != un_reduced.IGNORE_INDEX


def _classification_losses(outputs: Any, inputs: Inputs, config: Any, label_smoothing: float) -> Tensor:
    logits, labels = logits_of(outputs), inputs["labels"]
    labels = labels.to(logits.device)
    if config.problem_type == "regression":
        return un_reduced.regression_losses(logits, labels)
    if config.problem_type == "multi_label_classification":
        return un_reduced.multi_label_losses(logits, labels)
    return un_reduced.single_label_losses(logits, labels, label_smoothing)


CLASSIFICATION = Head(
    name="sequence classification",
    label_names=("labels",),
    valid=_classification_valid,
    losses=_classification_losses,
    check=_resolve_problem_type,
)

HEADS: list[tuple[Mapping[str, Any], Head]] = [
    (modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, CLASSIFICATION),
]
"""The head of every model class that transformers lists for a task, first match first."""


def find_head(model: nn.Module) -> Head | None:
    """The head of `model` (unwrapped), or None where its losses cannot be un-reduced.

    A class is looked up by the names that transformers' auto classes list, through its base classes too; but a class
    outside transformers that defines a `forward` of its own computes a loss we cannot know, so it has no head.
    """
    for cls in type(model).__mro__:
        if cls.__module__.startswith("transformers."):
            return next((head for names, head in HEADS if cls.__name__ in names.values()), None)
        if "forward" in vars(cls):
            return None
    return None
