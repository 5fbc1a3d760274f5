"""The table: which head belongs to which model class of transformers, and the classes that have none.

The auto classes' lists say what is trained for a task; the sets below say which of those compute another loss than
the task's common one. `tests/rgd_hf/test_heads_table.py` reads the loss out of the source of every class in the table, so
that a new release of transformers cannot slip in a loss that is not the head's.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn
from transformers.models.auto import modeling_auto as auto

from rgd_hf.heads.base import Head, transformers_class, without_peft
from rgd_hf.heads.classification import CLASSIFICATION, MULTIPLE_CHOICE, SINGLE_LABEL_CLASSIFICATION
from rgd_hf.heads.question_answering import QUESTION_ANSWERING
from rgd_hf.heads.segmentation import SEMANTIC_SEGMENTATION
from rgd_hf.heads.tokens import (
    ALIGNED_LM,
    ATTENDED_TOKEN_CLASSIFICATION,
    BAMBA_LM,
    CAUSAL_LM,
    ENCODER_DECODER_LM,
    FIRST_TOKEN_CLASSIFICATION,
    MASKED_LM,
    PREPARED_ENCODER_DECODER_LM,
    PROMPTED_CAUSAL_LM,
    SWITCH_LM,
    TOKEN_CLASSIFICATION,
)


def _names(*mappings: Mapping[str, Any]) -> Iterator[str]:
    for mapping in mappings:
        for value in mapping.values():
            yield from value if isinstance(value, (tuple, list)) else [value]


EXCLUDED = {
    # Their forward takes no labels, or hands them to a loss that is not the task's.
    "DeiTForImageClassificationWithTeacher",
    "LevitForImageClassificationWithTeacher",
    "PPLCNetForImageClassification",
    "ShieldGemma2ForImageClassification",
    "DiffusionGemmaForBlockDiffusion",
    "Gemma4AssistantForCausalLM",
    "Gemma4UnifiedAssistantForCausalLM",
    "PI0ForConditionalGeneration",
    # Answers a question by a class, not by a span.
    "LxmertForQuestionAnswering",
    # Label smoothing of their own, several streams or codebooks of tokens, adaptive softmax over entities.
    "BlipForConditionalGeneration",
    "ProphetNetForCausalLM",
    "ProphetNetForConditionalGeneration",
    "MusicgenForCausalLM",
    "MusicgenMelodyForCausalLM",
    "DiaForConditionalGeneration",
    "KyutaiSpeechToTextForConditionalGeneration",
    "LukeForMaskedLM",
    # A second loss over other labels of the batch.
    "GraniteDoclingForConditionalGeneration",
    "VibeVoiceForConditionalGeneration",
    # The labels are moved or cut by the attention mask inside the forward.
    "GraniteSpeechForConditionalGeneration",
    "GraniteSpeechPlusForConditionalGeneration",
    "Qwen2AudioForConditionalGeneration",
    # The decoder's inputs, or its mask, depend on the labels in a way of their own.
    "Pix2StructForConditionalGeneration",
    "PPFormulaNetForConditionalGeneration",
}
"""Classes that transformers lists for a task whose loss is not the task's."""

_ENCODER_DECODERS = [
    "BartForConditionalGeneration",
    "BigBirdPegasusForConditionalGeneration",
    "BlenderbotForConditionalGeneration",
    "BlenderbotSmallForConditionalGeneration",
    "CanaryForConditionalGeneration",
    "CohereAsrForConditionalGeneration",
    "EncoderDecoderModel",
    "Florence2ForConditionalGeneration",
    "LEDForConditionalGeneration",
    "LongT5ForConditionalGeneration",
    "M2M100ForConditionalGeneration",
    "MBartForConditionalGeneration",
    "MT5ForConditionalGeneration",
    "MarianMTModel",
    "MoonshineForConditionalGeneration",
    "MoonshineStreamingForConditionalGeneration",
    "MvpForConditionalGeneration",
    "NllbMoeForConditionalGeneration",
    "PLBartForConditionalGeneration",
    "PegasusForConditionalGeneration",
    "PegasusXForConditionalGeneration",
    "Pop2PianoForConditionalGeneration",
    "SeamlessM4TForSpeechToText",
    "SeamlessM4TForTextToText",
    "SeamlessM4Tv2ForSpeechToText",
    "SeamlessM4Tv2ForTextToText",
    "Speech2TextForConditionalGeneration",
    "SpeechEncoderDecoderModel",
    "SpeechT5ForSpeechToText",
    "T5ForConditionalGeneration",
    "T5Gemma2ForConditionalGeneration",
    "T5GemmaForConditionalGeneration",
    "UMT5ForConditionalGeneration",
    "UdopForConditionalGeneration",
    "VisionEncoderDecoderModel",
    "WhisperForConditionalGeneration",
]

