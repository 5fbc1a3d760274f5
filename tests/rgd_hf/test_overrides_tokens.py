"""Overrides around the loss of a language model, whose micro-batches differ in tokens, at both levels."""

import pytest
import torch
from override_batches import assert_same_gradient
from override_steps import CUTS, RATE
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from rgd_hf import ReweightedTrainer, rgd_weights
from tests.helpers.tiny import gradients_of, parameters_of, stack

TAU = 4.0
SETTINGS = {
    "token": {},
    "sample": {"reweighting_level": "sample"},
    "none": {"reweighting": "none"},
    "normalized": {"normalize_weights": True},
}


def llama():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, initializer_range=0.3, **size))


def data():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 40, (12, 10), generator=generator)
    # The first of a sample's tokens are its prompt; of one sample nothing is left.
    lengths = [10 if i == 4 else i % 6 for i in range(12)]
    return [
        {"input_ids": row, "labels": row.masked_fill(torch.arange(10) < length, -100)}
        for row, length in zip(rows, lengths)
    ]


def masked(batch):
    return {**batch, "labels": batch["labels"].masked_fill(batch["input_ids"] % 3 == 0, -100)}


class MasksInTheLoss(ReweightedTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(model, masked(inputs), *args, **kwargs)


class MasksOnTheWay(ReweightedTrainer):
    def _prepare_inputs(self, inputs):
        return masked(super()._prepare_inputs(inputs))


class ClampsGradients(ReweightedTrainer):
    """In every micro-batch, at a bound that gradients of the step's scale stay below, but not those of another."""

    bound = 0.0

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        torch.nn.utils.clip_grad_value_(model.parameters(), self.bound)
        return loss


def objective(model, setting, batch):
    labels = batch["labels"][:, 1:]
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    counts = (labels >= 0).float()
    if setting == "sample":
        losses = (losses * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1)
        counts = counts.amax(dim=1)
    weights = torch.ones_like(losses) if setting == "none" else rgd_weights(losses, tau=TAU)
    return (counts * weights * losses).sum() / (counts * weights if setting == "normalized" else counts).sum()


@CUTS
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    "cls, change",
    [(MasksInTheLoss, masked), (MasksOnTheWay, masked), (ClampsGradients, dict)],
    ids=lambda value: value.__name__,
)
def test_the_step_is_one_mean_over_the_tokens_that_come_to_the_loss(cls, change, setting, cut, make_args):
    args = make_args(
        max_steps=1,
        learning_rate=RATE,
        per_device_train_batch_size=cut[0],
        gradient_accumulation_steps=cut[1],
        train_sampling_strategy="sequential",
    )
    if cls is ClampsGradients and setting == "normalized":
        pytest.skip("the scale is known only with the weights of the whole step")
    model, oracle = llama(), llama()
    objective(oracle, setting, change(stack(data()))).backward()
    expected, start = gradients_of(oracle), parameters_of(model)
    trainer = cls(model, args, train_dataset=data(), tau=TAU, **SETTINGS[setting])
    trainer.bound = 2 * expected.abs().max().item()
    trainer.train()
    assert_same_gradient((start - parameters_of(model)) / RATE, expected)
