"""Heads with one loss per token: token classification and language modelling of every kind."""

import dataclasses
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rgd_hf import losses as un_reduced
from rgd_hf.heads.base import Head, Inputs, check_class_indices, logits_of, transformers_class

# --- logits and labels at the same position -------------------------------------------------------------------------


def _targets(inputs: Inputs, mask_name: str | None = None) -> Tensor:
    labels = inputs["labels"]
    mask = inputs.get(mask_name) if mask_name else None
    return labels if mask is None else torch.where(mask == 1, labels, un_reduced.IGNORE_INDEX)


def _labels(inputs: Inputs, config: Any) -> Tensor:
    return inputs["labels"]


def _valid(inputs: Inputs, config: Any, mask_name: str | None = None) -> Tensor:
    return _targets(inputs, mask_name) != un_reduced.IGNORE_INDEX


def _losses(
    outputs: Any, inputs: Inputs, config: Any, label_smoothing: float, mask_name: str | None = None
) -> Tensor:
    logits = logits_of(outputs)
    return un_reduced.token_losses(logits, _targets(inputs, mask_name).to(logits.device), label_smoothing)


def _check_token_classes(inputs: Inputs, config: Any) -> None:
    remedy = "Load the model with num_labels=<number of classes>, or map the labels."
    check_class_indices(inputs["labels"], un_reduced.IGNORE_INDEX, config.num_labels, "classes", remedy)


def _check_tokens(inputs: Inputs, config: Any) -> None:
    remedy = "Labels of language modelling are token ids; set those to be ignored to -100."
    check_class_indices(inputs["labels"], un_reduced.IGNORE_INDEX, None, "token ids", remedy)


TOKEN_CLASSIFICATION = Head(
    name="token classification",
    label_names=("labels",),
    valid=_valid,
    losses=_losses,
    token_level=True,
    check=_check_token_classes,
    classes=_labels,
)

ATTENDED_TOKEN_CLASSIFICATION = dataclasses.replace(
    TOKEN_CLASSIFICATION,
    valid=partial(_valid, mask_name="attention_mask"),
    losses=partial(_losses, mask_name="attention_mask"),
)
"""MRA, YOSO, BioGPT, XLM-RoBERTa-XL: what is not attended to is not labelled either."""

FIRST_TOKEN_CLASSIFICATION = dataclasses.replace(
    TOKEN_CLASSIFICATION,
    valid=partial(_valid, mask_name="bbox_first_token_mask"),
    losses=partial(_losses, mask_name="bbox_first_token_mask"),
)
"""BROS: only the first token of each box is labelled."""

MASKED_LM = Head(
    name="masked language modelling",
    label_names=("labels",),
    valid=_valid,
    losses=_losses,
    token_level=True,
    check=_check_tokens,
    targets=_labels,
)

ALIGNED_LM = dataclasses.replace(MASKED_LM, name="language modelling with labels that are not shifted")
"""Decoders taken out of encoder-decoders (`BartForCausalLM`), XLNet, XLM, CPM-Ant: the labels are the targets."""

# --- auxiliary losses -----------------------------------------------------------------------------------------------


def _router_loss(
    outputs: Any, config: Any, model: nn.Module, router_coefficient: float | None = None
) -> Tensor | None:
    """The load-balancing loss that a mixture of experts adds when it returns its router's logits."""
    if isinstance(outputs, Mapping):
        loss = outputs.get("aux_loss")
    else:
        loss = outputs[0] if outputs[0].ndim == 0 else None
    if not isinstance(loss, Tensor):
        return None
    if router_coefficient is not None:
        return router_coefficient * loss
    for owner, name in (
        (model, "router_aux_loss_coef"),
        (model, "aux_loss_coef"),
        (config.get_text_config(), "router_aux_loss_coef"),
    ):
        if hasattr(owner, name):
            return getattr(owner, name) * loss
    raise ValueError(
        f"{type(model).__name__} returned an auxiliary loss, but neither it nor its config has a coefficient for it "
        "(router_aux_loss_coef). Set config.router_aux_loss_coef, or output_router_logits=False to go without."
    )


def _bamba_loss(
    outputs: Any, config: Any, model: nn.Module, router_coefficient: float | None = None
) -> Tensor | None:
    """Bamba's penalty on the size of its logits."""
    if not config.z_loss_coefficient > 0:
        return None
    return config.z_loss_coefficient * logits_of(outputs).logsumexp(dim=-1).float().square().mean()


def _switch_loss(
    outputs: Any, config: Any, model: nn.Module, router_coefficient: float | None = None
) -> Tensor | None:
    """Load balancing and router z-loss of both stacks of a Switch Transformer."""
    balance = config.router_aux_loss_coef if router_coefficient is None else router_coefficient
    terms = [
        (coefficient, outputs.get(f"{stack}_{kind}_loss"))
        for kind, coefficient in (("z", config.router_z_loss_coef), ("aux", balance))
        for stack in ("encoder", "decoder")
    ]
    losses = [coefficient * loss for coefficient, loss in terms if isinstance(loss, Tensor)]
    return torch.stack(losses).sum() if losses else None


