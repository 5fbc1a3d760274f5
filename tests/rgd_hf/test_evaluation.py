"""The plain loss by whatever way a subclass or script comes to it, and the losses of the samples beside it."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import Trainer, default_data_collator

from rgd_hf import ReweightedTrainer
from rgd_hf.heads import HEADS, logits_of
from tests.helpers.tiny import classification_data, gradients_of, stack, tiny_bert

DATA = classification_data(13)


def plain(rows=DATA):
    return tiny_bert().eval()(**stack(rows)).loss.item()


def trainer_of(make_args, cls=ReweightedTrainer, **keywords):
    return cls(tiny_bert(), make_args(per_device_eval_batch_size=5), eval_dataset=DATA, **keywords)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "settings", [{}, {"reweighting": "none"}, {"class_weights": [1.0, 2.0, 3.0]}], ids=str
)
def test_a_prediction_step_by_itself_is_plain_and_keeps_nothing(settings, training, make_args):
    trainer = trainer_of(make_args, **settings)
    trainer.model.train(training)  # without dropout
    for _ in range(2):
        loss, logits, labels = trainer.prediction_step(trainer.model, stack(DATA), prediction_loss_only=False)
        assert loss.item() == pytest.approx(plain(), rel=1e-5)
        assert logits.shape == (13, 3) and labels.shape == (13,)
    assert len(trainer._eval_batches) == 0 and trainer._plain is None


def test_without_a_gradient_the_loss_is_plain(make_args):
    trainer = trainer_of(make_args)
    trainer.model.train()
    with torch.no_grad():
        assert trainer.compute_loss(trainer.model, stack(DATA)).item() == pytest.approx(plain(), rel=1e-5)


def test_an_evaluation_inside_compute_metrics_mixes_nothing_up(make_args):
    other = classification_data(7, seed=1)
    inner = []

    def metrics(prediction):
        if not inner:
            inner.append(None)
            inner.append(trainer.evaluate(other, metric_key_prefix="other")["other_loss"])
        return {}

    trainer = trainer_of(make_args, compute_metrics=metrics)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain(), rel=1e-5)
    assert inner[1] == pytest.approx(plain(other), rel=1e-5)
    assert len(trainer.eval_losses) == 13
    assert "prediction_step" not in vars(trainer)


class OwnLoop:
    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        from transformers.trainer_utils import EvalLoopOutput

        losses = [self.prediction_step(self.model, batch, True)[0] for batch in dataloader]
        metrics = {f"{metric_key_prefix}_loss": torch.stack(losses).mean().item()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(DATA))


class ScaledLoss:
    def prediction_step(self, *args, **kwargs):
        loss, *rest = super().prediction_step(*args, **kwargs)
        return (2 * loss, *rest)


class OwnForward:
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad():
            outputs = model(**inputs)
        return outputs.loss, None, None


class EvaluatesMore:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss + model.classifier.weight.square().sum()
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("override", [OwnLoop, ScaledLoss, OwnForward, EvaluatesMore])
def test_a_loss_that_an_override_returns_is_the_stock_trainers_mean_of_it(override, make_args):
    stock = trainer_of(make_args, type("Stock", (override, Trainer), {}))
    ours = trainer_of(make_args, type("Ours", (override, ReweightedTrainer), {}))
    assert ours.evaluate()["eval_loss"] == pytest.approx(stock.evaluate()["eval_loss"], rel=1e-5)


class PassesOn:
    def prediction_step(self, *args, **kwargs):
        return super().prediction_step(*args, **kwargs)


@pytest.mark.parametrize("in_front", [True, False])
def test_an_override_that_passes_the_loss_on_leaves_it_exact(in_front, make_args):
    from rgd_hf import ReweightingMixin

    bases = (PassesOn, ReweightedTrainer) if in_front else (ReweightingMixin, PassesOn, Trainer)
    trainer = trainer_of(make_args, type("Ours", bases, {}))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain(), rel=1e-6)
    assert len(trainer.eval_losses) == 13


@pytest.mark.parametrize("ignored", [7.0, math.inf, math.nan])
def test_what_a_users_head_returns_for_ignored_items_is_nowhere(ignored, make_args, monkeypatch):
    def losses(outputs, inputs, config, label_smoothing):
        found = F.cross_entropy(logits_of(outputs), inputs["labels"], reduction="none")
        return torch.where(inputs["labels"] == -100, ignored, found)

    rows = [{**row, "labels": torch.tensor(-100)} if i % 3 == 0 else row for i, row in enumerate(DATA)]

    def train():
        trainer = ReweightedTrainer(tiny_bert(), make_args(), eval_dataset=rows, reweighting="kl")
        trainer.compute_loss(trainer.model.train(), stack(rows)).backward()
        return trainer.evaluate()["eval_loss"], gradients_of(trainer.model)

    expected_loss, expected = train()
    name = "BertForSequenceClassification"
    monkeypatch.setitem(HEADS, name, dataclasses.replace(HEADS[name], losses=losses))
    loss, gradients = train()
    assert loss == pytest.approx(expected_loss)
    torch.testing.assert_close(gradients, expected)


class Unprepared(ReweightedTrainer):
    """Accelerate knows the training's loader alone, which is at its end while the epoch's evaluation runs."""

    def get_eval_dataloader(self, eval_dataset=None):
        return DataLoader(self.eval_dataset, batch_size=4, collate_fn=default_data_collator)


def test_a_loader_of_the_users_is_not_cut_as_the_trainings_is(make_args):
    args = make_args(max_steps=4, per_device_train_batch_size=4, learning_rate=0.0, eval_strategy="epoch")
    trainer = Unprepared(tiny_bert(), args, train_dataset=DATA, eval_dataset=DATA[:8])
    trainer.train()
    (loss,) = (entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
    assert loss == pytest.approx(plain(DATA[:8]), rel=1e-5)
    assert len(trainer.eval_losses) == 8


@pytest.mark.parametrize("size", [2, 4, 8])
def test_losses_of_tokens_in_one_row_all_count(size, make_args):
    def losses(outputs, labels):
        return F.cross_entropy(logits_of(outputs).flatten(0, 1), labels.flatten(), reduction="none")

    torch.manual_seed(0)
    rows = [{"x": torch.randn(6, 5), "labels": torch.randint(0, 3, (6,))} for _ in range(6)]
    model = Linear()
    args = make_args(per_device_eval_batch_size=size)
    trainer = ReweightedTrainer(model, args, eval_dataset=rows, per_sample_loss_fn=losses)
    batch = stack(rows)
    expected = losses(model(batch["x"]), batch["labels"]).detach()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.mean().item(), rel=1e-5)
    torch.testing.assert_close(trainer.eval_losses, expected)


class Linear(torch.nn.Linear):
    def __init__(self):
        super().__init__(5, 3)

    def forward(self, x):
        return {"logits": super().forward(x)}
