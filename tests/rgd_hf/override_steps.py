"""One step of a Trainer with a user's code in it, and its oracle: one backward pass over all samples of the step."""

from typing import Any

import pytest
import torch
from override_batches import data, unreduced
from transformers import Trainer

from rgd_hf import ReweightedTrainer, ReweightingMixin, rgd_weights
from tests.helpers.tiny import gradients_of, parameters_of, stack, tiny_bert

RATE = 1e-2
SETTINGS: dict[str, dict[str, Any]] = {
    "kl": {},
    "none": {"reweighting": "none"},
    "normalized": {"normalize_weights": True},
    "own losses": {"per_sample_loss_fn": unreduced},
}
EVERY_SETTING = pytest.mark.parametrize("setting", SETTINGS)
CUTS = pytest.mark.parametrize("cut", [(12, 1), (5, 3)], ids=str)
IN_FRONT, BEHIND = "in front", "behind"


def trainer_of(cls, make_args, setting, cut, callbacks=(), **arguments):
    args = make_args(
        max_steps=1,
        learning_rate=RATE,
        per_device_train_batch_size=cut[0],
        gradient_accumulation_steps=cut[1],
        train_sampling_strategy="sequential",
        **arguments,
    )
    return cls(tiny_bert(), args, train_dataset=data(), callbacks=list(callbacks), **SETTINGS[setting])


def gradient_taken(trainer):
    start = parameters_of(trainer.model)
    trainer.train()
    return (start - parameters_of(trainer.model)) / RATE


def objective(model, setting, batch=None):
    batch = stack(data()) if batch is None else batch
    losses = unreduced(model(input_ids=batch["input_ids"]), batch["labels"])
    counts = (batch["labels"] >= 0).float()
    weights = counts * (torch.ones_like(losses) if setting == "none" else rgd_weights(losses))
    return (weights * losses).sum() / (weights if setting == "normalized" else counts).sum()


def gradient_of(setting, batch=None, change=lambda gradient: gradient):
    model = tiny_bert()
    objective(model, setting, batch).backward()
    return change(gradients_of(model))


def placed(cls, where):
    if where == IN_FRONT:
        return type(cls.__name__, (cls, ReweightedTrainer), {})
    return type("Ours", (ReweightingMixin, type(cls.__name__, (cls, Trainer), {})), {})


def refuses(trainer, message):
    """It is refused before anything moved."""
    start = parameters_of(trainer.model)
    with pytest.raises(NotImplementedError, match=message):
        trainer.train()
    assert torch.equal(parameters_of(trainer.model), start)
