"""GroupDRO divides by the items that count, wherever the losses come from and however a step is cut, or says that it cannot."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import BertForTokenClassification, TrainerCallback, TrainingArguments

from rgd_hf import ReweightedTrainer
from rgd_hf.weightings import GroupDRO
from tests.helpers.processes import run_on
from tests.helpers.quiet import QUIET
from tests.helpers.tiny import (
    classification_data,
    gradients_of,
    parameters_of,
    relative_error,
    tiny_bert,
    tiny_config,
)

SIZE = 8
RATE = 0.1


def tagger():
    torch.manual_seed(0)
    return BertForTokenClassification(tiny_config())


def tagged_data():
    """Seven labels for each sample of group 0, one for each of group 1."""
    rows = classification_data(SIZE)
    generator = torch.Generator().manual_seed(1)
    for number, row in enumerate(rows):
        row["labels"] = torch.randint(0, 3, (7,), generator=generator)
        row["group"] = number % 2
        if row["group"]:
            row["labels"][1:] = -100
    return rows


def grouped_data():
    return [{**row, "group": number % 2} for number, row in enumerate(classification_data(SIZE))]


def mean_of_groups(model, batch, counted):
    """`sum_g q_g * mean loss of g` for the items of `batch` that count, with equal q_g."""
    logits, labels = model(batch["input_ids"]).logits, batch["labels"]
    losses = F.cross_entropy(logits.flatten(0, -2), labels.clamp(min=0).flatten(), reduction="none")
    losses, groups = losses.view(labels.shape), torch.arange(len(labels)) % 2
    return sum(0.5 * losses[groups == group][counted[groups == group]].mean() for group in (0, 1))


def wanted(make_model, data, counted):
    model = make_model().train()
    batch = {name: torch.stack([row[name] for row in data]) for name in ("input_ids", "labels")}
    mean_of_groups(model, batch, counted(batch["labels"])).backward()
    return gradients_of(model)


def step_of(trainer):
    before = parameters_of(trainer.model)
    trainer.train()
    return (before - parameters_of(trainer.model)) / RATE


def trainer_for(make_args, cls, model, data, micro_batches=1, **kwargs):
    args = make_args(
        per_device_train_batch_size=SIZE // micro_batches,
        gradient_accumulation_steps=micro_batches,
        max_steps=1,
        learning_rate=RATE,
        train_sampling_strategy="sequential",
    )
    return cls(model, args, train_dataset=data, reweighting=GroupDRO(2), **kwargs)


class OfTokens(ReweightedTrainer):
    """Losses of the head's items."""

    def compute_per_sample_losses(self, model, inputs):
        losses, outputs, *rest = super().compute_per_sample_losses(model, inputs)
        return 1.0 * losses, outputs, *rest


class OwnTokens(ReweightedTrainer):
    def compute_per_sample_losses(self, model, inputs):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        losses = F.cross_entropy(outputs.logits.transpose(1, 2), labels, reduction="none")
        return losses, outputs, labels != -100


class Masked(ReweightedTrainer):
    def compute_per_sample_losses(self, model, inputs):
        losses, outputs, *_ = super().compute_per_sample_losses(model, inputs)
        return losses, outputs, inputs["labels"] != 0


