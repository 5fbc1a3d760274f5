"""What metrics see of whatever a model returns, and what its forward is asked for in evaluation."""

from collections import UserDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, Trainer

from rgd_hf import PerSampleLosses, ReweightedTrainer
from tests.helpers.tiny import stack

torch.manual_seed(0)
DATA = [{"x": torch.randn(5), "labels": torch.tensor(i % 3)} for i in range(9)]


class Model(nn.Module):
    """Returns its logits in a container; asked to, after a loss that needs the labels."""

    def __init__(self, container):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.container = nn.Linear(5, 3), container

    def forward(self, x):
        return self.container(self.linear(x))


class WithLoss(Model):
    def forward(self, x, labels):
        logits = self.linear(x)
        return self.container((cross_entropy(logits, labels), logits))


class WithHidden(Model):
    def forward(self, x, labels=None):
        logits = self.linear(x)
        hidden = (logits, x.sum(dim=1))
        return hidden if labels is None else (cross_entropy(logits, labels), *hidden)


def tensor(logits):
    return logits


def pair(logits):
    return logits, logits + 1


def as_dict(logits):
    return {"logits": logits}


@dataclass
class Fields:
    logits: torch.Tensor
    hidden: Any = None


def logits_in(outputs):
    if isinstance(outputs, Fields | SimpleNamespace):
        return outputs.logits
    if isinstance(outputs, torch.Tensor):
        return outputs
    if isinstance(outputs, dict | UserDict):
        return outputs["logits"]
    return next(found for found in outputs if found.dim() == 2)


def unreduced(outputs, labels):
    return cross_entropy(logits_in(outputs), labels, reduction="none")


class Method(ReweightedTrainer):
    def compute_per_sample_losses(self, model, inputs):
        labels = inputs.pop("labels")
        outputs = model(**inputs, **({"labels": labels} if isinstance(model, WithLoss) else {}))
        return PerSampleLosses(unreduced(outputs, labels), outputs)


class Function(ReweightedTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, per_sample_loss_fn=unreduced, **kwargs)


class LooksAtOutputs(Function):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.seen = type(outputs)
        return (loss, outputs) if return_outputs else loss


def predicted(cls, model, make_args):
    """Predictions of 9 samples in batches of 4: the last has one sample."""
    seen = []

    def metrics(prediction):
        seen.append(prediction.predictions)
        return {}

    args = make_args(per_device_eval_batch_size=4, label_names=["labels"])
    trainer = cls(model, args, eval_dataset=DATA, compute_metrics=metrics)
    trainer.evaluate()
    return seen[0], trainer


def logits_of_data(model):
    return model.linear(stack(DATA)["x"]).detach().numpy()


@pytest.mark.parametrize("cls", [Function, Method, LooksAtOutputs])
@pytest.mark.parametrize(
    "container", [tensor, as_dict, lambda x: UserDict(as_dict(x)), Fields, lambda x: (x,), lambda x: [x]]
)
def test_logits_in_any_container_are_all_predictions(cls, container, make_args):
    model = Model(container)
    predictions, _ = predicted(cls, model, make_args)
    np.testing.assert_allclose(predictions, logits_of_data(model), rtol=1e-6)


@pytest.mark.parametrize("container", [as_dict, Fields])
def test_a_loss_for_each_of_as_many_classes_as_samples_is_none_of_pairs(container, make_args):
    def of_classes(outputs, labels):
        return (logits_in(outputs) - labels[:, None]) ** 2

    model, args = Model(container), make_args(label_names=["labels"])
    trainer = ReweightedTrainer(model, args, eval_dataset=DATA[:3], per_sample_loss_fn=of_classes)
    expected = of_classes(model(stack(DATA[:3])["x"]), stack(DATA[:3])["labels"]).mean().item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("cls", [Function, Method])
