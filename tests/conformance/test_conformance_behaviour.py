"""What transformers' own Trainer tests pin down beyond one call of `train`: the same of both classes.

`none` and `kl` stand for ours; `kl` is compared with a stock Trainer on the surrogate where parameters matter.
"""

import json
import re

import datasets
import numpy as np
import pytest
import torch
from comparison import Run, assert_same_metrics, assert_same_parameters, assert_same_run
from regression_models import (
    NoLabels,
    RegressionConfig,
    RegressionDataset,
    RegressionDictModel,
    RegressionModel,
    RegressionPreTrainedModel,
    RegressionStream,
    TwoLabelsModel,
    squared_errors,
    surrogate_of,
)
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from rgd_hf import ReweightedTrainer
from rgd_hf.trainer import NonFiniteLossError

TAU = 5.0


def by_item(outputs, labels):
    y = outputs["output"] if isinstance(outputs, dict) else outputs[0]
    return squared_errors(y, labels)


NONE = {"reweighting": "none"}
NONE_BY_ITEM = {"reweighting": "none", "per_sample_loss_fn": by_item}
KL = {"reweighting": "kl", "tau": TAU, "per_sample_loss_fn": by_item}
OURS = pytest.mark.parametrize("ours", [NONE, NONE_BY_ITEM, KL], ids=["none", "none by item", "kl"])


