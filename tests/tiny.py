"""Tiny models and data for tests, and how far two results are apart."""

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification


def tiny_config(num_labels: int = 3, **kwargs) -> BertConfig:
    """A BERT of one layer without dropout, so that a step is a pure function of parameters and batch."""
    return BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,  # spreads the losses to both sides of tau
        num_labels=num_labels,
        **kwargs,
    )


def tiny_bert(seed: int = 0, num_labels: int = 3, **kwargs) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(tiny_config(num_labels, **kwargs))


def classification_data(n: int, num_labels: int = 3, seed: int = 0, length: int = 7) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(0, 50, (length,), generator=generator),
            "labels": torch.randint(0, num_labels, (), generator=generator),
        }
        for _ in range(n)
    ]


def parameters_of(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradients_of(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def stack(data: list[dict]) -> dict[str, torch.Tensor]:
    """One batch of all examples."""
    return {key: torch.stack([example[key] for example in data]) for key in data[0]}
