"""Unreduced losses of the task heads that transformers trains, one function per task.

Every function takes the model's logits and the targets and returns float32 losses before any reduction. Items whose
target is ignored get a loss of exactly 0; `rgd_hf.heads` decides which items count. Nothing here waits for the
device, and the only copy of the logits is the upcast to float32 that the models' own losses make too.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100


def single_label_losses(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each sample: sequence, image, video and audio classification, multiple choice.

    Args:
        logits: `[batch, classes]`, any floating-point dtype.
        labels: class indices `[batch]` (or `[batch, 1]`), -100 where ignored; or class probabilities
            `[batch, classes]`, as mixup and cutmix make them.
        label_smoothing: share of the target mass spread evenly over the classes: each loss is
            `(1 - label_smoothing) * -log p[label] + label_smoothing * mean(-log p)`.

    Returns:
        float32 `[batch]`.
    """
    if labels.shape == logits.shape and logits.shape[-1] > 1:
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


def token_losses(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each token, logits and labels at the same position.

    Token classification, masked language modelling, the decoder of an encoder-decoder, whose inputs are already
    shifted, and causal language modelling, whose labels `shift_left` shifts.

    Args:
        logits: `[batch, positions, classes]`, any floating-point dtype. Positions in front of the labels' (virtual
            tokens of prompt tuning) have no loss.
        labels: class indices `[batch, tokens]`, `tokens <= positions`, -100 where ignored.
        label_smoothing: as in `single_label_losses`.

    Returns:
        float32 `[batch, tokens]`.

    Raises:
        ValueError: there are fewer logits than labels.
    """
    unlabelled = positions_in_front(logits.shape[1], labels.shape[1])
    # The labels are padded, and the losses cut, because either is smaller by the number of classes than the logits.
    targets = F.pad(labels.long(), (unlabelled, 0), value=IGNORE_INDEX)
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(),
        targets.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return losses.view(targets.shape)[:, unlabelled:]


def positions_in_front(positions: int, tokens: int) -> int:
    """Number of positions of a model's head that precede the first label.

    Raises:
        ValueError: there are fewer positions than labels.
    """
    if positions < tokens:
        raise ValueError(
            f"The model returned logits at {positions} positions for {tokens} labels per sample. Pad and truncate labels "
            "together with the inputs."
        )
    return positions - tokens


def shift_left(labels: Tensor) -> Tensor:
    """The label of the next position, and -100 at the last.

    Args:
        labels: `[batch, tokens]`.

    Returns:
        `[batch, tokens]`, the dtype of `labels`.
    """
    return F.pad(labels[..., 1:], (0, 1), value=IGNORE_INDEX)


def question_answering_losses(
    start_logits: Tensor,
    end_logits: Tensor,
    start_positions: Tensor,
    end_positions: Tensor,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of each sample, the mean over the ends of its answer (start and end) that count.

    As in transformers, a negative position counts as position 0, and one past the last token is ignored. (The models
    then average starts and ends separately, each over those that remain in the batch; here they are averaged per
    sample, which gives the models' own loss wherever a start is ignored together with its end.)

    Args:
        start_logits: `[batch, tokens]`, any floating-point dtype.
        end_logits: `[batch, tokens]`.
        start_positions: token indices `[batch]` (or `[batch, 1]`).
        end_positions: token indices `[batch]` (or `[batch, 1]`).
        label_smoothing: as in `single_label_losses`.

    Returns:
        float32 `[batch]`; 0 where both ends are ignored.
    """
    tokens = start_logits.shape[1]
    starts, ends = (
        positions.reshape(-1).long().clamp(0, tokens) for positions in (start_positions, end_positions)
    )
    start, end = (
        F.cross_entropy(
            logits.float(), positions, ignore_index=tokens, reduction="none", label_smoothing=label_smoothing
        )
        for logits, positions in ((start_logits, starts), (end_logits, ends))
    )
    counted = (starts < tokens).long() + (ends < tokens).long()
    return (start + end) / counted.clamp(min=1)


def semantic_segmentation_losses(
    logits: Tensor, labels: Tensor, ignore_index: int = 255, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of each pixel, at the labels' resolution.

    Args:
        logits: `[batch, classes, height, width]`, any floating-point dtype; resized bilinearly to the labels' size,
            as the models do.
        labels: class indices `[batch, label_height, label_width]`, `ignore_index` where ignored.
        ignore_index: the label that has no loss.
        label_smoothing: as in `single_label_losses`.

    Returns:
        float32 `[batch, label_height * label_width]`.
    """
    losses = F.cross_entropy(
        _resized(logits, labels),
        labels.long(),
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return losses.flatten(1)


def binary_segmentation_losses(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Binary cross-entropy of each pixel, where the model has one class only (SegFormer).

    Args:
        logits: `[batch, 1, height, width]`, any floating-point dtype; resized as above.
        labels: 0 or 1, `[batch, label_height, label_width]`; `ignore_index` or negative where ignored.
        ignore_index: the label that has no loss.

    Returns:
        float32 `[batch, label_height * label_width]`.
    """
    known = (labels >= 0) & (labels != ignore_index)
    losses = F.binary_cross_entropy_with_logits(
        _resized(logits, labels).squeeze(1), labels.float(), reduction="none"
    )
    return torch.where(known, losses, 0.0).flatten(1)


def _resized(logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits.float()
    if logits.shape[-2:] == labels.shape[-2:]:
        return logits
    return F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
