"""Tiny models and data for tests, and how far two results are apart."""

import re

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel


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


def tiny_gpt2() -> GPT2LMHeadModel:
    """One layer without dropout."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


def classification_data(n: int, num_labels: int = 3, seed: int = 0, length: int = 7) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(0, 50, (length,), generator=generator),
            "labels": torch.randint(0, num_labels, (), generator=generator),
        }
        for _ in range(n)
    ]


def learned(name: str, values: torch.Tensor) -> torch.Tensor:
    """What of a parameter (or its gradient) can be compared: all but the biases of attention keys.

    Such a bias adds the same number to all the scores of a query, which the softmax takes out again: its true gradient
    is 0. What is computed is rounding errors, and AdamW divides them by their own size into full steps.
    """
    if re.search(r"\b(key|k_proj)\.bias$", name):
        return values[:0]
    if name.endswith("c_attn.bias"):  # GPT-2's of query, key and value in one
        query, _, value = values.chunk(3)
        return torch.cat([query, value])
    return values


def parameters_of(model: nn.Module) -> torch.Tensor:
    return torch.cat([learned(n, p.detach()).flatten() for n, p in model.named_parameters()])


def gradients_of(model: nn.Module) -> torch.Tensor:
    return torch.cat(
        [learned(n, p.grad).flatten() for n, p in model.named_parameters() if p.grad is not None]
    )


def assert_all_is_learned(model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    """No element that `learned` keeps has a gradient of rounding errors alone; told apart in float64."""
    batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    model.double().zero_grad()
    model(**batch).loss.backward()
    largest = max(p.grad.abs().max() for p in model.parameters() if p.grad is not None)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            size = learned(name, parameter.grad).abs()
            assert not ((size > 0) & (size < 1e-12 * largest)).any(), name


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def stack(data: list[dict]) -> dict[str, torch.Tensor]:
    """One batch of all examples."""
    return {key: torch.stack([example[key] for example in data]) for key in data[0]}
