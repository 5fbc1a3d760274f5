"""Extractive question answering: one loss per sample, the mean over the ends of its answer that count."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rgd_hf import losses as un_reduced
from rgd_hf.heads.base import Head, Inputs

# Where an encoder-decoder answers, its logits stand at the decoder's positions.
_SEQUENCES = ("decoder_input_ids", "decoder_inputs_embeds", "input_ids", "inputs_embeds")


def _tokens(inputs: Inputs) -> int:
    return next(inputs[name].shape[1] for name in _SEQUENCES if inputs.get(name) is not None)


def _valid(inputs: Inputs, config: Any) -> Tensor:
    tokens = _tokens(inputs)
    start, end = inputs["start_positions"].reshape(-1), inputs["end_positions"].reshape(-1)
    return (start < tokens) | (end < tokens)


def _losses(outputs: Any, inputs: Inputs, config: Any, label_smoothing: float) -> Tensor:
    if isinstance(outputs, Mapping):
        start_logits, end_logits = outputs["start_logits"], outputs["end_logits"]
    else:
        start_logits, end_logits = outputs[0], outputs[1]
    # Tuned prompts and patches of an image are further positions, of which none is ignored by itself.
    tokens, ignored = _tokens(inputs), start_logits.shape[1]
    start, end = (
        inputs[name].masked_fill(inputs[name] >= tokens, ignored).to(start_logits.device)
        for name in ("start_positions", "end_positions")
    )
    return un_reduced.question_answering_losses(start_logits, end_logits, start, end, label_smoothing)


def with_whole_answers(inputs: Inputs) -> dict[str, Any]:
    """The batch with both ends of an answer at the one that counts, where one is ignored.

    The models average starts and ends separately, so that elsewhere their loss is no mean over samples.
    """
    tokens, start = _tokens(inputs), inputs["start_positions"]
    end = inputs["end_positions"].reshape(start.shape)
    return {
        **inputs,
        "start_positions": torch.where(start < tokens, start, end),
        "end_positions": torch.where(end < tokens, end, start),
    }


def _check(inputs: Inputs, config: Any) -> None:
    for name in ("start_positions", "end_positions"):
        positions = inputs[name]
        if positions.is_floating_point() or positions.numel() != positions.shape[0]:
            raise ValueError(
                f"{name} has shape {tuple(positions.shape)} and dtype {positions.dtype}, but must be one integer "
                "token index per sample, [batch]."
            )


QUESTION_ANSWERING = Head(
    name="extractive question answering",
    label_names=("start_positions", "end_positions"),
    valid=_valid,
    losses=_losses,
    check=_check,
)
"""A sample counts if its start or its end lies inside the sequence."""
