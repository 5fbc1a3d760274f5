"""A user's token losses without a mask: ignored tokens do not count, or it is asked which do."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertForTokenClassification

from rgd_hf import ReweightedTrainer, rgd_surrogate
from tests.helpers.operators import CountSteps, CountWaits
from tests.helpers.tiny import (
    classification_data,
    gradients_of,
    parameters_of,
    relative_error,
    stack,
    tiny_config,
    tiny_gpt2,
)

RATE = 1e-2


def tagger():
    torch.manual_seed(0)
    return BertForTokenClassification(tiny_config())


def tagged(n=12):
    """Rows of 3 or 7 labels, but no -100 in the first batch of 4."""
    rows = classification_data(n)
    for number, row in enumerate(rows):
        known = torch.arange(7) < (7 if number < 4 or number % 2 == 0 else 3)
        row["labels"] = torch.where(known, row["input_ids"] % 3, -100)
    return rows


def texts(n=12):
    """Prompts of two tokens without a label, padding after every other answer."""
    rows = classification_data(n)
    for number, row in enumerate(rows):
        known = (torch.arange(7) >= 2) & (torch.arange(7) < (5 if number % 2 else 7))
        row["labels"] = torch.where(known, row["input_ids"], -100)
    return rows


def step_of(make_args, model, rows, function, **settings):
    args = make_args(
        max_steps=1,
        learning_rate=RATE,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=3,
        train_sampling_strategy="sequential",
    )
    start = parameters_of(model)
    trainer = ReweightedTrainer(model, args, train_dataset=rows, per_sample_loss_fn=function, **settings)
    trainer.train()
    return (start - parameters_of(model)) / RATE


def expected_step(model, rows, shift):
    batch = stack(rows)
    logits, labels = model(input_ids=batch["input_ids"]).logits, batch["labels"]
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    valid = (labels != -100).float()
    ((rgd_surrogate(losses) * valid).sum() / valid.sum()).backward()
    return gradients_of(model)


def flat(outputs, labels):
    return F.cross_entropy(outputs.logits.reshape(-1, 3), labels.reshape(-1), reduction="none")


def by_row(outputs, labels):
    return F.cross_entropy(outputs.logits.transpose(1, 2), labels, reduction="none")


def next_tokens(outputs, labels):
    return F.cross_entropy(outputs.logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")


def next_tokens_flat(outputs, labels):
    return next_tokens(outputs, labels).flatten()


def padded_next_tokens(outputs, labels):
    """As transformers' causal loss shifts the labels."""
    return by_row(outputs, F.pad(labels, (0, 1), value=-100)[:, 1:])


def of_all_positions(outputs, labels):
    """A token of the model's own in front."""
    return F.pad(by_row(outputs, labels), (1, 0))


def clamped(outputs, labels):
    return by_row(outputs, labels.clamp(min=0))


def with_mask(function, targets=lambda labels: labels):
    return lambda outputs, labels: (function(outputs, labels), targets(labels) != -100)


@pytest.mark.parametrize("function", [flat, by_row])
def test_ignored_tokens_do_not_count(function, make_args):
    found = step_of(make_args, tagger(), tagged(), function)
    assert relative_error(found, expected_step(tagger(), tagged(), shift=False)) < 1e-4


@pytest.mark.parametrize("function", [next_tokens, next_tokens_flat])
def test_ignored_next_tokens_do_not_count(function, make_args):
    found = step_of(make_args, tiny_gpt2(), texts(), function)
    assert relative_error(found, expected_step(tiny_gpt2(), texts(), shift=True)) < 1e-4


def test_losses_of_those_that_count_alone_need_no_mask(make_args):
    def counted(outputs, labels):
        valid = labels != -100
        return F.cross_entropy(outputs.logits[valid], labels[valid], reduction="none")

    rows = tagged()[4:]
    found = step_of(make_args, tagger(), rows, counted)
    assert relative_error(found, expected_step(tagger(), rows, shift=False)) < 1e-4


