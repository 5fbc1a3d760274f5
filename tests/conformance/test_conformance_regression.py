"""What transformers' own Trainer tests pin down, on models that compute their own loss.

Every case is trained by the stock Trainer and by ours, three ways:

* `none`: the model is unknown to the library, so that ours trains on the model's own loss;
* `none, by item`: the same through `per_sample_loss_fn`, the unreduced path;
* `kl`: against a stock Trainer on the same model with the surrogate G in place of its losses, which has the very
  gradient of the re-weighted objective.

All batches are full here. Where they are ragged, or where a model that hard-codes a mean loss takes `**kwargs`, the
stock Trainer's accumulation is a mean of means or worse, and what is compared is said at the test.
"""

from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from comparison import Run, assert_same_run
from regression_models import (
    RegressionDataset,
    RegressionDictModel,
    RegressionKwargsModel,
    RegressionModel,
    RegressionPreTrainedModel,
    RegressionStream,
    TwoLabelsModel,
    squared_errors,
    surrogate_of,
)
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from rgd_hf import ReweightedTrainer

TAU = 5.0


@dataclass
class Case:
    """One thing to train; what is left out has the Trainer's default."""

    name: str
    model: Any = RegressionModel
    label_names: tuple[str, ...] = ("labels",)
    train: Any = None
    args: dict[str, Any] = field(default_factory=dict)
    trainer: Any = dict
    mixin: type = object
    train_keywords: dict[str, Any] = field(default_factory=dict)


class CustomLoaders:
    """Overrides the dataloaders, as users do."""

    def get_train_dataloader(self):
        return DataLoader(RegressionDataset(48, seed=1), batch_size=12, collate_fn=self.data_collator)

    def get_eval_dataloader(self, eval_dataset=None):
        return DataLoader(RegressionDataset(24, seed=2), batch_size=4, collate_fn=self.data_collator)


class TwoGroups:
    """Overrides the optimizer."""

    def create_optimizer(self, model=None):
        self.optimizer = torch.optim.SGD(
            [{"params": [self.model.a], "lr": 0.05}, {"params": [self.model.b], "lr": 0.02, "momentum": 0.5}]
        )
        return self.optimizer


