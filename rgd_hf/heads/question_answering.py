"""Extractive question answering: one loss per sample, half for the answer's start and half for its end."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rgd_hf import losses as un_reduced
from rgd_hf.heads.base import Head, Inputs

# Where an encoder-decoder answers, its logits stand at the decoder's positions.
_SEQUENCES = ("decoder_input_ids", "decoder_inputs_embeds", "input_ids", "inputs_embeds")


def _valid(inputs: Inputs, config: Any) -> Tensor:
    tokens = next(inputs[name].shape[1] for name in _SEQUENCES if inputs.get(name) is not None)
    start, end = inputs["start_positions"].reshape(-1), inputs["end_positions"].reshape(-1)
    return (start < tokens) | (end < tokens)


def _losses(outputs: Any, inputs: Inputs, config: Any, label_smoothing: float) -> Tensor:
    if isinstance(outputs, Mapping):
        start_logits, end_logits = outputs["start_logits"], outputs["end_logits"]
    else:
        start_logits, end_logits = outputs[0], outputs[1]
    losses = un_reduced.question_answering_losses(
        start_logits,
        end_logits,
        inputs["start_positions"].to(start_logits.device),
        inputs["end_positions"].to(end_logits.device),
        label_smoothing,
    )
    # Tuned prompts and patches of an image are further positions, so that the losses alone do not ignore what lies past
    # the tokens.
    return losses.masked_fill(~_valid(inputs, config).to(losses.device), 0.0)


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