@pytest.mark.parametrize("answers_only", [True, False])
def test_labels_that_were_shifted_need_a_mask(answers_only, make_args):
    rows = texts() if answers_only else [{**row, "labels": row["input_ids"]} for row in texts()]
    complaint = "losses there are not 0" if answers_only else "last label of every row"
    with pytest.raises(ValueError, match=rf"{complaint}.*bool mask.*targets != -100"):
        step_of(make_args, tiny_gpt2(), rows, padded_next_tokens)
    masked = with_mask(padded_next_tokens, lambda labels: F.pad(labels, (0, 1), value=-100)[:, 1:])
    found = step_of(make_args, tiny_gpt2(), rows, masked)
    assert relative_error(found, expected_step(tiny_gpt2(), rows, shift=True)) < 1e-4


@pytest.mark.parametrize(
    "function, complaint", [(clamped, "losses there are not 0"), (of_all_positions, "-100 in other places")]
)
def test_what_labels_do_not_tell_is_asked_for(function, complaint, make_args):
    rows = tagged()[4:]
    with pytest.raises(ValueError, match=rf"per_sample_loss_fn.*{complaint}.*bool mask"):
        step_of(make_args, tagger(), rows, function)
    in_front = 1 if function is of_all_positions else 0
    masked = with_mask(function, lambda labels: F.pad(labels, (in_front, 0), value=-100))
    found = step_of(make_args, tagger(), tagged(), masked)
    assert relative_error(found, expected_step(tagger(), tagged(), shift=False)) < 1e-4


def test_losses_of_samples_made_of_their_tokens_all_count(make_args):
    def means(outputs, labels):
        return by_row(outputs, labels).sum(1) / (labels != -100).sum(1)

    found = step_of(make_args, tagger(), tagged(), means)
    model, batch = tagger(), stack(tagged())
    rgd_surrogate(means(model(input_ids=batch["input_ids"]), batch["labels"])).mean().backward()
    assert relative_error(found, gradients_of(model)) < 1e-4


def test_a_method_without_a_mask_is_the_same(make_args):
    class Own(ReweightedTrainer):
        def compute_per_sample_losses(self, model, inputs):
            outputs = model(input_ids=inputs["input_ids"])
            return flat(outputs, inputs["labels"]), outputs

    args = make_args(max_steps=1, learning_rate=RATE, per_device_train_batch_size=12)
    model = tagger()
    start = parameters_of(model)
    Own(model, args, train_dataset=tagged()).train()
    found = (start - parameters_of(model)) / RATE
    assert relative_error(found, expected_step(tagger(), tagged(), shift=False)) < 1e-4


# --- level "sample" ---------------------------------------------------------------------------------------------------


def test_flattened_losses_are_no_losses_of_samples(make_args):
    with pytest.raises(ValueError, match=r"each of the 4 samples.*shape \[28\].*\[batch, tokens\].*'token'"):
        step_of(make_args, tagger(), tagged(), flat, reweighting_level="sample")
    found = step_of(make_args, tagger(), tagged(), by_row, reweighting_level="sample")
    model, batch = tagger(), stack(tagged())
    losses = by_row(model(input_ids=batch["input_ids"]), batch["labels"])
    means = losses.sum(1) / (batch["labels"] != -100).sum(1)
    rgd_surrogate(means).mean().backward()
    assert relative_error(found, gradients_of(model)) < 1e-4


def test_steps_after_the_first_never_wait_for_the_device(make_args):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Embedding(50, 3)

        def forward(self, input_ids):
            return {"logits": self.layer(input_ids)}

    def losses(outputs, labels):
        return F.cross_entropy(outputs["logits"].transpose(1, 2), labels, reduction="none")

    counts = []
    for function in (losses, with_mask(losses)):
        mode = CountWaits()
        counter = CountSteps(mode)
        trainer = ReweightedTrainer(
            Plain(),
            make_args(max_steps=6, logging_steps=6),
            train_dataset=tagged(24),
            per_sample_loss_fn=function,
            callbacks=[counter],
        )
        with mode:
            trainer.train()
        counts.append(counter.per_step[1:-1])
    assert counts[0] == counts[1]
