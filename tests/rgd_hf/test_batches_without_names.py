"""Batches that are lists or tuples: they come to a user's own losses as they are, and are refused where names are read."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from transformers import Trainer, TrainingArguments

from rgd_hf import ReweightedTrainer, ReweightingMixin, rgd_surrogate
from rgd_hf.weightings import GroupDRO
from tests.helpers.processes import run_on
from tests.helpers.quiet import QUIET
from tests.helpers.recorded import RecordedMixin
from tests.helpers.tiny import relative_error, tiny_bert

SAMPLES = 12


def rows(samples=SAMPLES):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(samples, 5, generator=generator), torch.randint(0, 3, (samples,), generator=generator)
    )


def as_list(examples):
    return [torch.stack(column) for column in zip(*examples, strict=True)]


def as_tuple(examples):
    return tuple(as_list(examples))


def model_of():
    torch.manual_seed(0)
    return nn.Linear(5, 3)


class Stock(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        features, labels = inputs
        outputs = model(features)
        loss = F.cross_entropy(outputs, labels)
        return (loss, outputs) if return_outputs else loss


class Ported(ReweightingMixin, Trainer):
    def compute_per_sample_losses(self, model, inputs):
        features, labels = inputs
        outputs = model(features)
        return F.cross_entropy(outputs, labels, reduction="none"), outputs


def arguments(folder, micro, accumulation):
    settings = {
        "max_steps": 1,
        "learning_rate": 1e-2,
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
    }
    return TrainingArguments(output_dir=str(folder), **(QUIET | settings))


def gradient_taken(cls, folder, cut, collate=as_list, data=None, **settings):
    model = model_of()
    start = model.weight.detach().clone()
    args = arguments(folder, *cut)
    cls(model, args, train_dataset=data or rows(), data_collator=collate, **settings).train()
    return (start - model.weight.detach()) / 1e-2


def expected_gradient(divergence):
    model, (features, labels) = model_of(), rows().tensors
    losses = F.cross_entropy(model(features), labels, reduction="none")
    rgd_surrogate(losses, divergence).mean().backward()
    return model.weight.grad


@pytest.mark.parametrize("cut", [(12, 1), (5, 3)], ids=str)
@pytest.mark.parametrize("divergence", ["kl", "none"])
@pytest.mark.parametrize("collate", [as_list, as_tuple])
def test_a_step_is_that_of_the_surrogate(collate, divergence, cut, tmp_path):
    found = gradient_taken(Ported, tmp_path, cut, collate, reweighting=divergence)
    assert relative_error(found, expected_gradient(divergence)) < 1e-4


def test_none_trains_a_reduced_loss_as_the_stock_trainer_does(tmp_path):
    ours = type("Ours", (ReweightingMixin, Stock), {})
    found = gradient_taken(ours, tmp_path, (12, 1), reweighting="none")
    assert torch.equal(found, gradient_taken(Stock, tmp_path, (12, 1)))


def by_function(*args, **keywords):
    return ReweightedTrainer(*args, per_sample_loss_fn=lambda outputs, labels: outputs, **keywords)


def known_head(_, *args, **keywords):
    return ReweightedTrainer(tiny_bert(), *args, **keywords)


@pytest.mark.parametrize("cut", [(12, 1), (5, 3)], ids=str)
@pytest.mark.parametrize("cls", [by_function, known_head])
def test_losses_that_read_columns_by_name_are_refused_with_what_to_do(cls, cut, tmp_path):
    with pytest.raises(
        ValueError, match=r"by name, but this batch is a list: return a dict .*compute_per_sample_losses"
    ):
        gradient_taken(cls, tmp_path, cut)


class Hard(RecordedMixin, Ported):
    pass


@pytest.mark.parametrize("cls, settings, message", [
    (Ported, {"reweighting": GroupDRO(2)}, "'group'"),
    (Hard, {}, "whose examples are dicts"),
])  # fmt: skip
def test_what_reads_another_column_says_that_it_is_not_there(cls, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        gradient_taken(cls, tmp_path, (12, 1), **settings)


def test_two_processes_take_the_steps_of_one_and_refuse_repeats(tmp_path):
    run_on(2, __file__, tmp_path)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert relative_error(found["gradient"], expected_gradient("kl")) < 1e-4
        assert (
            "a batch of 3 samples has no columns, as a list. Set dataloader_drop_last=True"
            in found["refused"]
        )


def train_on_this_process(folder):
    """What each of two processes runs: three samples of each of two micro-batches, then with too few samples."""
    found = {"gradient": gradient_taken(Ported, folder, (3, 2)), "refused": ""}
    try:
        gradient_taken(Ported, folder, (3, 2), data=rows(SAMPLES - 1))
    except ValueError as error:
        found["refused"] = str(error)
    torch.save(found, Path(folder) / f"{arguments(folder, 1, 1).process_index}.pt")


class Evaluated(Stock):
    """Evaluates the batches that it knows how to read, as a class of stock Trainer has to."""

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return loss, outputs, inputs[1]


class PortedEvaluated(Ported, Evaluated):
    pass


@pytest.mark.parametrize("reweighting", ["none", "kl"])
def test_a_prediction_step_of_the_class_evaluates_them(tmp_path, reweighting):
    def losses(cls, **settings):
        args = TrainingArguments(
            output_dir=str(tmp_path), **(QUIET | {"per_device_eval_batch_size": 5, "label_names": []})
        )
        trainer = cls(model_of(), args, eval_dataset=rows(), data_collator=as_list, **settings)
        return trainer.evaluate()["eval_loss"]

    features, labels = rows().tensors
    expected = F.cross_entropy(model_of()(features), labels).item()
    assert losses(PortedEvaluated, reweighting=reweighting) == pytest.approx(expected, rel=1e-5)


if __name__ == "__main__":
    train_on_this_process(sys.argv[1])
