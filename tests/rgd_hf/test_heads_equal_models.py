"""The oracle of every head: the valid mean of its losses, plus the auxiliary loss, is the model's own loss."""

from typing import Any

import pytest
import torch

from rgd_hf.heads import find_head
from tests.helpers.head_oracle import (
    BATCH,
    CLASSES,
    DECODER,
    ENCODER,
    TOKENS,
    VIT,
    VOCABULARY,
    assert_equals_own_loss,
    build,
    text_batch,
    token_labels,
)

TEXT_CLASSIFIERS = [
    "Bert",
    "Roberta",
    "DistilBert",
    "DebertaV2",
    "Deberta",
    "Albert",
    "Electra",
    "ModernBert",
    "GPT2",
    "Llama",
    "Qwen3",
    "Mixtral",
    "T5",
    "Bart",
]

SAMPLE_LABELS = {
    "single-label": (CLASSES, torch.tensor([0, 2, -100, 1])),
    "multi-label": (CLASSES, torch.tensor([[0.0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])),
    "regression": (1, torch.tensor([0.5, -1.0, 2.0, 0.0])),
    "several regressions": (CLASSES, torch.randn(BATCH, CLASSES, generator=torch.Generator().manual_seed(3))),
}


@pytest.mark.parametrize("kind", SAMPLE_LABELS)
@pytest.mark.parametrize("architecture", TEXT_CLASSIFIERS)
def test_sequence_classification(architecture: str, kind: str) -> None:
    num_labels, labels = SAMPLE_LABELS[kind]
    # DeBERTa reads [batch, classes] labels as targets of a cross-entropy, unless the problem type says otherwise.
    problem_type = {
        "several regressions": "regression",
        "multi-label": "multi_label_classification" if "Deberta" in architecture else None,
    }.get(kind)
    model = build(
        f"{architecture}ForSequenceClassification", num_labels=num_labels, problem_type=problem_type
    )
    model._given_problem_type = problem_type
    inputs = text_batch(labels=labels)
    if architecture in ("T5", "Bart"):  # they classify at the end-of-sequence token
        inputs["input_ids"][:, -1] = model.config.eos_token_id
        inputs["input_ids"][:, :-1].clamp_(min=4)
    assert_equals_own_loss(model, inputs)


@pytest.mark.parametrize("architecture", ["Deberta", "DebertaV2"])
def test_deberta_reads_float_labels_of_all_classes_as_targets(architecture: str) -> None:
    model = build(f"{architecture}ForSequenceClassification", num_labels=CLASSES)
    assert_equals_own_loss(model, text_batch(labels=SAMPLE_LABELS["multi-label"][1]))


@pytest.mark.parametrize(
    "architecture",
    [
        "Bert",
        "Roberta",
        "DistilBert",
        "DebertaV2",
        "Albert",
        "Electra",
        "ModernBert",
        "XLMRobertaXL",
        "GPT2",
        "Llama",
        "Qwen2",
        "Qwen2Moe",
        "T5",
    ],
)
def test_token_classification(architecture: str) -> None:
    model = build(f"{architecture}ForTokenClassification", num_labels=CLASSES)
    assert_equals_own_loss(model, text_batch(labels=token_labels(CLASSES)))


@pytest.mark.parametrize(
    "architecture",
    [
        "Bert",
        "Roberta",
        "DistilBert",
        "DebertaV2",
        "Albert",
        "Electra",
        "ModernBert",
        "GPT2",
        "Llama",
        "Qwen2",
        "T5",
        "Bart",
    ],
)
def test_question_answering_with_positions_out_of_range(architecture: str) -> None:
    model = build(f"{architecture}ForQuestionAnswering", num_labels=2)
    positions = {
        "start_positions": torch.tensor([1, TOKENS, -1, 4]),
        "end_positions": torch.tensor([2, TOKENS + 9, 3, TOKENS - 1]),
    }
    losses = assert_equals_own_loss(model, text_batch(**positions))
    assert losses[1] == 0


@pytest.mark.parametrize(
    "architecture", ["Bert", "Roberta", "DistilBert", "DebertaV2", "Albert", "Electra", "ModernBert"]
)
def test_multiple_choice(architecture: str) -> None:
    model = build(f"{architecture}ForMultipleChoice")
    inputs = {name: torch.stack([value, value.roll(1, 0)], dim=1) for name, value in text_batch().items()}
    assert_equals_own_loss(model, {**inputs, "labels": torch.tensor([0, 1, -100, 1])})


@pytest.mark.parametrize(
    "architecture", ["Bert", "Roberta", "DistilBert", "DebertaV2", "Albert", "Electra", "ModernBert"]
)
def test_masked_lm(architecture: str) -> None:
    assert_equals_own_loss(
        build(f"{architecture}ForMaskedLM"), text_batch(labels=token_labels(VOCABULARY)), gradients=True
    )


def test_masked_lm_with_sparse_predictions() -> None:
    model = build("ModernBertForMaskedLM", sparse_prediction=True)
    assert_equals_own_loss(model, text_batch(labels=token_labels(VOCABULARY)))


@pytest.mark.parametrize(
    "architecture", ["Llama", "Qwen2", "Qwen3", "Gemma2", "Mixtral", "Qwen2Moe", "Bamba"]
)
def test_causal_lm(architecture: str) -> None:
    model = build(f"{architecture}ForCausalLM")
    assert_equals_own_loss(
        model,
        text_batch(labels=token_labels(VOCABULARY)),
        gradients=architecture in ("Llama", "Mixtral", "Bamba"),
    )


@pytest.mark.parametrize("architecture", ["Mixtral", "Qwen2Moe", "Bamba"])
def test_the_auxiliary_loss_is_there_to_be_kept(architecture: str) -> None:
    model = build(f"{architecture}ForCausalLM")
    head = find_head(model)
    assert head is not None
    auxiliary = head.auxiliary(model(**text_batch()), model.config, model)
    assert auxiliary is not None and auxiliary.ndim == 0 and auxiliary > 0.1


def test_causal_lm_of_gpt2_and_of_an_encoder_as_decoder() -> None:
    inputs = text_batch(labels=token_labels(VOCABULARY))
    assert_equals_own_loss(build("GPT2LMHeadModel"), inputs, gradients=True)
    assert_equals_own_loss(build("BertLMHeadModel", is_decoder=True), inputs)


@pytest.mark.parametrize("class_name", ["BartForCausalLM", "MBartForCausalLM", "WhisperForCausalLM"])
def test_a_decoder_alone_whose_labels_are_not_shifted(class_name: str) -> None:
    inputs = text_batch(labels=token_labels(VOCABULARY))
    del inputs["attention_mask"]
    assert_equals_own_loss(build(class_name), inputs)


def test_xlnet_labels_are_those_of_its_targets() -> None:
    mapping = torch.zeros(BATCH, 2, TOKENS)
    mapping[:, 0, 4] = mapping[:, 1, 6] = 1
    labels = torch.tensor([[5, 6], [-100, 7], [8, -100], [-100, -100]])
    assert_equals_own_loss(build("XLNetLMHeadModel"), text_batch(labels=labels, target_mapping=mapping))


def test_a_language_model_that_sees_images() -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VIT, projection_dim=16),
        text_config=LlamaConfig(**DECODER),
        image_token_index=VOCABULARY - 1,
        vision_feature_layer=-1,
    )
    inputs = text_batch(labels=token_labels(VOCABULARY))
    inputs["input_ids"].clamp_(max=VOCABULARY - 2)
    inputs["input_ids"][:, :4] = VOCABULARY - 1
    inputs["pixel_values"] = torch.randn(BATCH, 3, 16, 16)
    assert_equals_own_loss(LlavaForConditionalGeneration(config).eval(), inputs)


