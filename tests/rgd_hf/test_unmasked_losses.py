"""A user's token losses without a mask: ignored tokens do not count, or it is asked which do."""

import functools
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BatchEncoding, BertForTokenClassification

from rgd_hf import ReweightedTrainer, rgd_surrogate
from tests.helpers.operators import CountSteps, CountWaits
from tests.helpers.tiny import (
    classification_data,
    gradients_of,
    parameters_of,
    relative_error,
    stack,
    tiny_bert,
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


def token_rows(count, column):
    """Labels of tokens, half of them ignored."""
    return [
        {**row, column: torch.where(torch.arange(7) % 2 > 0, -100, torch.arange(7) % 3)}
        for row in classification_data(count)
    ]


def by_token(outputs, labels, ignore_index=-100):
    logits = outputs.logits.flatten(0, 1)
    losses = F.cross_entropy(logits, labels.flatten(), reduction="none", ignore_index=ignore_index)
    return losses.view(labels.shape)


class OtherName(ReweightedTrainer):
    def compute_per_sample_losses(self, model, inputs):
        labels = inputs.pop("targets")
        outputs = model(**inputs)
        return by_token(outputs, labels), outputs


def test_labels_of_another_name_tell_a_method_too(make_args):
    def loss_of(cls, column):
        rows = [
            {name: row[name] for name in row if name != "labels"} | {column: row["targets"]}
            for row in token_rows(4, "targets")
        ]
        args = make_args(label_names=[column], max_steps=1, logging_steps=1)
        model = BertForTokenClassification(tiny_config())
        trainer = cls(model, args, train_dataset=rows, eval_dataset=rows, reweighting="none")
        trainer.train()
        return trainer.state.log_history[0]["loss"], trainer.evaluate()["eval_loss"]

    torch.manual_seed(0)
    expected = loss_of(ReweightedTrainer, "labels")
    torch.manual_seed(0)
    assert loss_of(OtherName, "targets") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stacked", [False, True])
def test_several_columns_with_labels_that_may_not_count_need_a_mask(stacked, make_args):
    def losses(outputs, labels):
        found = [
            F.cross_entropy(outputs.logits, labels[name], reduction="none") for name in ("topic", "tone")
        ]
        return torch.stack(found, 1) if stacked else found[0]

    rows = [
        {**row, "topic": torch.tensor(-100 if i % 2 else 1), "tone": torch.tensor(0)}
        for i, row in enumerate(classification_data(8))
    ]
    args = make_args(label_names=["topic", "tone"])
    trainer = ReweightedTrainer(tiny_bert(), args, train_dataset=rows, per_sample_loss_fn=losses)
    with pytest.raises(ValueError, match=r"some labels are -100\. Return a bool mask"):
        trainer.train()


def test_missing_numbers_need_a_mask(make_args):
    rows = [
        {**row, "labels": torch.tensor(float("nan") if i % 2 else 0.5)}
        for i, row in enumerate(classification_data(8))
    ]

    def losses(outputs, labels):
        return (outputs.logits[:, 0] - labels.nan_to_num()) ** 2 * ~labels.isnan()

    trainer = ReweightedTrainer(tiny_bert(), make_args(), train_dataset=rows, per_sample_loss_fn=losses)
    with pytest.raises(ValueError, match="some labels are NaN, and their losses are numbers"):
        trainer.train()


def test_another_index_that_is_ignored_is_told(make_args):
    rows = [{**row, "labels": (torch.arange(7) + 1) % 3} for row in classification_data(8)]
    model = BertForTokenClassification(tiny_config())

    def trainer(**ignores):
        fn = functools.partial(by_token, **ignores)
        return ReweightedTrainer(model, make_args(max_steps=1), train_dataset=rows, per_sample_loss_fn=fn)

    with pytest.warns(UserWarning, match="with the label 0, 29% of them, are exactly 0.*return a bool mask"):
        trainer(ignore_index=0).train()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="In the first batch")
        trainer().train()


def test_an_empty_place_of_the_loss_is_no_output(make_args):
    """`return loss, logits` of a model that was not given labels."""

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = tiny_bert()

        def forward(self, input_ids, labels=None):
            outputs = self.bert(input_ids=input_ids)
            return None if labels is None else outputs.logits.sum(), outputs.logits

    data = classification_data(4)
    trainer = ReweightedTrainer(
        Wrapped(),
        make_args(),
        eval_dataset=data,
        per_sample_loss_fn=lambda outputs, labels: F.cross_entropy(outputs[-1], labels, reduction="none"),
        compute_metrics=lambda prediction: {"rows": len(prediction.predictions)},
    )
    assert trainer.evaluate()["eval_rows"] == 4


class Reads(ReweightedTrainer):
    """What a stock Trainer's override may do."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        length = inputs.input_ids.shape[1]
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        assert outputs.loss is loss and outputs[0] is loss and length == 7
        loss = outputs.loss + 0 * outputs[1].sum()
        return (loss, outputs) if return_outputs else loss


def test_overrides_find_columns_as_attributes_and_the_loss_in_the_outputs(make_args):
    def collate(rows):
        return BatchEncoding(
            {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}
        )

    data = classification_data(8)
    found = []
    for cls in (ReweightedTrainer, Reads):
        trainer = cls(
            tiny_bert(), make_args(max_steps=2), train_dataset=data, eval_dataset=data, data_collator=collate
        )
        trainer.train()
        assert trainer.predict(data).predictions.shape == (8, 3)
        found.append(trainer.evaluate()["eval_loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
