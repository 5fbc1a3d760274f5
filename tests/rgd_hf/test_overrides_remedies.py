"""Refusals of overrides whose message names a training without weights: what it says trains, to the letter."""

import re

import pytest
import torch
from override_cases import OwnLoss, OwnLossOfTheStep
from torch import nn
from torch.nn import functional as F
from transformers import Trainer

from rgd_hf import ReweightedTrainer, ReweightingMixin
from tests.helpers.tiny import classification_data, parameters_of, tiny_bert

ROWS = classification_data(16)
NONE, CLASS_WEIGHTS, CLASS = "reweighting='none'", "class_weights", "the class without rgd_hf"


class OnCondition:
    """As many write it for a setting that may be off."""

    weight = torch.tensor([1.0, 2.0, 3.0])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.weight is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits, labels, weight=self.weight)
        return (loss, outputs) if return_outputs else loss


class OwnLossInTraining:
    """The parents' loss is for evaluation."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return OwnLossOfTheStep.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)


class LeavesItOut:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        _, outputs = super().compute_loss(model, inputs, return_outputs=True)
        loss = F.cross_entropy(outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


class OwnStep:
    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = model(**self._prepare_inputs(inputs)).loss
        self.accelerator.backward(loss)
        return loss.detach()


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.scores = nn.EmbeddingBag(50, 3)

    def forward(self, input_ids, labels=None):
        logits = self.scores(input_ids)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Weighs:
    def weigh(self, items, inputs):
        return torch.ones_like(items.losses)


def reduced(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs.logits, labels)


def in_front(*classes):
    return type("Mine", (*classes, ReweightedTrainer), {})


def behind(*classes):
    return type("Mine", (ReweightingMixin, type("Theirs", (*classes, Trainer), {})), {})


CASES = {
    "in front": (in_front(OwnLoss), tiny_bert, {}, {NONE}),
    "in front, class weights": (
        in_front(OwnLoss),
        tiny_bert,
        {"class_weights": [1, 2, 3]},
        {NONE, CLASS_WEIGHTS},
    ),
    "in front, class weights alone": (
        in_front(OwnLoss),
        tiny_bert,
        {"class_weights": [1, 2, 3], "reweighting": "none"},
        {CLASS_WEIGHTS},
    ),
    "in front of weigh": (in_front(OwnLoss, Weighs), tiny_bert, {"reweighting": "none"}, {"Weighs.weigh"}),
    "of the whole step": (in_front(OwnLossOfTheStep), tiny_bert, {}, {NONE}),
    "of the whole step, in training": (in_front(OwnLossInTraining), tiny_bert, {}, {CLASS}),
    "on condition": (in_front(OnCondition), tiny_bert, {}, {CLASS}),
    "on condition, none": (in_front(OnCondition), tiny_bert, {"reweighting": "none"}, {CLASS}),
    "in front, and losses of its own": (
        in_front(OwnLoss),
        tiny_bert,
        {
            "per_sample_loss_fn": lambda outputs, labels: F.cross_entropy(
                outputs.logits, labels, reduction="none"
            )
        },
        {CLASS},
    ),
    "behind": (behind(OwnLoss), tiny_bert, {}, {NONE}),
    "behind, class weights": (
        behind(OwnLoss),
        tiny_bert,
        {"class_weights": "balanced"},
        {NONE, CLASS_WEIGHTS},
    ),
    "behind, on condition": (behind(OnCondition), tiny_bert, {}, {NONE}),
    "left out": (in_front(LeavesItOut), tiny_bert, {}, {NONE}),
    "a step of its own": (in_front(OwnStep), tiny_bert, {"class_weights": [1, 2, 3]}, {NONE, CLASS_WEIGHTS}),
    "function": (
        ReweightedTrainer,
        tiny_bert,
        {"compute_loss_func": reduced, "class_weights": [1, 2, 3]},
        {NONE, CLASS_WEIGHTS},
    ),
    "unknown head": (ReweightedTrainer, Unknown, {"class_weights": [1, 2, 3]}, {NONE, CLASS_WEIGHTS}),
}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_the_remedy_trains(case, accumulation, make_args):
    cls, make_model, given, remedy = CASES[case]

    def train(cls, **given):
        args = make_args(per_device_train_batch_size=4, gradient_accumulation_steps=accumulation)
        model = make_model()
        start = parameters_of(model)
        cls(model, args, train_dataset=ROWS, **given).train()
        assert not torch.equal(parameters_of(model), start)

    with pytest.raises((NotImplementedError, ValueError)) as refusal:
        train(cls, **given)
    said = re.split(r"[;,] or ", str(refusal.value))[-1]
    assert {part for part in (NONE, CLASS_WEIGHTS, CLASS, "Weighs.weigh") if part in said} == remedy
    if NONE in remedy:
        given = given | {"reweighting": "none"}
    if CLASS_WEIGHTS in remedy:
        given = {name: value for name, value in given.items() if name != "class_weights"}
    if CLASS in remedy:
        own = [base for base in cls.__mro__ if base.__module__ == __name__ and base is not cls]
        cls, given = type("Mine", (*own, Trainer), {}), {}
    if "Weighs.weigh" in remedy:
        cls = in_front(*(base for base in cls.__bases__ if base not in (Weighs, ReweightedTrainer)))
    train(cls, **given)