@pytest.mark.parametrize("container", [pair, lambda x: [x, x + 1]])
def test_several_outputs_are_several_predictions(cls, container, make_args):
    model = Model(container)
    predictions, _ = predicted(cls, model, make_args)
    for offset in (0, 1):
        np.testing.assert_allclose(predictions[offset], logits_of_data(model) + offset, rtol=1e-5)


@pytest.mark.parametrize("cls", [Function, Method])
@pytest.mark.parametrize("container", [tuple, list])
def test_the_loss_of_a_forward_that_requires_labels_is_no_prediction(cls, container, make_args):
    model = WithLoss(container)
    expected, _ = predicted(Trainer, model, make_args)
    predictions, trainer = predicted(cls, model, make_args)
    np.testing.assert_allclose(predictions, expected)
    loss, outputs = trainer.compute_loss(model, stack(DATA), return_outputs=True)
    assert len(outputs) == 2 and outputs[0] is loss


def test_a_forward_that_can_do_without_labels_gives_what_the_stock_trainer_sees(make_args):
    model = WithHidden(None)
    expected, _ = predicted(Trainer, model, make_args)
    predictions, _ = predicted(Function, model, make_args)
    for found, of_stock in zip(predictions, expected, strict=True):
        np.testing.assert_allclose(found, of_stock)


def test_an_override_of_compute_loss_sees_what_the_model_returned(make_args):
    _, trainer = predicted(LooksAtOutputs, Model(tensor), make_args)
    assert trainer.seen is torch.Tensor
    assert "compute_loss" not in vars(trainer)


class NoOutputs(Method):
    def compute_per_sample_losses(self, model, inputs):
        return super().compute_per_sample_losses(model, inputs)._replace(outputs=None)


@pytest.mark.parametrize("cls", [NoOutputs, Method, Function])
def test_losses_without_outputs_that_metrics_could_see_are_evaluated(cls, make_args):
    model = Model(lambda x: SimpleNamespace(logits=x))
    args = make_args(per_device_eval_batch_size=4, label_names=["labels"])
    loss = cls(model, args, eval_dataset=DATA).evaluate()["eval_loss"]
    batch = stack(DATA)
    assert loss == pytest.approx(unreduced(model(batch["x"]), batch["labels"]).mean().item(), rel=1e-5)


# --- Liger ---------------------------------------------------------------------------------------------------------


def as_liger_does(model, *_):
    """Its forward makes no logits where it is asked to, which it refuses without labels to make the loss of."""
    forward = model.forward

    def with_skip_logits(input_ids=None, labels=None, skip_logits=None, **kwargs):
        if skip_logits and labels is None:
            raise ValueError("skip_logits is True, but labels and shift_labels are None")
        outputs = forward(input_ids=input_ids, labels=labels, **kwargs)
        if skip_logits:
            outputs.logits = None
        return outputs

    model.forward = with_skip_logits


def causal(outputs, labels):
    return cross_entropy(outputs.logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")


class CausalMethod(ReweightedTrainer):
    def compute_per_sample_losses(self, model, inputs):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        return causal(outputs, labels), outputs


@pytest.mark.parametrize("reweighting", ["kl", "none"])
@pytest.mark.parametrize(
    ("cls", "function"), [(ReweightedTrainer, None), (ReweightedTrainer, causal), (CausalMethod, None)]
)
def test_liger_is_not_asked_to_skip_logits_without_labels(cls, function, reweighting, make_args, monkeypatch):
    monkeypatch.setattr("transformers.trainer.apply_liger_kernel", as_liger_does)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes))
    ids = torch.randint(2, 50, (8, 8))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    expected = model(input_ids=ids, labels=ids).loss.item()
    args = make_args(max_steps=1, learning_rate=0.0, use_liger_kernel=True)
    keywords = {"train_dataset": rows, "eval_dataset": rows, "reweighting": reweighting}
    trainer = cls(model, args, per_sample_loss_fn=function, **keywords)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
