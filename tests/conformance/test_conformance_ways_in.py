"""Other ways into a training: what a Trainer is made of, called twice, on streams, with batch sizes that it finds itself."""

import re

import datasets
import pytest
import torch
from pairs import KL, NONE, OURS, TAU, arguments, assert_train_alike, by_item, trainers
from regression_models import (
    RegressionConfig,
    RegressionDataset,
    RegressionModel,
    RegressionPreTrainedModel,
    squared_errors,
    surrogate_of,
)
from transformers import Trainer, set_seed

from rgd_hf import ReweightedTrainer


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
        per_device_train_batch_size=6,
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
