"""Tiny models of every architecture, and the oracle of a head: its losses against the model's own loss."""

from typing import Any

import torch
import transformers

from rgd_hf.heads import FusedHead, find_head, verify

VOCABULARY = 64
BATCH, TOKENS, CLASSES = 4, 11, 3

ENCODER: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=40,
    pad_token_id=1,
)
DECODER: dict[str, Any] = dict(ENCODER, num_key_value_heads=1, bos_token_id=2, eos_token_id=3)
EXPERTS: dict[str, Any] = dict(
    DECODER,
    output_router_logits=True,
    router_aux_loss_coef=0.3,
    num_experts_per_tok=2,
    moe_intermediate_size=12,
    shared_expert_intermediate_size=12,
)
T5: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    d_model=16,
    d_kv=8,
    d_ff=24,
    num_layers=2,
    num_heads=2,
    decoder_start_token_id=0,
)
BART: dict[str, Any] = dict(
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
GPT2: dict[str, Any] = dict(
    vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=40, pad_token_id=1
)
VIT: dict[str, Any] = dict(
    image_size=16,
    patch_size=8,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
)
SWIN: dict[str, Any] = dict(
    image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4
)
SEGFORMER: dict[str, Any] = dict(
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
SPEECH: dict[str, Any] = dict(
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
WHISPER: dict[str, Any] = dict(
    BART, num_mel_bins=8, max_source_positions=20, max_target_positions=40, pad_token_id=1
)

CONFIGS: dict[str, dict[str, Any]] = {
    "Bert": ENCODER,
    "Roberta": ENCODER,
    "DistilBert": dict(vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=2, hidden_dim=24, pad_token_id=1),
    "DebertaV2": dict(ENCODER, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "Deberta": ENCODER,
    "Albert": dict(ENCODER, embedding_size=8),
    "Electra": dict(ENCODER, embedding_size=8),
    "ModernBert": dict(ENCODER, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3),
    "XLMRobertaXL": ENCODER,
    "GPT2": GPT2,
    "Llama": DECODER,
    "Qwen2": DECODER,
    "Qwen3": dict(DECODER, head_dim=8),
    "Gemma2": dict(DECODER, head_dim=8),
    "Mixtral": dict(EXPERTS, num_local_experts=4),
    "Qwen2Moe": dict(EXPERTS, num_experts=4, decoder_sparse_step=1),
    "Bamba": dict(
        DECODER,
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
    "T5": T5,
    "SwitchTransformers": dict(
        T5,
        num_experts=4,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        num_layers=3,
        num_decoder_layers=3,
        output_router_logits=True,
    ),
    "Bart": BART,
    "MBart": BART,
    "Marian": dict(BART, pad_token_id=1, decoder_start_token_id=1, decoder_vocab_size=VOCABULARY),
    "Whisper": dict(WHISPER, decoder_start_token_id=2),
    "ViT": VIT,
    "DeiT": VIT,
    "Beit": VIT,
    "Dinov2": VIT,
    "Swin": SWIN,
    "ConvNext": dict(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2, image_size=32),
    "Segformer": SEGFORMER,
    "MobileNetV2": dict(depth_multiplier=0.25, image_size=32),
    "Wav2Vec2": SPEECH,
    "Hubert": SPEECH,
    "VideoMAE": dict(VIT, num_frames=2, tubelet_size=2),
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
    """Compare with the loss of a forward with labels, to 1e-6, and as a training would; returns the unreduced losses."""
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
    # A class derived from this one, or newer, is compared so, dropout and all.
    training = model.training
    verify(head, model, model.train(), inputs, "derives from it")
    model.train(training)
    return losses


def _fused_losses(model: Any, head: Any, inputs: dict[str, Any]) -> torch.Tensor:
    withheld = {*head.label_names, *head.optional_label_names}
    forward = {name: value for name, value in inputs.items() if name not in withheld}
    outputs, losses = FusedHead(model, head.positions_after).run(
        model, forward | head.prepare(model, inputs), head.targets(inputs, model.config)
    )
    assert losses is not None and outputs.logits is None
    return losses
