"""Float labels `[batch, classes]`: class probabilities or independent labels, whatever the first batch happens to hold."""

import pytest
import torch
from torch.nn import functional as F

from rgd_hf import ReweightedTrainer, rgd_surrogate
from tests.helpers.tiny import (
    classification_data,
    gradients_of,
    parameters_of,
    relative_error,
    stack,
    tiny_bert,
)

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
RATE = 1e-2


def one_hot_first(n=12, first=4):
    """Mixup that mixes all samples but the first few."""
    rows = classification_data(n)
    for number, row in enumerate(rows):
        one_hot = F.one_hot(row["labels"], 3).float()
        row["labels"] = one_hot if number < first else 0.8 * one_hot + 0.2 / 3
    return rows


def soft_cross_entropy(logits, labels):
    return -(labels * logits.log_softmax(-1)).sum(1)


def binary_cross_entropy(logits, labels):
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)


def trained(make_args, model, rows, **settings):
    args = make_args(
        max_steps=1,
        learning_rate=RATE,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=len(rows) // 4,
        train_sampling_strategy="sequential",
    )
    trainer = ReweightedTrainer(model, args, train_dataset=rows, **settings)
    trainer.train()
    return trainer


@pytest.mark.parametrize("reweighting", ["kl", "none"])
def test_one_hot_rows_alone_are_refused_with_both_readings(reweighting, make_args):
    with pytest.raises(ValueError, match=rf"each row one-hot.*problem_type = '{SINGLE}'.*'{MULTI}'"):
        trained(make_args, tiny_bert(), one_hot_first(), reweighting=reweighting)


@pytest.mark.parametrize(
    "problem_type, losses_of", [(SINGLE, soft_cross_entropy), (MULTI, binary_cross_entropy)]
)
def test_either_remedy_decides_training_and_evaluation(problem_type, losses_of, make_args):
    model, rows = tiny_bert(), one_hot_first()
    model.config.problem_type = problem_type
    start = parameters_of(model)
    trainer = trained(make_args, model, rows, eval_dataset=rows[:4])
    oracle, batch = tiny_bert(), stack(rows)
    rgd_surrogate(losses_of(oracle(input_ids=batch["input_ids"]).logits, batch["labels"])).mean().backward()
    assert relative_error((start - parameters_of(model)) / RATE, gradients_of(oracle)) < 1e-4
    batch = stack(rows[:4])
    expected = losses_of(model.eval()(input_ids=batch["input_ids"]).logits, batch["labels"]).mean().item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_mixed_training_labels_and_class_numbers_in_evaluation_agree(make_args):
    rows, plain = one_hot_first(first=2), classification_data(12)
    trainer = trained(make_args, tiny_bert(), rows, eval_dataset=plain)
    assert trainer.model.config.problem_type == SINGLE
    own = trainer.model.eval()(**stack(plain)).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(own, rel=1e-5)


def multi_hot(n=12):
    rows = classification_data(n)
    return [{**row, "labels": torch.tensor([1.0, 0.0, float(i % 2)])} for i, row in enumerate(rows)]


def test_labels_that_contradict_an_earlier_reading_are_refused(make_args):
    """Class numbers make it a single label; sets of classes come later."""
    trainer = ReweightedTrainer(
        tiny_bert(), make_args(), train_dataset=multi_hot(), eval_dataset=classification_data(8)
    )
    trainer.evaluate()
    with pytest.raises(ValueError, match=rf"needs class indices, or class probabilities.*'{MULTI}'"):
        trainer.train()
    trainer = trained(make_args, tiny_bert(), multi_hot(), eval_dataset=classification_data(8))
    with pytest.raises(ValueError, match=rf"{MULTI} with num_labels=3 needs \[batch, 3\]"):
        trainer.evaluate()
