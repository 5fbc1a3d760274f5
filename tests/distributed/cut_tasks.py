"""Tiny tasks with ragged lengths: their data, models, and losses written out in plain torch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertForTokenClassification, GPT2Config, GPT2LMHeadModel

from tests.helpers.tiny import tiny_bert, tiny_config

TASKS = ("sequence", "token", "causal", "own")
"""Sequence classification, token classification, causal LM, and a token-level `per_sample_loss_fn`."""

LONGEST = 11


def make_data(task: str, n: int, seed: int = 0, weights: bool = False) -> list[dict]:
    """`n` examples of different lengths; in token tasks a third of the labels is -100, in one example all of them."""
    generator = torch.Generator().manual_seed(seed)
    data = []
    for i in range(n):
        length = int(torch.randint(3, LONGEST + 1, (), generator=generator))
        example = {"input_ids": torch.randint(0, 50, (length,), generator=generator)}
        if task == "sequence":
            example["labels"] = torch.randint(0, 3, (), generator=generator)
        else:
            labels = torch.randint(0, 3, (length,), generator=generator)
            if task == "causal":
                labels = example["input_ids"].clone()
            ignored = torch.rand(length, generator=generator) < (1.0 if i == 5 else 0.3)
            example["labels"] = labels.masked_fill(ignored, -100)
        if weights:
            example["sample_weight"] = 0.5 + torch.rand((), generator=generator)
        data.append(example)
    return data


class Collator:
    """Pads to the longest example of the batch, or to `LONGEST` where batches have to be concatenated."""

    def __init__(self, fixed_length: bool = False):
        self.fixed_length = fixed_length

    def __call__(self, examples: list[dict]) -> dict[str, Tensor]:
        length = LONGEST if self.fixed_length else max(len(e["input_ids"]) for e in examples)

        def pad(row: Tensor, value: int) -> Tensor:
            return F.pad(row, (0, length - len(row)), value=value)

        ids = [e["input_ids"] for e in examples]
        batch = {
            "input_ids": torch.stack([pad(row, 0) for row in ids]),
            "attention_mask": torch.stack([pad(torch.ones_like(row), 0) for row in ids]),
        }
        labels = [e["labels"] for e in examples]
        batch["labels"] = torch.stack([pad(row, -100) for row in labels] if labels[0].dim() else labels)
        return batch


def make_model(task: str) -> nn.Module:
    """The same model at every call; no dropout, so that a step is a pure function of parameters and batch."""
    if task == "sequence":
        return tiny_bert()
    torch.manual_seed(0)
    if task == "causal":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=50,
                n_positions=16,
                n_embd=16,
                n_layer=1,
                n_head=2,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                initializer_range=0.3,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
    return BertForTokenClassification(tiny_config())


def own_losses(outputs, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A `per_sample_loss_fn` for token classification."""
    losses = F.cross_entropy(outputs.logits.transpose(1, 2), labels, reduction="none")
    return losses, labels != -100


def oracle_losses(task: str, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Losses and validity of every item of a batch, `[batch]` or `[batch, tokens]`, as a textbook writes them."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    labels = batch["labels"]
    if task == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    valid = labels != -100
    log_probabilities = logits.log_softmax(-1)
    losses = -log_probabilities.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return losses, valid
