"""Data in which no label counts: every one is -100, as where a maximum length cuts the answers away."""

import math
import warnings

import pytest
import torch
from torch.nn import functional as F
from transformers import BertForMaskedLM, BertForTokenClassification, Trainer, default_data_collator

from rgd_hf import ReweightedTrainer
from tests.helpers.tiny import classification_data, tiny_bert, tiny_config, tiny_gpt2

HEADS = {
    "tokens": lambda: BertForTokenClassification(tiny_config()),
    "masked LM": lambda: BertForMaskedLM(tiny_config()),
    "causal LM": tiny_gpt2,
}


def rows(count, ignored):
    return [
        {**row, "labels": torch.full((7,), -100) if ignored else torch.arange(7) % 3}
        for row in classification_data(count)
    ]


def trainer_of(head, args, **keywords):
    torch.manual_seed(0)
    return ReweightedTrainer(model=HEADS[head](), args=args, data_collator=default_data_collator, **keywords)


@pytest.mark.parametrize("rule", ["none", "kl"])
@pytest.mark.parametrize("head", HEADS)
def test_no_loss_is_no_perfect_score(head, rule, make_args):
    """NaN, as of the stock Trainer; 0 would be the best of all checkpoints."""
    data = {"whole": rows(5, ignored=False), "cut": rows(5, ignored=True)}
    args = make_args(per_device_eval_batch_size=2)
    trainer = trainer_of(head, args, eval_dataset=data, reweighting=rule)
    with pytest.warns(UserWarning, match="eval_cut_loss is NaN: of 5 evaluated rows, none has a label"):
        found = trainer.evaluate()
    stock = Trainer(
        model=trainer.model, args=args, eval_dataset=data["cut"], data_collator=default_data_collator
    )
    assert math.isnan(found["eval_cut_loss"]) and math.isnan(stock.evaluate()["eval_loss"])
    assert math.isfinite(found["eval_whole_loss"])


def test_a_batch_without_labels_beside_others_changes_nothing(make_args):
    data = rows(4, ignored=True) + rows(3, ignored=False)
    trainer = trainer_of("tokens", make_args(per_device_eval_batch_size=2), eval_dataset=data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = trainer.evaluate()["eval_loss"]
        assert found == pytest.approx(trainer.evaluate(data[4:])["eval_loss"])


def test_losses_of_a_users_function_that_count_nowhere(make_args):
    def none_counts(outputs, labels):
        losses = F.cross_entropy(outputs.logits, labels, reduction="none")
        return losses, torch.zeros_like(losses, dtype=torch.bool)

    trainer = ReweightedTrainer(
        model=tiny_bert(),
        args=make_args(),
        eval_dataset=classification_data(6),
        per_sample_loss_fn=none_counts,
    )
    with pytest.warns(UserWarning, match="none has a label that counts"):
        assert math.isnan(trainer.evaluate()["eval_loss"])


@pytest.mark.parametrize("size", [1, 2])
def test_losses_of_the_counted_tokens_alone_may_be_none(size, make_args):
    def counted(outputs, labels):
        losses = F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="none")
        return losses[labels.flatten() >= 0]

    data = rows(2, ignored=True) + rows(3, ignored=False)
    keywords = {"eval_dataset": data, "train_dataset": data}
    args = make_args(per_device_eval_batch_size=size)
    found = trainer_of("tokens", args, **keywords, per_sample_loss_fn=counted).evaluate()["eval_loss"]
    assert found == pytest.approx(trainer_of("tokens", args, **keywords).evaluate()["eval_loss"])


@pytest.mark.parametrize("rule", ["none", "kl"])
@pytest.mark.parametrize("head", HEADS)
def test_training_from_nothing_is_told(head, rule, make_args):
    """Of micro-batches of which some have labels there is nothing to tell."""
    args = make_args(per_device_train_batch_size=2, max_steps=2, logging_steps=1)
    mixed = trainer_of(head, args, train_dataset=rows(4, True) + rows(4, False), reweighting=rule)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="No micro-batch")
        args.gradient_accumulation_steps = 4
        mixed.train()
    args = make_args(per_device_train_batch_size=2, max_steps=2, logging_steps=1)
    trainer = trainer_of(head, args, train_dataset=rows(4, True), reweighting=rule)
    with pytest.warns(UserWarning, match="No micro-batch since the last log has a label that counts"):
        trainer.train()
