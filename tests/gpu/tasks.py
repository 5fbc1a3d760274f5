"""One small model for every kind of head, with data and the losses that it should have, written out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

TOKENS = 12
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BERT = {**SIZE, "vocab_size": 50, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT |= {"initializer_range": 0.2, "max_position_embeddings": 32}
SEGFORMER = {
    "num_encoder_blocks": 1, "depths": [1], "sr_ratios": [1], "hidden_sizes": [16], "patch_sizes": [3], "strides": [2],
    "num_attention_heads": [2], "mlp_ratios": [2], "decoder_hidden_size": 16, "num_labels": 3,
    "classifier_dropout_prob": 0.0, "drop_path_rate": 0.0,
}  # fmt: skip


def per_token(logits: Tensor, labels: Tensor) -> Tensor:
    """Losses of the valid tokens, one after the other."""
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), reduction="none", ignore_index=-100
    )
    return losses[labels.flatten() != -100]


@dataclass(frozen=True)
class Task:
    """A model, what its batches hold, and the unreduced losses of (outputs, batch)."""

    model: Callable[[], nn.Module]
    example: Callable[[torch.Generator], dict[str, Any]]
    losses: Callable[[Any, dict[str, Tensor]], Tensor]

    def build(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.model()

    def data(self, n: int = 16, seed: int = 0) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(seed)
        return [self.example(generator) for _ in range(n)]


def _ids(generator: torch.Generator) -> Tensor:
    return torch.randint(3, 50, (TOKENS,), generator=generator)


def _class(generator: torch.Generator, classes: int, *shape: int) -> Tensor:
    return torch.randint(0, classes, shape, generator=generator)


def _some_ignored(labels: Tensor, generator: torch.Generator) -> Tensor:
    return labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.3, -100)


def _text(label: Callable[[torch.Generator], Any]) -> Callable[[torch.Generator], dict[str, Any]]:
    return lambda generator: {"input_ids": _ids(generator), "labels": label(generator)}


def _spans(generator: torch.Generator) -> dict[str, Any]:
    positions = {f"{end}_positions": _class(generator, TOKENS) for end in ("start", "end")}
    return {"input_ids": _ids(generator), **positions}


def _images(label: Callable[[torch.Generator], Any]) -> Callable[[torch.Generator], dict[str, Any]]:
    return lambda generator: {
        "pixel_values": torch.randn(3, 16, 16, generator=generator),
        "labels": label(generator),
    }


def _segmentation_losses(outputs: Any, batch: dict[str, Tensor]) -> Tensor:
    """One loss a pixel: the logits are enlarged to the size of the labels first."""
    logits = F.interpolate(
        outputs.logits, size=batch["labels"].shape[-2:], mode="bilinear", align_corners=False
    )
    losses = F.cross_entropy(logits, batch["labels"], reduction="none", ignore_index=255)
    return losses.flatten()


LLAMA = {**SIZE, "vocab_size": 50, "max_position_embeddings": 32, "initializer_range": 0.2}
T5 = {
    "vocab_size": 50,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 32,
    "num_layers": 1,
    "num_heads": 2,
    "dropout_rate": 0.0,
}

TASKS = {
    "single label": Task(
        lambda: BertForSequenceClassification(BertConfig(num_labels=3, **BERT)),
        _text(lambda generator: _class(generator, 3)),
        lambda outputs, batch: F.cross_entropy(outputs.logits.float(), batch["labels"], reduction="none"),
    ),
    "multi-label": Task(
        lambda: BertForSequenceClassification(
            BertConfig(num_labels=4, problem_type="multi_label_classification", **BERT)
        ),
        _text(lambda generator: _class(generator, 2, 4).float()),
        lambda outputs, batch: F.binary_cross_entropy_with_logits(
            outputs.logits, batch["labels"], reduction="none"
        ).mean(1),
    ),
    "regression": Task(
        lambda: BertForSequenceClassification(BertConfig(num_labels=1, **BERT)),
        _text(lambda generator: torch.randn((), generator=generator)),
        lambda outputs, batch: (outputs.logits.squeeze(1) - batch["labels"]).square(),
    ),
    "token classification": Task(
        lambda: BertForTokenClassification(BertConfig(num_labels=3, **BERT)),
        _text(lambda generator: _some_ignored(_class(generator, 3, TOKENS), generator)),
        lambda outputs, batch: per_token(outputs.logits, batch["labels"]),
    ),
    "question answering": Task(
        lambda: BertForQuestionAnswering(BertConfig(num_labels=2, **BERT)),
        _spans,
        lambda outputs, batch: (
            (
                F.cross_entropy(outputs.start_logits, batch["start_positions"], reduction="none")
                + F.cross_entropy(outputs.end_logits, batch["end_positions"], reduction="none")
            )
            / 2
        ),
    ),
    "masked LM": Task(
        lambda: BertForMaskedLM(BertConfig(**BERT)),
        _text(lambda generator: _some_ignored(_class(generator, 50, TOKENS), generator)),
        lambda outputs, batch: per_token(outputs.logits, batch["labels"]),
    ),
    "causal LM": Task(
        lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
        _text(lambda generator: _some_ignored(_class(generator, 50, TOKENS), generator)),
        lambda outputs, batch: per_token(outputs.logits[:, :-1], batch["labels"][:, 1:]),
    ),
    "encoder-decoder LM": Task(
        lambda: T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, pad_token_id=0, **T5)),
        _text(lambda generator: _class(generator, 50, TOKENS)),
        lambda outputs, batch: per_token(outputs.logits, batch["labels"]),
    ),
    "image classification": Task(
        lambda: ViTForImageClassification(ViTConfig(num_labels=3, image_size=16, patch_size=4, **SIZE)),
        _images(lambda generator: _class(generator, 3)),
        lambda outputs, batch: F.cross_entropy(outputs.logits, batch["labels"], reduction="none"),
    ),
    "semantic segmentation": Task(
        lambda: SegformerForSemanticSegmentation(SegformerConfig(**SEGFORMER)).eval(),
        _images(lambda generator: _class(generator, 3, 16, 16)),
        _segmentation_losses,
    ),
}