class Relabelled(ReweightedTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        labels = inputs["labels"]
        inputs = {**inputs, "labels": labels.masked_fill(labels == 0, -100)}
        return super().compute_loss(model, inputs, *args, **kwargs)


class Twice(ReweightedTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        return (super().compute_loss(model, inputs) + super().compute_loss(model, inputs)) / 2


def losses_of_samples(outputs, labels):
    return F.cross_entropy(outputs.logits, labels, reduction="none")


def labelled(labels):
    return labels != -100


def not_zero(labels):
    return labels != 0


def all_of_them(labels):
    return torch.ones_like(labels, dtype=torch.bool)


@pytest.mark.parametrize(
    "cls, micro_batches",
    [(ReweightedTrainer, 1), (ReweightedTrainer, 4), (OfTokens, 1), (OfTokens, 4), (OwnTokens, 1)],
)
def test_tokens_are_counted(make_args, cls, micro_batches):
    trainer = trainer_for(make_args, cls, tagger(), tagged_data(), micro_batches)
    assert relative_error(step_of(trainer), wanted(tagger, tagged_data(), labelled)) < 1e-4


@pytest.mark.parametrize("cls", [Masked, Relabelled])
def test_samples_that_do_not_count_are_not_counted(make_args, cls):
    trainer = trainer_for(make_args, cls, tiny_bert(), grouped_data())
    assert relative_error(step_of(trainer), wanted(tiny_bert, grouped_data(), not_zero)) < 1e-4


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("cls, fn", [(ReweightedTrainer, losses_of_samples), (Twice, None)])
def test_a_loss_for_each_sample_is_exact_in_any_cut(make_args, cls, fn, micro_batches):
    trainer = trainer_for(make_args, cls, tiny_bert(), grouped_data(), micro_batches, per_sample_loss_fn=fn)
    assert relative_error(step_of(trainer), wanted(tiny_bert, grouped_data(), all_of_them)) < 1e-4


@pytest.mark.parametrize(
    "cls, model, data, name, expected",
    [
        (OwnTokens, tagger, tagged_data, "OwnTokens.compute_per_sample_losses", "one for each sample"),
        (Masked, tiny_bert, grouped_data, "Masked.compute_per_sample_losses", "those of"),
        (Relabelled, tiny_bert, grouped_data, "Relabelled.compute_loss", "those of"),
    ],
)
def test_other_items_than_were_counted_are_refused_before_the_step(
    make_args, cls, model, data, name, expected
):
    trainer = trainer_for(make_args, cls, model(), data(), micro_batches=2)
    with pytest.raises(NotImplementedError, match=rf"counts {expected}.*{name}.*=1") as refused:
        trainer.train()
    assert torch.equal(parameters_of(trainer.model), parameters_of(model()))
    assert "[2.0, 2.0]" in str(refused.value), "what was counted"


def test_where_the_device_is_not_waited_for_the_next_log_refuses(make_args, monkeypatch):
    trainer = trainer_for(make_args, Masked, tiny_bert(), grouped_data(), micro_batches=2)
    stop = trainer._stop_if_differ
    monkeypatch.setattr(
        trainer, "_stop_if_differ", lambda pair: None if trainer._in_training_step else stop(pair)
    )
    with pytest.raises(NotImplementedError, match="Masked"):
        trainer.train()
    assert trainer.state.global_step == 1 and not [e for e in trainer.state.log_history if "loss" in e]


def test_two_processes_take_the_step_of_one(tmp_path):
    run_on(2, __file__, tmp_path)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert relative_error(found["step"], wanted(tagger, tagged_data(), labelled)) < 1e-4
        assert "counts one for each sample" in found["refused"]


def train_on_this_process(folder):
    """What each of two processes runs: half of the batch."""

    def make(**kwargs):
        return TrainingArguments(output_dir=folder, **(QUIET | kwargs))

    trainer = trainer_for(make, OfTokens, tagger(), tagged_data(), 2)
    trainer.args.gradient_accumulation_steps = 1
    found = {"step": step_of(trainer), "refused": ""}
    try:
        trainer_for(make, OwnTokens, tagger(), tagged_data(), 2).train()
    except NotImplementedError as error:
        found["refused"] = str(error)
    torch.save(found, Path(folder) / f"{trainer.args.process_index}.pt")


class GradientNorm(TrainerCallback):
    """Asks the Trainer for the loss of other samples than those of the step."""

    def __init__(self):
        self.losses = []

    def on_step_end(self, args, state, control, **kwargs):
        rows = grouped_data()[:3]
        batch = {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels")}
        batch["group"] = torch.tensor([row["group"] for row in rows])
        loss = self.trainer.compute_loss(self.trainer.model, batch)
        loss.backward()
        self.trainer.model.zero_grad()
        self.losses.append(loss.item())


class OwnSamples(ReweightedTrainer):
    def compute_per_sample_losses(self, model, inputs):
        labels = inputs["labels"]
        outputs = model(input_ids=inputs["input_ids"])
        return F.cross_entropy(outputs.logits, labels, reduction="none"), outputs


def test_a_callback_may_ask_for_the_loss_of_other_samples(make_args):
    callback = GradientNorm()
    trainer = trainer_for(make_args, OwnSamples, tiny_bert(), grouped_data(), 2, callbacks=[callback])
    callback.trainer = trainer
    trainer.train()
    assert len(callback.losses) == 1 and callback.losses[0] > 0


def test_fractions_are_refused_with_a_data_loader_of_ones_own(make_args):
    class OwnLoader(ReweightedTrainer):
        def get_train_dataloader(self):
            rows = [{**row, "group": row["group"] + 0.7} for row in grouped_data()]
            return DataLoader(rows, batch_size=SIZE)

    trainer = trainer_for(make_args, OwnLoader, tiny_bert(), grouped_data())
    with pytest.raises(ValueError, match=r"has the group 0.7, but num_groups=2 allows"):
        trainer.train()


if __name__ == "__main__":
    train_on_this_process(sys.argv[1])
