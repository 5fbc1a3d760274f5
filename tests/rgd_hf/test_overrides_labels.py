"""Labels that a user's override makes from others: the loss is that of the labels it makes, however a step is cut."""

import pytest
import torch
from override_batches import SAMPLES, assert_same_gradient, data
from torch.nn import functional as F

from rgd_hf import ReweightedTrainer, rgd_surrogate
from tests.helpers.tiny import gradients_of, parameters_of, stack, tiny_bert

CUTS = [(12, 1), (6, 2), (5, 3)]
SETTINGS = {
    "kl": {},
    "none": {"reweighting": "none"},
    "normalized": {"reweighting": "none", "normalize_weights": True},
}


def as_given(labels):
    return labels


def one_hot(labels):
    return F.one_hot(labels, 3).float()


def binary_losses(logits, labels):
    return F.binary_cross_entropy_with_logits(logits, one_hot(labels), reduction="none").mean(dim=1)


def cross_entropy(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


KINDS = {
    # What is in the data, what the override makes of it, the model's `problem_type`, and the loss of the data's classes.
    "one-hot": (as_given, one_hot, "multi_label_classification", binary_losses),
    "numbers of a database": (
        lambda labels: labels + 1000,
        lambda labels: labels - 1000,
        None,
        cross_entropy,
    ),
    "floats": (lambda labels: labels.float(), lambda labels: labels.long(), None, cross_entropy),
    "of several columns": (lambda labels: labels.repeat(4), lambda labels: labels[:, 0], None, cross_entropy),
}


def in_compute_loss(make):
    class Makes(ReweightedTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            return super().compute_loss(model, {**inputs, "labels": make(inputs["labels"])}, *args, **kwargs)

    return Makes


def in_prepare_inputs(make):
    class Makes(ReweightedTrainer):
        def _prepare_inputs(self, inputs):
            inputs = super()._prepare_inputs(inputs)
            return {**inputs, "labels": make(inputs["labels"])}

    return Makes


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [in_compute_loss, in_prepare_inputs])
def test_a_step_is_that_of_the_labels_that_are_made(where, kind, settings, cut, make_args):
    given, make, problem_type, losses_of = KINDS[kind]
    rows = data()
    model = tiny_bert(problem_type=problem_type)
    before = parameters_of(model).clone()
    batch, (size, accumulated) = stack(rows), cut
    args = make_args(
        max_steps=1,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulated,
        optim="sgd",
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
    )
    trainer = where(make)(
        model,
        args,
        train_dataset=[{**row, "labels": given(row["labels"])} for row in rows],
        **SETTINGS[settings],
    )
    trainer.train()
    oracle = tiny_bert()
    losses = losses_of(oracle(batch["input_ids"]).logits, batch["labels"])
    objective = losses if "reweighting" in SETTINGS[settings] else rgd_surrogate(losses)
    (objective.sum() / SAMPLES).backward()
    assert_same_gradient((before - parameters_of(model)) / 1e-2, gradients_of(oracle))
    assert model.config.problem_type == (problem_type or "single_label_classification")


def test_class_weights_are_those_of_the_labels_that_are_made(make_args):
    _, make, _, _ = KINDS["numbers of a database"]
    found = []
    for shift, cls in ((0, ReweightedTrainer), (1000, in_compute_loss(make))):
        rows = [{**row, "labels": row["labels"] + shift} for row in data()]
        args = make_args(max_steps=2, per_device_train_batch_size=3, gradient_accumulation_steps=2)
        trainer = cls(tiny_bert(), args, train_dataset=rows, class_weights=[1.0, 3.0, 0.5])
        trainer.train()
        found.append(parameters_of(trainer.model))
    torch.testing.assert_close(*found)