_LABELS_ARE_TARGETS = [
    "BartForCausalLM",
    "BigBirdPegasusForCausalLM",
    "BlenderbotForCausalLM",
    "BlenderbotSmallForCausalLM",
    "CpmAntForCausalLM",
    "FlaubertWithLMHeadModel",
    "MBartForCausalLM",
    "MarianForCausalLM",
    "MvpForCausalLM",
    "PLBartForCausalLM",
    "PegasusForCausalLM",
    "TrOCRForCausalLM",
    "WhisperForCausalLM",
    "XLMWithLMHeadModel",
    "XLNetLMHeadModel",
]

_ALWAYS_SINGLE_LABEL = [
    "Data2VecAudioForSequenceClassification",
    "HubertForSequenceClassification",
    "SEWDForSequenceClassification",
    "SEWForSequenceClassification",
    "UniSpeechForSequenceClassification",
    "UniSpeechSatForSequenceClassification",
    "Wav2Vec2BertForSequenceClassification",
    "Wav2Vec2ConformerForSequenceClassification",
    "Wav2Vec2ForSequenceClassification",
    "WavLMForSequenceClassification",
    "WhisperForAudioClassification",
]

_ONLY_ATTENDED_TOKENS = [
    "BioGptForTokenClassification",
    "MraForTokenClassification",
    "XLMRobertaXLForTokenClassification",
    "YosoForTokenClassification",
]


def _table() -> dict[str, Head]:
    # Later entries win: first what whole lists of transformers share, then the classes that differ.
    rows: list[tuple[Head, Any]] = [
        (MASKED_LM, _names(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)),
        (
            CAUSAL_LM,
            _names(
                auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
                auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
                auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
                auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
            ),
        ),
        (
            CLASSIFICATION,
            _names(
                auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
                auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
                auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES,
                auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
            ),
        ),
        (TOKEN_CLASSIFICATION, _names(auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES)),
        (
            QUESTION_ANSWERING,
            _names(
                auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
                auto.MODEL_FOR_DOCUMENT_QUESTION_ANSWERING_MAPPING_NAMES,
            ),
        ),
        (MULTIPLE_CHOICE, _names(auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES)),
        (SEMANTIC_SEGMENTATION, _names(auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES)),
        (SINGLE_LABEL_CLASSIFICATION, _ALWAYS_SINGLE_LABEL),
        (ATTENDED_TOKEN_CLASSIFICATION, _ONLY_ATTENDED_TOKENS),
        (FIRST_TOKEN_CLASSIFICATION, ["BrosForTokenClassification"]),
        (ENCODER_DECODER_LM, _ENCODER_DECODERS),
        (PREPARED_ENCODER_DECODER_LM, ["FSMTForConditionalGeneration"]),
        (SWITCH_LM, ["SwitchTransformersForConditionalGeneration"]),
        (ALIGNED_LM, _LABELS_ARE_TARGETS),
        (BAMBA_LM, ["BambaForCausalLM"]),
    ]
    table = {name: head for head, names in rows for name in names}
    return {name: head for name, head in table.items() if name not in EXCLUDED}


HEADS: dict[str, Head] = _table()
"""The head of every model class that transformers lists for a task, by the class's name."""

OWN_HEADS = frozenset([*HEADS.values(), PROMPTED_CAUSAL_LM])
"""The heads of this package, whose losses are known to be 0 where not valid; not those that users put into `HEADS`."""