class StopEpochs(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            control.should_epoch_stop = True


def collate_with_extra(examples):
    """A collator of the user's that makes tensors itself."""
    return {key: torch.tensor(np.stack([e[key] for e in examples])) for key in examples[0]}


def as_hf_dataset(length=64):
    data = RegressionDataset(length)
    return datasets.Dataset.from_dict(
        {"input_x": data.x.tolist(), "labels": data.labels["labels"].tolist(), "unused": list(range(length))}
    )


def mean_error(prediction):
    predictions = prediction.predictions
    predictions = predictions[0] if isinstance(predictions, tuple) else predictions
    return {"error": float(np.abs(predictions - prediction.label_ids).mean())}


def mean_error_of_lists(prediction):
    return {
        "error": float(
            np.mean([np.abs(p - y).mean() for p, y in zip(prediction.predictions, prediction.label_ids)])
        )
    }


def error_with_losses_and_inputs(prediction):
    assert prediction.inputs.shape == prediction.label_ids.shape
    return {"mean_loss": float(prediction.losses.mean()), "mean_input": float(prediction.inputs.mean())}


class BatchedError:
    """`batch_eval_metrics` calls this once a batch, the last time with `compute_result`."""

    def __init__(self):
        self.errors = []

    def __call__(self, prediction, compute_result):
        self.errors.append((prediction.predictions - prediction.label_ids).abs())
        if compute_result:
            errors, self.errors = torch.cat(self.errors), []
            return {"error": errors.mean().item(), "count": len(errors)}


class MainInput(RegressionModel):
    main_input_name = "input_x"


EVERY_EPOCH = {"eval_strategy": "epoch", "save_strategy": "epoch"}

CASES = [
    Case("defaults"),
    Case("dict outputs", model=RegressionDictModel),
    Case("loss takes num_items_in_batch", model=RegressionKwargsModel),
    Case("PreTrainedModel", model=RegressionPreTrainedModel),
    Case("double outputs", model=lambda base=RegressionModel: base(double_output=True)),
    Case("two label names", model=TwoLabelsModel, label_names=("labels_1", "labels_2")),
    Case("accumulation", args={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}),
    Case("accumulation, partial last step", args={"gradient_accumulation_steps": 3}),
    Case(
        "accumulation, num_items_in_batch",
        model=RegressionKwargsModel,
        args={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    ),
    Case("max_steps over epochs", args={"max_steps": 11}),
    Case("fractional epochs", args={"num_train_epochs": 1.5}),
    Case("fewer steps than an epoch", args={"max_steps": 3, "logging_steps": 1}),
    Case("drop last", train=lambda: RegressionDataset(60), args={"dataloader_drop_last": True}),
    Case("dataloader workers", args={"dataloader_num_workers": 1, "max_steps": 3}),
    Case("stream, once through", train=RegressionStream, args={"max_steps": 8}),
    Case("stream, shorter than max_steps", train=RegressionStream, args={"max_steps": 14}),
    Case("stream, infinite", train=lambda: RegressionStream(infinite=True), args={"max_steps": 11}),
    Case(
        "stream, accumulation",
        train=lambda: RegressionStream(infinite=True),
        args={"max_steps": 5, "gradient_accumulation_steps": 2},
    ),
    Case("datasets.Dataset with an unused column", train=as_hf_dataset),
    Case("list of dicts", train=lambda: [RegressionDataset()[i] for i in range(64)]),
    Case("custom dataloaders", mixin=CustomLoaders),
    Case("custom collator", trainer=lambda: {"data_collator": collate_with_extra}),
    Case(
        "custom collator, columns kept",
        args={"remove_unused_columns": False},
        trainer=lambda: {"data_collator": collate_with_extra},
    ),
    Case("custom optimizer", mixin=TwoGroups),
    Case("SGD, cosine, warm-up", args={"optim": "sgd", "lr_scheduler_type": "cosine", "warmup_steps": 4}),
    Case("Adafactor", args={"optim": "adafactor"}),
    Case("weight decay, clipping", args={"weight_decay": 0.1, "max_grad_norm": 0.01}),
    Case("no clipping", args={"max_grad_norm": 0.0}),
    Case("metrics", args=EVERY_EPOCH, trainer=lambda: {"compute_metrics": mean_error}),
    Case(
        "metrics of dict outputs", model=RegressionDictModel, trainer=lambda: {"compute_metrics": mean_error}
    ),
    Case(
        "metrics of double outputs",
        model=lambda base=RegressionModel: base(double_output=True),
        trainer=lambda: {"compute_metrics": mean_error},
    ),
    Case(
        "batches of predictions kept apart",
        args={"eval_do_concat_batches": False},
        trainer=lambda: {"compute_metrics": mean_error_of_lists},
    ),
    Case(
        "metrics batch by batch",
        args={"batch_eval_metrics": True},
        trainer=lambda: {"compute_metrics": BatchedError()},
    ),
    Case(
        "metrics with losses and inputs",
        model=MainInput,
        args={"include_for_metrics": ["inputs", "loss"]},
        trainer=lambda: {"compute_metrics": error_with_losses_and_inputs},
    ),
    Case(
        "logits preprocessed for metrics",
        trainer=lambda: {
            "compute_metrics": mean_error,
            "preprocess_logits_for_metrics": lambda logits, labels: logits + 1,
        },
    ),
    Case(
        "evaluation accumulates",
        args={"eval_accumulation_steps": 2},
        trainer=lambda: {"compute_metrics": mean_error},
    ),
    Case(
        "best model at the end",
        model=RegressionPreTrainedModel,
        args=EVERY_EPOCH | {"load_best_model_at_end": True, "learning_rate": 1.5, "save_total_limit": 1},
    ),
    Case(
        "best model of a metric",
        args=EVERY_EPOCH
        | {"load_best_model_at_end": True, "metric_for_best_model": "error", "greater_is_better": True},
        trainer=lambda: {"compute_metrics": mean_error},
    ),
    Case(
        "early stopping",
        args=EVERY_EPOCH
        | {
            "load_best_model_at_end": True,
            "learning_rate": 1.5,
            "num_train_epochs": 20,
            "metric_for_best_model": "error",
        },
        trainer=lambda: {
            "compute_metrics": mean_error,
            "callbacks": [EarlyStoppingCallback(early_stopping_patience=1)],
        },
    ),
    Case("callback ends an epoch", args={"logging_steps": 2}, trainer=lambda: {"callbacks": [StopEpochs()]}),
    Case("evaluation by steps", args={"eval_strategy": "steps", "eval_steps": 5, "logging_steps": 3}),
    Case("evaluation on start", args={"eval_on_start": True, "eval_strategy": "epoch"}),
    Case("logging every step", args={"logging_steps": 1, "logging_first_step": True}),
    Case("seeds", args={"seed": 7, "data_seed": 3}),
    Case("bf16 autocast", args={"bf16": True, "max_steps": 4}),
    Case("full determinism", args={"full_determinism": True, "max_steps": 4}),
    Case("gradient checkpointing off, tf32 off", args={"include_num_input_tokens_seen": "no"}),
]


def loss_function(case):
    """The unreduced loss of a case's model."""

    def losses(outputs, labels):
        y = outputs["output"] if isinstance(outputs, dict) else outputs[0]
        return sum(
            squared_errors(y, target)
            for target in (labels.values() if isinstance(labels, dict) else [labels])
        )

    return losses


def run(base, case, output_dir, model=None, **keywords):
    cls = type(base.__name__, (case.mixin, base), {}) if case.mixin is not object else base
    args = {"learning_rate": 0.1, "num_train_epochs": 2, "seed": 42, "eval_strategy": "no"} | case.args
    if len(case.label_names) > 1:
        args["label_names"] = list(case.label_names)
    trainer = cls(
        (model or case.model)(),
        TrainingArguments(str(output_dir), use_cpu=True, report_to="none", disable_tqdm=True, **args),
        train_dataset=case.train() if case.train else RegressionDataset(label_names=case.label_names),
        eval_dataset=RegressionDataset(20, seed=1, label_names=case.label_names),
        **case.trainer(),
        **keywords,
    )
    output = trainer.train(**case.train_keywords)
    return Run(trainer, output, trainer.evaluate())


def surrogate_model(case):
    if isinstance(case.model, type):
        return surrogate_of(case.model, TAU)
    return lambda: case.model(surrogate_of(RegressionModel, TAU))


BY_NAME = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@BY_NAME
def test_none_trains_as_the_stock_trainer(case, tmp_path):
    expected = run(Trainer, case, tmp_path / "stock")
    assert_same_run(expected, run(ReweightedTrainer, case, tmp_path / "ours", reweighting="none"))


@BY_NAME
def test_none_by_item_trains_as_the_stock_trainer(case, tmp_path):
    expected = run(Trainer, case, tmp_path / "stock")
    ours = run(
        ReweightedTrainer, case, tmp_path / "ours", reweighting="none", per_sample_loss_fn=loss_function(case)
    )
    assert_same_run(expected, ours, rtol=1e-5)


@BY_NAME
def test_kl_trains_on_the_surrogate(case, tmp_path):
    expected = run(Trainer, case, tmp_path / "stock", model=surrogate_model(case))
    ours = run(
        ReweightedTrainer,
        case,
        tmp_path / "ours",
        reweighting="kl",
        tau=TAU,
        per_sample_loss_fn=loss_function(case),
    )
    assert_same_run(expected, ours, rtol=1e-5, same_loss=False)
