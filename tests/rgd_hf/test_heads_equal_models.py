"""The oracle of every head: the valid mean of its losses, plus the auxiliary loss, is the model's own loss."""

from typing import Any

import pytest
import torch
import transformers

from rgd_hf.heads import FusedHead, find_head

VOCABULARY = 64
BATCH, TOKENS, CLASSES = 4, 11, 3

_ENCODER: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=40,
    pad_token_id=1,
)
_DECODER: dict[str, Any] = dict(_ENCODER, num_key_value_heads=1, bos_token_id=2, eos_token_id=3)
_EXPERTS: dict[str, Any] = dict(
    _DECODER,
    output_router_logits=True,
    router_aux_loss_coef=0.3,
    num_experts_per_tok=2,
    moe_intermediate_size=12,
    shared_expert_intermediate_size=12,
)
_T5: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    d_model=16,
    d_kv=8,
    d_ff=24,
    num_layers=2,
    num_heads=2,
    decoder_start_token_id=0,
)
_BART: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=24,
    decoder_ffn_dim=24,
    max_position_embeddings=40,
)
_GPT2: dict[str, Any] = dict(
    vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=40, pad_token_id=1
)
_VIT: dict[str, Any] = dict(
    image_size=16,
    patch_size=8,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
)
_SWIN: dict[str, Any] = dict(
    image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4
)
_SEGFORMER: dict[str, Any] = dict(
    num_encoder_blocks=2,
    depths=[1, 1],
    sr_ratios=[2, 1],
    hidden_sizes=[8, 16],
    patch_sizes=[7, 3],
    strides=[4, 2],
    num_attention_heads=[1, 2],
    mlp_ratios=[2, 2],
    decoder_hidden_size=16,
)
_SPEECH: dict[str, Any] = dict(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    conv_dim=(16, 16),
    conv_stride=(5, 4),
    conv_kernel=(10, 8),
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
    classifier_proj_size=8,
    mask_time_prob=0.0,
)
_WHISPER: dict[str, Any] = dict(
    _BART, num_mel_bins=8, max_source_positions=20, max_target_positions=40, pad_token_id=1
)