def arguments(output_dir, **keywords):
    defaults = {"learning_rate": 0.1, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return TrainingArguments(str(output_dir), **defaults | keywords)


def trainers(tmp_path, ours, model=RegressionPreTrainedModel, keywords=dict, **args):
    """The stock Trainer (on the surrogate, for `kl`) and ours, on the same data."""
    reference = surrogate_of(model, TAU) if ours is KL else model
    data = {"train_dataset": RegressionDataset(), "eval_dataset": RegressionDataset(20, seed=1)}
    return (
        Trainer(reference(), arguments(tmp_path / "stock", **args), **data | keywords()),
        ReweightedTrainer(model(), arguments(tmp_path / "ours", **args), **data | keywords(), **ours),
    )


def assert_train_alike(stock, ours, same_loss, rtol=1e-5, **keywords):
    expected, found = (Run(t, t.train(**keywords), t.evaluate()) for t in (stock, ours))
    assert_same_run(expected, found, rtol, same_loss)


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


# --- ragged batches: where the stock Trainer is not exact -------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 5, 10])
@pytest.mark.parametrize("length", [60, 53, 47, 41])
@pytest.mark.parametrize("ours", [NONE_BY_ITEM, KL], ids=["none by item", "kl"])
def test_ragged_accumulation_trains_as_the_full_batch_does(ours, length, size, tmp_path):
    """Updates of 20 samples, the last one of what is left, cut into micro-batches of which the last is ragged.

    The stock Trainer takes the mean of the micro-batches' means and would be wrong on ragged ones, so the reference
    has the whole batch of an update in one.
    """
    reference = surrogate_of(RegressionModel, TAU) if ours is KL else RegressionModel
    data = {"train_dataset": RegressionDataset(length), "eval_dataset": RegressionDataset(20, seed=1)}
    cut = arguments(
        tmp_path / "ours", per_device_train_batch_size=size, gradient_accumulation_steps=20 // size
    )
    whole = arguments(tmp_path / "stock", per_device_train_batch_size=20)
    stock = Trainer(reference(), whole, **data)
    trainer = ReweightedTrainer(RegressionModel(), cut, **data, **ours)
    assert_train_alike(stock, trainer, same_loss=ours is not KL)


# --- non-finite losses ------------------------------------------------------------------------------------------------


class BadAtStep(RegressionModel):
    """Its third forward pass in training is infinite."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, input_x, labels=None):
        self.calls += self.training
        if self.training and self.calls == 3:
            input_x = input_x * float("inf")
        return super().forward(input_x, labels)


def test_nan_filter_holds_for_the_models_own_loss(tmp_path):
    for keep in (True, False):
        logs = []
        for cls, keywords in ((Trainer, {}), (ReweightedTrainer, NONE)):
            trainer = cls(
                BadAtStep(),
                arguments(tmp_path, max_steps=5, logging_steps=1, logging_nan_inf_filter=keep),
                train_dataset=RegressionDataset(),
                **keywords,
            )
            trainer.train()
            logs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        np.testing.assert_allclose(*logs)


def test_a_non_finite_loss_stops_re_weighted_training(tmp_path):
    trainer = ReweightedTrainer(
        BadAtStep(), arguments(tmp_path, max_steps=5, save_steps=1), train_dataset=RegressionDataset(), **KL
    )
    with pytest.raises(NonFiniteLossError, match="step 3"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]


# --- other ways in ----------------------------------------------------------------------------------------------------


@OURS
def test_model_init_is_called_for_every_run(ours, tmp_path):
    def build(cls):
        return lambda: cls(RegressionConfig(start=torch.rand(()).item()))

    data = {"train_dataset": RegressionDataset(), "eval_dataset": RegressionDataset(20)}
    reference = surrogate_of(RegressionPreTrainedModel, TAU) if ours is KL else RegressionPreTrainedModel
    stock = Trainer(None, arguments(tmp_path / "stock"), model_init=build(reference), **data)
    trainer = ReweightedTrainer(
        args=arguments(tmp_path / "ours"), model_init=build(RegressionPreTrainedModel), **data, **ours
    )
    for _ in range(2):
        set_seed(0)
        assert_train_alike(stock, trainer, same_loss=ours is not KL)


@OURS
def test_optimizers_are_taken_as_given(ours, tmp_path):
    def with_optimizers(trainer_class, model, folder, keywords):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        trainer = trainer_class(
            model,
            arguments(tmp_path / folder),
            train_dataset=RegressionDataset(),
            eval_dataset=RegressionDataset(20),
            optimizers=(optimizer, scheduler),
            **keywords,
        )
        return trainer, optimizer

    reference = surrogate_of(RegressionModel, TAU) if ours is KL else RegressionModel
    stock, _ = with_optimizers(Trainer, reference(), "stock", {})
    trainer, optimizer = with_optimizers(ReweightedTrainer, RegressionModel(), "ours", ours)
    assert_train_alike(stock, trainer, same_loss=ours is not KL)
    assert trainer.optimizer.optimizer is optimizer


@OURS
def test_optimizer_class_is_taken_as_given(ours, tmp_path):
    stock, trainer = trainers(
        tmp_path, ours, keywords=lambda: {"optimizer_cls_and_kwargs": (torch.optim.Adagrad, {"lr": 0.2})}
    )
    assert_train_alike(stock, trainer, same_loss=ours is not KL)


class OutOfMemoryAbove(RegressionModel):
    limit = 4

    def forward(self, input_x, labels=None):
        if self.training and len(input_x) > self.limit:
            raise RuntimeError("CUDA out of memory.")
        return super().forward(input_x, labels)


@OURS
def test_auto_find_batch_size(ours, tmp_path):
    stock, trainer = trainers(
        tmp_path,
        ours,
        OutOfMemoryAbove,
        auto_find_batch_size=True,
        per_device_train_batch_size=16,
        max_steps=6,
    )
    assert_train_alike(stock, trainer, same_loss=ours is not KL)
    assert trainer._train_batch_size <= 4


@OURS
def test_trains_twice_and_moves_on(ours, tmp_path):
    stock, trainer = trainers(tmp_path, ours, max_steps=3)
    for _ in range(2):
        assert_train_alike(stock, trainer, same_loss=ours is not KL)


@OURS
def test_streams_of_datasets(ours, tmp_path):
    data = RegressionDataset()
    columns = {"input_x": data.x.tolist(), "labels": data.labels["labels"].tolist(), "unused": [0] * 64}
    stock, trainer = trainers(
        tmp_path,
        ours,
        keywords=lambda: {"train_dataset": datasets.Dataset.from_dict(columns).to_iterable_dataset()},
        max_steps=6,
    )
    assert_train_alike(stock, trainer, same_loss=ours is not KL)


def test_without_arguments_it_writes_where_the_stock_trainer_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = ReweightedTrainer(RegressionPreTrainedModel(), per_sample_loss_fn=by_item)
    assert trainer.args.output_dir == "tmp_trainer"
    assert trainer.args.reweighting == "kl"


def test_without_model_the_error_is_the_stock_trainers(tmp_path):
    with pytest.raises(Exception) as stock:
        Trainer(args=arguments(tmp_path))
    with pytest.raises(type(stock.value), match=re.escape(str(stock.value))):
        ReweightedTrainer(args=arguments(tmp_path))


def test_compute_loss_func_is_used_by_none(tmp_path):
    def loss_func(outputs, labels, num_items_in_batch=None):
        errors = squared_errors(outputs[0], labels)
        return errors.mean() if num_items_in_batch is None else errors.sum() / num_items_in_batch

    stock, trainer = trainers(
        tmp_path,
        NONE,
        keywords=lambda: {"compute_loss_func": loss_func, "train_dataset": RegressionDataset(60)},
        gradient_accumulation_steps=2,
    )
    assert_train_alike(stock, trainer, same_loss=True)


def test_a_subclass_of_the_users_own_with_compute_loss_is_left_alone(tmp_path):
    class Own:
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            return (outputs[0] * 0.5, outputs) if return_outputs else outputs[0] * 0.5

    class OwnStock(Own, Trainer):
        pass

    class OwnOurs(Own, ReweightedTrainer):
        pass

    data = {"train_dataset": RegressionDataset(), "eval_dataset": RegressionDataset(20)}
    stock = OwnStock(RegressionModel(), arguments(tmp_path / "a", gradient_accumulation_steps=2), **data)
    ours = OwnOurs(
        RegressionModel(), arguments(tmp_path / "b", gradient_accumulation_steps=2), **data, **NONE
    )
    assert_train_alike(stock, ours, same_loss=True)