@pytest.mark.parametrize(
    "class_name",
    [
        "T5ForConditionalGeneration",
        "SwitchTransformersForConditionalGeneration",
        "BartForConditionalGeneration",
        "MBartForConditionalGeneration",
        "MarianMTModel",
    ],
)
def test_encoder_decoder_lm(class_name: str) -> None:
    labels = token_labels(VOCABULARY)[:, :7]
    if class_name.startswith("MBart"):  # it starts from the last label, so that a row must have one
        labels[3, 5] = 9
    assert_equals_own_loss(build(class_name), text_batch(labels=labels), gradients=True)


def test_encoder_decoder_lm_keeps_the_decoder_inputs_of_the_batch() -> None:
    inputs = text_batch(labels=token_labels(VOCABULARY))
    inputs["decoder_input_ids"] = inputs["input_ids"].roll(1, 0)
    model = build("T5ForConditionalGeneration")
    head = find_head(model)
    assert head is not None and head.prepare(model, inputs) == {}
    assert_equals_own_loss(model, inputs)


def test_speech_recognition() -> None:
    model = build("WhisperForConditionalGeneration")
    features = torch.randn(BATCH, 8, 40, generator=torch.Generator().manual_seed(4))
    assert_equals_own_loss(model, {"input_features": features, "labels": token_labels(VOCABULARY)[:, :6]})