CONFIGS: dict[str, dict[str, Any]] = {
    "Bert": _ENCODER,
    "Roberta": _ENCODER,
    "DistilBert": dict(vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=2, hidden_dim=24, pad_token_id=1),
    "DebertaV2": dict(_ENCODER, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "Deberta": _ENCODER,
    "Albert": dict(_ENCODER, embedding_size=8),
    "Electra": dict(_ENCODER, embedding_size=8),
    "ModernBert": dict(_ENCODER, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3),
    "XLMRobertaXL": _ENCODER,
    "GPT2": _GPT2,
    "Llama": _DECODER,
    "Qwen2": _DECODER,
    "Qwen3": dict(_DECODER, head_dim=8),
    "Gemma2": dict(_DECODER, head_dim=8),
    "Mixtral": dict(_EXPERTS, num_local_experts=4),
    "Qwen2Moe": dict(_EXPERTS, num_experts=4, decoder_sparse_step=1),
    "Bamba": dict(
        _DECODER,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
        attn_layer_indices=[1],
        z_loss_coefficient=0.3,
    ),
    "XLNet": dict(
        vocab_size=VOCABULARY, d_model=16, n_layer=1, n_head=2, d_head=8, d_inner=24, pad_token_id=1
    ),
    "T5": _T5,
    "SwitchTransformers": dict(
        _T5,
        num_experts=4,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        num_layers=3,
        num_decoder_layers=3,
        output_router_logits=True,
    ),
    "Bart": _BART,
    "MBart": _BART,
    "Marian": dict(_BART, pad_token_id=1, decoder_start_token_id=1, decoder_vocab_size=VOCABULARY),
    "Whisper": dict(_WHISPER, decoder_start_token_id=2),
    "ViT": _VIT,
    "DeiT": _VIT,
    "Beit": _VIT,
    "Dinov2": _VIT,
    "Swin": _SWIN,
    "ConvNext": dict(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2, image_size=32),
    "Segformer": _SEGFORMER,
    "MobileNetV2": dict(depth_multiplier=0.25, image_size=32),
    "Wav2Vec2": _SPEECH,
    "Hubert": _SPEECH,
    "VideoMAE": dict(_VIT, num_frames=2, tubelet_size=2),
}


def build(class_name: str, **overrides: Any) -> Any:
    """A tiny, randomly initialised model in evaluation mode, so that dropout does not differ between two passes."""
    torch.manual_seed(0)
    cls = getattr(transformers, class_name)
    architecture = next(
        name for name in sorted(CONFIGS, key=len, reverse=True) if class_name.startswith(name)
    )
    config = cls.config_class(**{**CONFIGS[architecture], **overrides})
    return cls(config).eval()


def text_batch(**labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Rows of 11, 8, 5 and 11 tokens, padded on the right."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(4, VOCABULARY, (BATCH, TOKENS), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    for row, length in ((1, 8), (2, 5)):
        input_ids[row, length:] = 1
        attention_mask[row, length:] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask, **labels}


def token_labels(classes: int) -> torch.Tensor:
    """Ragged: leading, trailing and scattered -100, and a row that has nothing else."""
    labels = torch.randint(0, classes, (BATCH, TOKENS), generator=torch.Generator().manual_seed(2))
    labels[0, :3] = labels[1, 8:] = labels[2, 2::2] = labels[3] = -100
    return labels


def assert_equals_own_loss(model: Any, inputs: dict[str, Any], gradients: bool = False) -> torch.Tensor:
    """Compare with the loss of a forward with labels, to 1e-6; returns the unreduced losses."""
    head = find_head(model)
    assert head is not None
    own = model(**{name: value.clone() for name, value in inputs.items()}).loss
    if hasattr(model.config, "problem_type") and not getattr(model, "_given_problem_type", None):
        model.config.problem_type = None
    head.check(inputs, model.config)
    withheld = {*head.label_names, *head.optional_label_names}
    outputs = model(
        **{name: value for name, value in inputs.items() if name not in withheld},
        **head.prepare(model, inputs),
    )
    losses, valid = (
        head.losses(outputs, inputs, model.config, 0.0),
        head.valid(inputs, model.config),
    )
    assert losses.dtype == torch.float32
    assert losses.shape == valid.shape and valid.dtype == torch.bool
    assert losses.ndim == (2 if head.token_level else 1) and losses.shape[0] == BATCH
    assert (losses[~valid] == 0).all()
    mean = losses.sum() / valid.sum()
    auxiliary = head.auxiliary(outputs, model.config, model)
    if auxiliary is not None:
        mean = mean + auxiliary
    torch.testing.assert_close(mean, own, rtol=1e-6, atol=1e-7)
    objectives = [mean]
    if head.targets is not None:
        without_logits = _fused_losses(model, head, inputs)
        torch.testing.assert_close(without_logits, losses, rtol=1e-5, atol=1e-6)
        fused = without_logits.sum() / valid.sum()
        objectives.append(fused if auxiliary is None else fused + auxiliary)
    if gradients:
        parameters = [p for p in model.parameters() if p.requires_grad]
        expected = torch.autograd.grad(own, parameters, allow_unused=True)
        for objective in objectives:
            found = torch.autograd.grad(objective, parameters, allow_unused=True, retain_graph=True)
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    return losses


def _fused_losses(model: Any, head: Any, inputs: dict[str, Any]) -> torch.Tensor:
    withheld = {*head.label_names, *head.optional_label_names}
    forward = {name: value for name, value in inputs.items() if name not in withheld}
    outputs, losses = FusedHead(model, head.positions_after).run(
        model, forward | head.prepare(model, inputs), head.targets(inputs, model.config)
    )
    assert losses is not None and outputs.logits is None
    return losses


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
        vision_config=CLIPVisionConfig(**_VIT, projection_dim=16),
        text_config=LlamaConfig(**_DECODER),
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
    decoder = BertConfig(**_ENCODER, is_decoder=True, add_cross_attention=True)
    text = EncoderDecoderModel(encoder=BertModel(BertConfig(**_ENCODER)), decoder=BertLMHeadModel(decoder))
    vision = VisionEncoderDecoderModel(encoder=ViTModel(ViTConfig(**_VIT)), decoder=BertLMHeadModel(decoder))
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
