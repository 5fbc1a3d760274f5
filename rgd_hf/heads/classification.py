"""Heads with one loss per sample over classes: sequences, images, videos, audio, and multiple choice."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from rgd_hf import losses as un_reduced
from rgd_hf.heads.base import Head, Inputs, check_class_indices, logits_of

_SINGLE_LABEL = "single_label_classification"
_MULTI_LABEL = "multi_label_classification"
_REMEDY = "Load the model with num_labels=<number of classes>, or map the labels."


def _resolve_problem_type(inputs: Inputs, config: Any) -> None:
    """Set `config.problem_type` from the first batch, as the model's own forward would, and check the labels.

    The rule is transformers' (`loss/loss_utils.py`), with one addition: fractional labels whose rows sum to one are
    class probabilities (mixup, cutmix), not independent binary labels. One-hot rows may be either, so a batch that has
    nothing else is refused. DeBERTa has a rule of its own, under which `[batch, classes]` labels are always the targets
    of a cross-entropy.
    """
    labels, classes = inputs["labels"], config.num_labels
    by_class = labels.ndim == 2 and labels.shape[-1] == classes > 1
    deberta = config.model_type in ("deberta", "deberta-v2")
    if getattr(config, "problem_type", None) is None:
        if classes == 1:
            config.problem_type = "regression"
        elif deberta or not labels.is_floating_point():
            config.problem_type = _SINGLE_LABEL
        elif by_class and _sum_to_one(labels):
            _check_fractional(labels)
            config.problem_type = _SINGLE_LABEL
        else:
            config.problem_type = _MULTI_LABEL
    if config.problem_type == _SINGLE_LABEL:
        soft = by_class and (deberta or labels.is_floating_point())
        if soft and not deberta and not _sum_to_one(labels):
            raise ValueError(
                f"The labels are {labels.dtype} {list(labels.shape)}, but {_SINGLE_LABEL} (config.problem_type, or the labels "
                "of an earlier batch) needs class indices, or class probabilities that sum to one in every row. For "
                f"independent labels, set model.config.problem_type = '{_MULTI_LABEL}' before training."
            )
        _check_single_label(inputs, config, soft)
    elif labels.numel() != labels.shape[0] * classes:
        raise ValueError(
            f"The labels of the first batch have shape {tuple(labels.shape)}, but {config.problem_type} with "
            f"num_labels={classes} needs [batch, {classes}]. For class indices, set "
            f"config.problem_type='{_SINGLE_LABEL}' and make the labels integers."
        )


def _check_single_label(inputs: Inputs, config: Any, soft: bool = False) -> None:
    labels = inputs["labels"]
    if soft:
        return
    if labels.numel() != labels.shape[0]:
        raise ValueError(
            f"The labels of the first batch have shape {tuple(labels.shape)} and dtype {labels.dtype}, but "
            "single-label classification needs one class index per sample. Make multi-hot labels or class "
            "probabilities floating-point."
        )
    if config.model_type in ("deberta", "deberta-v2") or not labels.is_floating_point():
        labels = labels.long()
    check_class_indices(labels, un_reduced.IGNORE_INDEX, config.num_labels, "classes", _REMEDY)


def _sum_to_one(labels: Tensor) -> bool:
    """Whether every row consists of probabilities that sum to one, up to the rounding of its dtype."""
    tolerance = max(1e-3, torch.finfo(labels.dtype).eps)
    off = (labels.float().sum(dim=-1) - 1).abs()
    return bool(((labels >= 0).all(dim=-1) & (off <= tolerance)).all())


def _check_fractional(labels: Tensor) -> None:
    if not ((labels > 0) & (labels < 1)).any():
        raise ValueError(
            f"The labels of the first batch are {labels.dtype} {list(labels.shape)}, each row one-hot: they may be class "
            "probabilities (of mixup that mixed nothing here) or independent labels of which each sample has just one. Say "
            f"which before training: model.config.problem_type = '{_SINGLE_LABEL}' (cross-entropy with soft labels), or "
            f"model.config.problem_type = '{_MULTI_LABEL}' (binary cross-entropy of every class, as transformers does)."
        )


def _valid(inputs: Inputs, config: Any, problem_type: str | None = None) -> Tensor:
    labels = inputs["labels"]
    if (problem_type or config.problem_type) != _SINGLE_LABEL or labels.numel() != labels.shape[0]:
        return torch.ones(labels.shape[0], dtype=torch.bool, device=labels.device)
    return labels.reshape(-1) != un_reduced.IGNORE_INDEX


def _losses(
    outputs: Any, inputs: Inputs, config: Any, label_smoothing: float, problem_type: str | None = None
) -> Tensor:
    logits = logits_of(outputs).flatten(1)  # VideoPrism's are [batch, 1, classes]
    labels = inputs["labels"].to(logits.device)
    problem_type = problem_type or config.problem_type
    if problem_type == "regression":
        return un_reduced.regression_losses(logits, labels)
    if problem_type == _MULTI_LABEL:
        return un_reduced.multi_label_losses(logits, labels)
    return un_reduced.single_label_losses(logits, labels, label_smoothing)


def _classes(inputs: Inputs, config: Any, problem_type: str | None = None) -> Tensor:
    labels = inputs["labels"]
    if problem_type is None:
        check_exclusive_classes(CLASSIFICATION, config, "class_weights")
    if labels.is_floating_point() and labels.numel() != labels.shape[0]:
        return labels
    return labels.reshape(-1).long()


CLASSIFICATION = Head(
    name="classification",
    label_names=("labels",),
    valid=_valid,
    losses=_losses,
    check=_resolve_problem_type,
    classes=_classes,
)
"""Single-label, multi-label or regression, by `config.problem_type`."""


def check_exclusive_classes(head: Head | None, config: Any, setting: str) -> None:
    """Raise `ValueError` where `setting` needs mutually exclusive classes and the model is known to have none.

    Where `config.problem_type` is still None, the first batch decides and this is asked again.
    """
    if head is not CLASSIFICATION:
        return
    kind = getattr(config, "problem_type", None) or (
        "regression" if config.num_labels == 1 else _SINGLE_LABEL
    )
    if kind != _SINGLE_LABEL:
        raise ValueError(
            f"{setting} needs mutually exclusive classes, which {kind} (problem_type of the model's configuration) does not "
            f"have: leave {setting} out. A column 'sample_weight' in the training data weights its samples."
        )


def _check_audio(inputs: Inputs, config: Any) -> None:
    labels = inputs["labels"]
    _check_single_label(inputs, config, soft=labels.is_floating_point() and labels.ndim == 2)


SINGLE_LABEL_CLASSIFICATION = Head(
    name="single-label classification",
    label_names=("labels",),
    valid=partial(_valid, problem_type=_SINGLE_LABEL),
    losses=partial(_losses, problem_type=_SINGLE_LABEL),
    check=_check_audio,
    classes=partial(_classes, problem_type=_SINGLE_LABEL),
)
"""Cross-entropy whatever `config.problem_type` says: wav2vec 2.0 and its relatives, Whisper's encoder."""


def _multiple_choice_valid(inputs: Inputs, config: Any) -> Tensor:
    return inputs["labels"].reshape(-1) != un_reduced.IGNORE_INDEX


def _multiple_choice_losses(outputs: Any, inputs: Inputs, config: Any, label_smoothing: float) -> Tensor:
    logits = logits_of(outputs)
    labels = inputs["labels"].reshape(-1).to(logits.device)
    return un_reduced.single_label_losses(logits, labels, label_smoothing)


def _check_multiple_choice(inputs: Inputs, config: Any) -> None:
    encoded = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    remedy = "Labels are the index of the right choice of each sample, [batch]."
    check_class_indices(inputs["labels"], un_reduced.IGNORE_INDEX, encoded.shape[1], "choices", remedy)


MULTIPLE_CHOICE = Head(
    name="multiple choice",
    label_names=("labels",),
    valid=_multiple_choice_valid,
    losses=_multiple_choice_losses,
    check=_check_multiple_choice,
)