# --- every position predicts the next token -------------------------------------------------------------------------


def _next_tokens(inputs: Inputs, config: Any = None) -> Tensor:
    """What each position of the logits has to predict, `[batch, tokens]`.

    `shift_labels` in the batch are used as they are. With `logits_to_keep`, labels of the kept positions alone are
    shifted among themselves, as the models do; labels of the whole sequence are shifted first and then cut.
    """
    shifted = inputs.get("shift_labels")
    targets = un_reduced.shift_left(inputs["labels"]) if shifted is None else shifted
    keep = inputs.get("logits_to_keep")
    if keep is None:
        return targets
    if isinstance(keep, int):
        return targets[:, -keep:] if keep else targets
    if keep.dtype != torch.bool and keep.numel() == targets.shape[1]:
        return targets
    return targets[:, keep]


def _causal_valid(inputs: Inputs, config: Any) -> Tensor:
    return _next_tokens(inputs) != un_reduced.IGNORE_INDEX


def _causal_losses(outputs: Any, inputs: Inputs, config: Any, label_smoothing: float) -> Tensor:
    logits = logits_of(outputs)
    return un_reduced.token_losses(logits, _next_tokens(inputs).to(logits.device), label_smoothing)


CAUSAL_LM = Head(
    name="causal language modelling",
    label_names=("labels",),
    valid=_causal_valid,
    losses=_causal_losses,
    token_level=True,
    check=_check_tokens,
    optional_label_names=("shift_labels",),
    auxiliary=_router_loss,
    targets=_next_tokens,
)
"""Decoders of text, alone or with images, video or audio in front. Item `t` of a sample is the loss of predicting
token `t + 1`, at position `t`; the last one has none (with `shift_labels`, item `t` is `shift_labels[t]`)."""

BAMBA_LM = dataclasses.replace(CAUSAL_LM, auxiliary=_bamba_loss, targets=None)


def _prompted_losses(outputs: Any, inputs: Inputs, config: Any, label_smoothing: float) -> Tensor:
    logits, labels = logits_of(outputs), inputs["labels"]
    labels = labels.to(logits.device)
    # The position before the first token is a virtual one, so that the first token is predicted too.
    virtual = logits.shape[1] - labels.shape[1] - 1
    targets = nn.functional.pad(labels, (virtual, 1), value=un_reduced.IGNORE_INDEX)
    return un_reduced.token_losses(logits, targets, label_smoothing)[:, virtual:-1]


PROMPTED_CAUSAL_LM = dataclasses.replace(
    CAUSAL_LM,
    name="causal language modelling after a tuned prompt",
    valid=_valid,
    losses=_prompted_losses,
    optional_label_names=(),
    targets=_labels,
    positions_after=1,
)
"""PEFT prompt tuning and p-tuning: the prompt predicts the first token, so item `t` is the loss of token `t`."""

# --- encoder-decoders -----------------------------------------------------------------------------------------------


def _decoder_inputs(model: Any, inputs: Inputs) -> dict[str, Any]:
    """The decoder's input ids, made from the labels by the model's own function, as its forward does."""
    if any(inputs.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds")):
        return {}
    labels, cls = inputs["labels"], transformers_class(model)
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        decoder_input_ids = model.prepare_decoder_input_ids_from_labels(labels)
    elif hasattr(model, "_shift_right"):
        decoder_input_ids = model._shift_right(labels)
    else:
        config: Any = model.config
        if getattr(config, "decoder_start_token_id", None) is None:
            config = config.get_text_config()
        assert cls is not None
        shift = sys.modules[cls.__module__].shift_tokens_right
        decoder_input_ids = shift(labels, config.pad_token_id, config.decoder_start_token_id)
    extra = {"decoder_input_ids": decoder_input_ids}
    if (
        cls is not None
        and cls.__name__ == "EncoderDecoderModel"
        and inputs.get("decoder_attention_mask") is None
    ):
        mask = decoder_input_ids != model.config.pad_token_id
        extra["decoder_attention_mask"] = mask.to(decoder_input_ids.dtype)
    return extra


ENCODER_DECODER_LM = Head(
    name="encoder-decoder language modelling",
    label_names=("labels",),
    valid=_valid,
    losses=_losses,
    token_level=True,
    check=_check_tokens,
    prepare=_decoder_inputs,
    targets=_labels,
)
"""Translation, summarization, speech recognition, captioning: the labels are what the decoder has to emit."""

SWITCH_LM = dataclasses.replace(ENCODER_DECODER_LM, auxiliary=_switch_loss)

PREPARED_ENCODER_DECODER_LM = dataclasses.replace(ENCODER_DECODER_LM, prepare=Head.prepare)
"""FSMT: where the batch has no `decoder_input_ids`, the model makes them from `input_ids`, labels or not."""