_HAS_ITS_HEAD_IF: dict[str, Callable[[Any], bool]] = {
    # An adaptive softmax returns no logits of the classes.
    "FlaubertWithLMHeadModel": lambda config: not config.asm,
    "XLMWithLMHeadModel": lambda config: not config.asm,
    # Above a decoder alone they shift the labels; above an encoder-decoder its forward needs them.
    "Blip2ForConditionalGeneration": lambda config: config.use_decoder_only_language_model,
    "InstructBlipForConditionalGeneration": lambda config: config.use_decoder_only_language_model,
    "InstructBlipVideoForConditionalGeneration": lambda config: config.use_decoder_only_language_model,
    # The router's loss is computed in the forward only where it sees labels.
    "NllbMoeForConditionalGeneration": lambda config: not config.output_router_logits,
    # The loss of the auxiliary head is part of the model's own, but its logits are not among the outputs.
    "BeitForSemanticSegmentation": lambda config: not config.use_auxiliary_head,
    "DPTForSemanticSegmentation": lambda config: not config.use_auxiliary_head,
    "Data2VecVisionForSemanticSegmentation": lambda config: not config.use_auxiliary_head,
    "UperNetForSemanticSegmentation": lambda config: not config.use_auxiliary_head,
    # An ignore_index of their own.
    "ModernBertForMaskedLM": lambda config: _ignores_minus_100(config),
    "UltrabertForMaskedLM": lambda config: _ignores_minus_100(config),
}

_PROMPTS_OF_ENCODER_DECODERS = {"PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"}
"""Kinds of PEFT's prompts with which an encoder-decoder can be called without labels."""


def _ignores_minus_100(config: Any) -> bool:
    return not getattr(config, "sparse_prediction", False) or config.sparse_pred_ignore_index == -100


def find_head(model: nn.Module) -> Head | None:
    """The head of `model` (unwrapped), or None if its unreduced losses are not known.

    A class is looked up by the names that transformers' auto classes list, including its base classes; but a class
    outside transformers with its own `forward` computes an unknown loss, so it has no head: that is where users write
    losses, and some agree with the head's on the first batch alone (a penalty on the distance from the initial
    weights, a factor that rises from 0). The same holds for a model whose `loss_function` was replaced.

    Args:
        model: a model of transformers, a subclass of one, or a PEFT model around either. Tuned prompts of PEFT change
            what a causal language model predicts, so pass the PEFT model, not its base.
    """
    if hasattr(model, "get_base_model"):
        return _find_head_under_peft(model)
    if getattr(model, "_loss_function", None) is not None:
        return None
    for cls in type(model).__mro__:
        if cls.__module__.startswith("transformers."):
            has_head = _HAS_ITS_HEAD_IF.get(cls.__name__, lambda config: True)
            return HEADS.get(cls.__name__) if has_head(model.config) else None
        if "forward" in vars(cls):
            return None
    return None


def why_unknown(model: nn.Module) -> str:
    """Why `find_head` knows no head of `model`, for messages: `"it has its own `forward`, ..."`."""
    base = without_peft(model)
    if needs_labels(model):
        return f"PEFT's {_prompts(model)} makes the inputs of its decoder from labels, without which rgd_hf calls a model"
    known = transformers_class(base)
    if known is not None and known.__name__ in HEADS:
        if getattr(base, "_loss_function", None) is not None:
            return "its `loss_function` was replaced, so that its per-sample losses are not known"
        if next(cls for cls in type(base).__mro__ if "forward" in vars(cls)) not in known.__mro__:
            return "it has its own `forward`, whose per-sample losses are not known"
    return "it is not a transformers task head that rgd_hf supports"


def needs_labels(model: nn.Module) -> bool:
    """Whether `model` is an encoder-decoder with prompts of PEFT that is not known to do without labels."""
    prompts = _prompts(model)
    of_pairs = getattr(getattr(without_peft(model), "config", None), "is_encoder_decoder", False)
    return prompts is not None and of_pairs and prompts not in _PROMPTS_OF_ENCODER_DECODERS


def _prompts(model: Any) -> str | None:
    """The kind of the prompts that PEFT tunes in `model`; None where there are none."""
    config: Any = getattr(model, "active_peft_config", None)
    if not getattr(config, "is_prompt_learning", False):
        return None
    return getattr(config.peft_type, "value", config.peft_type)


def _find_head_under_peft(model: Any) -> Head | None:
    head, prompts = find_head(model.get_base_model()), _prompts(model)
    # Context-aware prompt tuning weights the tokens' losses itself.
    if needs_labels(model) or prompts == "CPT":
        return None
    return PROMPTED_CAUSAL_LM if head is CAUSAL_LM and prompts not in (None, "PREFIX_TUNING") else head
