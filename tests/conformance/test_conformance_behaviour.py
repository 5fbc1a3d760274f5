"""What transformers' own Trainer tests pin down beyond one call of `train`: the same of both classes.

`none` and `kl` stand for ours; `kl` is compared with a stock Trainer on the surrogate where parameters matter.
"""

import json

import numpy as np
import pytest
import torch
from comparison import Run, assert_same_metrics, assert_same_parameters
from pairs import KL, NONE, OURS, arguments, assert_train_alike, trainers
from regression_models import (
    NoLabels,
    RegressionDataset,
    RegressionDictModel,
    RegressionModel,
    RegressionPreTrainedModel,
    RegressionStream,
    TwoLabelsModel,
    squared_errors,
)
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from rgd_hf import ReweightedTrainer

# --- resume -----------------------------------------------------------------------------------------------------------


@OURS
@pytest.mark.parametrize("steps", [5, 8], ids=["in an epoch", "between epochs"])
def test_resumes_to_the_parameters_of_a_run_never_stopped(ours, steps, tmp_path):
    args = {"num_train_epochs": 3, "save_steps": steps, "logging_steps": 2}
    stock, uninterrupted = trainers(tmp_path, ours, **args)
    stock.train()
    uninterrupted.train()
    resumed = ReweightedTrainer(
        RegressionPreTrainedModel(),
        arguments(tmp_path / "resumed", **args),
        train_dataset=RegressionDataset(),
        **ours,
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "ours" / f"checkpoint-{steps}"))
    assert_same_parameters(Run(stock, None, None).parameters, Run(resumed, None, None).parameters, rtol=1e-5)
    for left, right in zip(uninterrupted.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(left, right)
    assert resumed.state.global_step == 24


@OURS
def test_resumes_from_the_last_checkpoint_of_the_folder(ours, tmp_path):
    _, first = trainers(tmp_path, ours, max_steps=6, save_steps=3)
    first.train()
    _, second = trainers(tmp_path, ours, max_steps=9, save_steps=3)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 9
    assert get_last_checkpoint(str(tmp_path / "ours")).endswith("checkpoint-9")


@OURS
def test_resume_without_a_checkpoint_says_so(ours, tmp_path):
    _, trainer = trainers(tmp_path, ours)
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        trainer.train(resume_from_checkpoint=True)


@OURS
def test_resumes_with_another_accumulation_of_the_same_batch(ours, tmp_path):
    stock, trainer = trainers(tmp_path, ours, max_steps=6, save_steps=3, gradient_accumulation_steps=2)
    for each in (stock, trainer):
        each.train()
    (expected, found) = trainers(tmp_path, ours, max_steps=6, save_steps=3, gradient_accumulation_steps=2)
    for each, folder in ((expected, "stock"), (found, "ours")):
        each.train(resume_from_checkpoint=str(tmp_path / folder / "checkpoint-3"))
    assert_same_parameters(Run(expected, None, None).parameters, Run(found, None, None).parameters, rtol=1e-5)


# --- evaluation and prediction ----------------------------------------------------------------------------------------


@OURS
@pytest.mark.parametrize("model", [RegressionModel, RegressionDictModel, RegressionPreTrainedModel])
def test_predicts_and_evaluates_with_and_without_labels(ours, model, tmp_path):
    stock, trainer = trainers(tmp_path, ours, model)
    for data in (RegressionDataset(20, seed=1), RegressionDataset(17, seed=2)):
        assert_same_metrics(stock.evaluate(data), trainer.evaluate(data))
        expected, found = stock.predict(data), trainer.predict(data)
        np.testing.assert_array_equal(expected.predictions, found.predictions)
        np.testing.assert_array_equal(expected.label_ids, found.label_ids)
        assert_same_metrics(expected.metrics, found.metrics)
        bare = trainer.predict(NoLabels(data))
        np.testing.assert_array_equal(expected.predictions, bare.predictions)
        assert bare.label_ids is None and "test_loss" not in bare.metrics
        assert "eval_loss" not in trainer.evaluate(NoLabels(data))


def test_predicts_with_several_label_names(tmp_path):
    names = ("labels_1", "labels_2")
    data = RegressionDataset(19, label_names=names)
    args = {"label_names": list(names)}

    def two(outputs, labels):
        assert sorted(labels) == list(names)
        return squared_errors(outputs[0], labels["labels_1"]) + squared_errors(outputs[0], labels["labels_2"])

    stock = Trainer(TwoLabelsModel(), arguments(tmp_path, **args), eval_dataset=data)
    for ours in (NONE, {"reweighting": "kl", "per_sample_loss_fn": two}):
        trainer = ReweightedTrainer(TwoLabelsModel(), arguments(tmp_path, **args), eval_dataset=data, **ours)
        assert_same_metrics(stock.evaluate(), trainer.evaluate())
        expected, found = stock.predict(data), trainer.predict(data)
        assert len(found.label_ids) == 2
        for left, right in zip(expected.label_ids, found.label_ids, strict=True):
            np.testing.assert_array_equal(left, right)


@OURS
def test_evaluates_streams_and_several_sets(ours, tmp_path):
    several = {"a": RegressionDataset(16, seed=3), "b": RegressionDataset(24, seed=4)}
    stock, trainer = trainers(
        tmp_path, ours, keywords=lambda: {"eval_dataset": several}, eval_strategy="epoch", num_train_epochs=1
    )
    assert_train_alike(stock, trainer, same_loss=ours is not KL)
    assert {"eval_a_loss", "eval_b_loss"} <= set(trainer.evaluate())
    assert_same_metrics(
        stock.evaluate(RegressionStream(16)), trainer.evaluate(RegressionStream(16)), rtol=1e-5
    )


class Padded(Dataset):
    """Sequences of different lengths, padded batch by batch by the collator below."""

    def __init__(self, length=30, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.rows = [
            torch.randn(int(torch.randint(1, 9, (), generator=generator)), generator=generator)
            for _ in range(length)
        ]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"input_x": self.rows[index], "labels": 2 * self.rows[index] + 3}


def pad(examples):
    return {
        name: nn.utils.rnn.pad_sequence([e[name] for e in examples], batch_first=True, padding_value=value)
        for name, value in (("input_x", 0.0), ("labels", -100.0))
    }


@OURS
@pytest.mark.parametrize("eval_accumulation_steps", [None, 2])
def test_dynamic_shapes_are_padded_when_predicting(ours, eval_accumulation_steps, tmp_path):
    data = Padded()
    stock, trainer = trainers(
        tmp_path,
        ours,
        RegressionModel,
        lambda: {"train_dataset": data, "eval_dataset": data, "data_collator": pad},
        eval_accumulation_steps=eval_accumulation_steps,
    )
    expected, found = stock.predict(data), trainer.predict(data)
    np.testing.assert_array_equal(expected.predictions, found.predictions)
    np.testing.assert_array_equal(expected.label_ids, found.label_ids)
    for row, y in zip(data.rows, found.label_ids, strict=True):
        np.testing.assert_allclose(y[: len(row)], 2 * row + 3, rtol=1e-6)
        assert (y[len(row) :] == -100).all()


# --- what the Trainer calls, logs, saves ------------------------------------------------------------------------------


class Record(TrainerCallback):
    """Writes down every event with its step."""

    def __init__(self):
        self.events = []

    def __getattribute__(self, name):
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def record(args, state, control, **kwargs):
            self.events.append((name, state.global_step, sorted(kwargs)))

        return record


@OURS
def test_callbacks_see_the_same_events(ours, tmp_path):
    records = []

    def keywords():
        records.append(Record())
        return {"callbacks": [records[-1]]}

    stock, trainer = trainers(
        tmp_path,
        ours,
        keywords=keywords,
        num_train_epochs=2,
        gradient_accumulation_steps=3,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        logging_steps=1,
    )
    for each in (stock, trainer):
        each.train()
        each.predict(each.eval_dataset)
    expected, found = (record.events for record in records)
    assert len(found) > 50
    assert found == expected


@OURS
def test_callbacks_can_be_added_and_removed(ours, tmp_path):
    _, trainer = trainers(tmp_path, ours, max_steps=1)
    record = Record()
    trainer.add_callback(record)
    assert trainer.pop_callback(Record) is record
    trainer.train()
    assert record.events == []


@OURS
@pytest.mark.parametrize(
    "args",
    [
        {"save_steps": 3, "max_steps": 8},
        {"save_steps": 2, "max_steps": 8, "save_total_limit": 2},
        {"save_strategy": "epoch", "num_train_epochs": 2},
        {"save_strategy": "no"},
        {"save_strategy": "best", "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 4},
        {"save_steps": 4, "max_steps": 8, "save_only_model": True},
    ],
    ids=str,
)
def test_writes_the_same_files(ours, args, tmp_path):
    """But for the weights' statistics in checkpoints, and the pickled arguments, whose name keeps them from being pushed."""
    stock, trainer = trainers(tmp_path, ours, **args)
    for each in (stock, trainer):
        each.train()
        each.save_model()
    expected, found = (
        {str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("stock", "ours")
    )
    found = {name for name in found if not name.endswith("weight_statistics.safetensors")}
    found = {"training_args.bin" if name == "_training_args.bin" else name for name in found}
    assert found == expected
    assert (tmp_path / "ours" / "model.safetensors").exists()


@OURS
def test_checkpoints_hold_the_trainer_state_and_load(ours, tmp_path):
    stock, trainer = trainers(tmp_path, ours, max_steps=4, save_steps=2, logging_steps=1)
    for each in (stock, trainer):
        each.train()
    folder = tmp_path / "ours" / "checkpoint-2"
    found = json.loads((folder / "trainer_state.json").read_text())
    expected = json.loads((tmp_path / "stock" / "checkpoint-2" / "trainer_state.json").read_text())
    assert set(found) == set(expected)
    assert len(found["log_history"]) == len(expected["log_history"]) == 2
    loaded = RegressionPreTrainedModel.from_pretrained(folder)
    assert loaded.a != trainer.model.a
    saved = torch.load(folder / "training_args.bin", weights_only=False)
    assert (saved.reweighting, saved.max_steps) == (ours["reweighting"], 4)


@OURS
def test_training_arguments_are_left_untouched(ours, tmp_path):
    args = arguments(tmp_path, max_steps=2)
    before = args.to_dict()
    trainer = ReweightedTrainer(RegressionModel(), args, train_dataset=RegressionDataset(), **ours)
    trainer.train()
    assert args.to_dict() == before
    assert {key: trainer.args.to_dict()[key] for key in before} == before


@OURS
def test_number_of_steps(ours, tmp_path):
    for length, batch, accumulation, epochs in [(64, 8, 1, 2), (60, 8, 1, 1), (60, 8, 3, 2), (33, 4, 2, 1.5)]:
        stock, trainer = trainers(
            tmp_path,
            ours,
            keywords=lambda length=length: {"train_dataset": RegressionDataset(length)},
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=epochs,
        )
        assert stock.train().global_step == trainer.train().global_step