def test_encoder_decoders_put_together() -> None:
    from transformers import (
        BertConfig,
        BertLMHeadModel,
        BertModel,
        EncoderDecoderModel,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTModel,
    )

    torch.manual_seed(0)
    decoder = BertConfig(**ENCODER, is_decoder=True, add_cross_attention=True)
    text = EncoderDecoderModel(encoder=BertModel(BertConfig(**ENCODER)), decoder=BertLMHeadModel(decoder))
    vision = VisionEncoderDecoderModel(encoder=ViTModel(ViTConfig(**VIT)), decoder=BertLMHeadModel(decoder))
    for model, inputs in (
        (text, text_batch()),
        (vision, {"pixel_values": torch.randn(BATCH, 3, 16, 16)}),
    ):
        model.config.decoder_start_token_id, model.config.pad_token_id = 2, 1
        labels = token_labels(VOCABULARY)
        labels[0, 4] = 1  # a padding token among the labels is hidden from the decoder
        assert_equals_own_loss(model.eval(), {**inputs, "labels": labels})


@pytest.mark.parametrize("kind", SAMPLE_LABELS)
@pytest.mark.parametrize("architecture", ["ViT", "DeiT", "Beit", "Dinov2", "Swin", "ConvNext", "Segformer"])
def test_image_classification(architecture: str, kind: str) -> None:
    num_labels, labels = SAMPLE_LABELS[kind]
    problem_type = "regression" if kind == "several regressions" else None
    model = build(f"{architecture}ForImageClassification", num_labels=num_labels, problem_type=problem_type)
    model._given_problem_type = problem_type
    size = getattr(model.config, "image_size", 32)
    images = torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(5))
    assert_equals_own_loss(model, {"pixel_values": images, "labels": labels})


def test_timm_model() -> None:
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    torch.manual_seed(0)
    settings: dict[str, Any] = dict(architecture="test_vit", num_labels=CLASSES, model_args={"img_size": 32})
    model = TimmWrapperForImageClassification(TimmWrapperConfig(**settings)).eval()
    images = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    for _, labels in (SAMPLE_LABELS["single-label"], SAMPLE_LABELS["multi-label"]):
        model.config.problem_type = None
        assert_equals_own_loss(model, {"pixel_values": images, "labels": labels})


def test_video_classification() -> None:
    model = build("VideoMAEForVideoClassification", num_labels=CLASSES)
    videos = torch.randn(BATCH, 2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    assert_equals_own_loss(model, {"pixel_values": videos, "labels": SAMPLE_LABELS["single-label"][1]})


@pytest.mark.parametrize("architecture", ["Wav2Vec2", "Hubert"])
def test_audio_classification(architecture: str) -> None:
    model = build(f"{architecture}ForSequenceClassification", num_labels=CLASSES)
    audio = torch.randn(BATCH, 800, generator=torch.Generator().manual_seed(6))
    assert_equals_own_loss(
        model, {"input_values": audio, "labels": SAMPLE_LABELS["single-label"][1]}, gradients=True
    )


def test_audio_classification_by_whisper() -> None:
    model = build("WhisperForAudioClassification", num_labels=CLASSES)
    features = torch.randn(BATCH, 8, 40, generator=torch.Generator().manual_seed(4))
    assert_equals_own_loss(model, {"input_features": features, "labels": SAMPLE_LABELS["single-label"][1]})


@pytest.mark.parametrize(
    ("class_name", "overrides"),
    [
        ("SegformerForSemanticSegmentation", {}),
        ("SegformerForSemanticSegmentation", {"semantic_loss_ignore_index": 2}),
        ("SegformerForSemanticSegmentation", {"num_labels": 1}),
        ("MobileNetV2ForSemanticSegmentation", {}),
    ],
)
def test_semantic_segmentation(class_name: str, overrides: dict[str, int]) -> None:
    model = build(class_name, **{"num_labels": CLASSES, **overrides})
    images = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    labels = torch.randint(
        0, max(model.config.num_labels, 2), (BATCH, 24, 40), generator=torch.Generator().manual_seed(7)
    )
    labels[0, :9] = labels[1] = model.config.semantic_loss_ignore_index
    assert_equals_own_loss(model, {"pixel_values": images, "labels": labels}, gradients=True)
