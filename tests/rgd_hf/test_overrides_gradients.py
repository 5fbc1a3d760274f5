"""Parameters outside the model, and gradients that users' code adds to a step: the right step, or a refusal."""

import pytest
import torch
from override_batches import assert_same_gradient, data, unreduced
from override_steps import (
    BEHIND,
    CUTS,
    EVERY_SETTING,
    IN_FRONT,
    gradient_of,
    gradient_taken,
    objective,
    placed,
    refuses,
    trainer_of,
)
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback

from rgd_hf import ReweightedTrainer
from tests.helpers.tiny import gradients_of, relative_error, stack, tiny_bert

# --- parameters outside the model ------------------------------------------------------------------------------------


class HeadOnTheTrainer(ReweightedTrainer):
    """In the Trainer's optimizer, as a learnt loss weight or the matrix of ArcFace is."""

    seen = ()

    def compute_per_sample_losses(self, model, inputs):
        outputs = model(input_ids=inputs["input_ids"])
        outputs.logits = self.head(outputs.logits)
        return unreduced(outputs, inputs["labels"]), outputs

    def create_optimizer(self, model=None):
        super().create_optimizer(model)
        self.head = head()
        self.optimizer.add_param_group({"params": list(self.head.parameters())})
        return self.optimizer


class HeadWithAnOptimizer(HeadOnTheTrainer):
    """As the centres of a centre loss have."""

    def create_optimizer(self, model=None):
        super(HeadOnTheTrainer, self).create_optimizer(model)
        self.head = head()
        self.head_optimizer = torch.optim.SGD(self.head.parameters(), lr=0.0)
        return self.optimizer


def head():
    torch.manual_seed(1)
    return nn.Linear(3, 3)


class Sees(TrainerCallback):
    """The gradient of the head at every step; without `clears` it adds up over the steps, as nothing clears it."""

    def __init__(self, clears):
        self.clears, self.seen = clears, []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.seen.append(gradients_of(self.trainer.head).clone())

    def on_step_end(self, args, state, control, **kwargs):
        if self.clears:
            self.trainer.head.zero_grad(set_to_none=self.clears == "to none")


def seen_in_two_steps(cls, make_args, cut, clears, **settings):
    callback = Sees(clears)
    args = make_args(
        max_steps=2,
        learning_rate=0.0,
        per_device_train_batch_size=cut[0],
        gradient_accumulation_steps=cut[1],
        train_sampling_strategy="sequential",
    )
    trainer = cls(tiny_bert(), args, train_dataset=data(), callbacks=[callback], **settings)
    callback.trainer = trainer
    trainer.train()
    return callback.seen


@pytest.mark.parametrize("clears", ["to none", "to zeros", ""])
@pytest.mark.parametrize("settings", [{}, {"normalize_weights": True}, {"reweighting": "none"}], ids=str)
@pytest.mark.parametrize("cls", [HeadOnTheTrainer, HeadWithAnOptimizer])
@CUTS
def test_parameters_outside_the_model_get_the_gradient_of_the_step(cut, cls, settings, clears, make_args):
    seen = seen_in_two_steps(cls, make_args, cut, clears, **settings)
    model, oracle = tiny_bert(), head()
    model.classifier = nn.Sequential(model.classifier, oracle)
    objective(
        model, {"normalize_weights": "normalized", "reweighting": "none"}.get(next(iter(settings), ""), "kl")
    ).backward()
    expected = gradients_of(oracle)
    assert relative_error(seen[0], expected) < 1e-5
    assert relative_error(seen[1], expected if clears else 2 * expected) < 1e-5


# --- gradients that others add ---------------------------------------------------------------------------------------


def penalty(model):
    return model.classifier.weight.square().sum()


class AddsAGradientAfter:
    """Of a penalty, in every micro-batch."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.accelerator.backward(penalty(model) / self.current_gradient_accumulation_steps)
        return loss


class AddsAGradientBefore:
    def training_step(self, model, inputs, num_items_in_batch=None):
        (penalty(model) / self.current_gradient_accumulation_steps).backward()
        return super().training_step(model, inputs, num_items_in_batch)


class ChangesAGradient:
    """The same by hand."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        weight = model.classifier.weight
        weight.grad.add_(2 * weight.detach() / self.current_gradient_accumulation_steps)
        return loss


class AddsAGradientInTheLoss:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        (penalty(model) / self.current_gradient_accumulation_steps).backward()
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class AddsToTheLoss:
    """What the refusal advises."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss + penalty(model)
        return (loss, outputs) if return_outputs else loss


class AddsOnceAStep:
    """What it advises besides."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self.accelerator.backward(penalty(model))
        return loss


ADDING = [
    (AddsAGradientAfter, IN_FRONT),
    (AddsAGradientAfter, BEHIND),
    (AddsAGradientBefore, IN_FRONT),
    (ChangesAGradient, IN_FRONT),
    (AddsAGradientInTheLoss, IN_FRONT),
]


def penalized(setting):
    model = tiny_bert()
    (objective(model, setting) + penalty(model)).backward()
    return gradients_of(model)


@EVERY_SETTING
@CUTS
@pytest.mark.parametrize("cls, where", ADDING, ids=lambda value: getattr(value, "__name__", value))
def test_gradients_of_others_are_not_rescaled(cls, where, cut, setting, make_args):
    trainer = trainer_of(placed(cls, where), make_args, setting, cut)
    if cut[1] > 1 and setting in ("normalized", "own losses"):
        refuses(
            trainer, rf"{cls.__name__}\.\w+ changes gradients .* super\(\)\.compute_loss returns .*sync_gr"
        )
    else:
        assert_same_gradient(gradient_taken(trainer), penalized(setting))


@EVERY_SETTING
@CUTS
@pytest.mark.parametrize("cls", [AddsToTheLoss, AddsOnceAStep])
def test_what_the_refusal_advises_takes_the_right_step(cls, cut, setting, make_args):
    trainer = trainer_of(placed(cls, IN_FRONT), make_args, setting, cut)
    assert_same_gradient(gradient_taken(trainer), penalized(setting))


def test_they_are_refused_where_the_items_turn_out_others_than_were_counted(make_args):
    class Drops(AddsAGradientAfter):
        def training_step(self, model, inputs, num_items_in_batch=None):
            kept = {name: value[:3] for name, value in inputs.items()}
            return super().training_step(model, kept, num_items_in_batch)

    refuses(
        trainer_of(placed(Drops, IN_FRONT), make_args, "kl", (5, 3)),
        r"Drops\.training_step changes gradients",
    )


class AddsNoise(TrainerCallback):
    def on_substep_end(self, args, state, control, model=None, **kwargs):
        model.classifier.weight.grad.add_(0.1)


def test_so_are_those_of_a_callback(make_args):
    refuses(
        trainer_of(ReweightedTrainer, make_args, "normalized", (5, 3), [AddsNoise()]),
        "A callback or hook changes gradients",
    )


class WithADiscriminator:
    """A network of its own, as of a GAN or a probe, which the loss does not reach."""

    every_micro_batch = True

    def __init__(self, *args, **keywords):
        super().__init__(*args, **keywords)
        torch.manual_seed(2)
        self.discriminator, self.calls, self.seen = nn.Linear(4, 1), 0, []
        self.d_optimizer = torch.optim.SGD(self.discriminator.parameters(), lr=0.1)

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        first = self.calls % self.args.gradient_accumulation_steps == 0
        self.calls += 1
        if self.every_micro_batch or first:
            self.d_optimizer.zero_grad()
        self.discriminator(torch.full((2, 4), float(self.calls))).mean().backward()
        if self.every_micro_batch or self.accelerator.sync_gradients:
            self.seen.append(gradients_of(self.discriminator).clone())
            self.d_optimizer.step()
        return loss


class StepsOnce(WithADiscriminator):
    every_micro_batch = False


class Stream(IterableDataset):
    def __iter__(self):
        yield from data()


@pytest.mark.parametrize("rows", [data, Stream], ids=["finite", "stream"])
@pytest.mark.parametrize("settings", [{}, {"normalize_weights": True}], ids=str)
@pytest.mark.parametrize("own", [WithADiscriminator, StepsOnce])
def test_an_optimizer_of_parameters_that_the_loss_does_not_reach_is_left_alone(
    own, settings, rows, make_args
):
    args = make_args(max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    seen = []
    for cls, given in ((Trainer, {}), (ReweightedTrainer, settings)):
        trainer = type("Own", (own, cls), {})(tiny_bert(), args, train_dataset=rows(), **given)
        trainer.train()
        seen.append(torch.stack(trainer.seen))
    assert torch.equal(*seen)


@CUTS
def test_gradients_cleared_to_zeros_are_no_gradients_of_others(cut, make_args):
    trainer = trainer_of(ReweightedTrainer, make_args, "normalized", cut)
    model = trainer.model
    model(**stack(data())).loss.backward()
    model.zero_grad = lambda set_to_none=True: nn.Module.zero_grad(model, set_to_none=False)
    assert_same_gradient(gradient_taken(trainer), gradient_of("normalized"))


def test_a_stream_is_what_gradients_are_rescaled_because_of(make_args):
    args = make_args(max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    trainer = type("Adds", (AddsAGradientAfter, ReweightedTrainer), {})(
        tiny_bert(), args, train_dataset=Stream()
    )
    refuses(trainer, "because of a training set of unknown length")


def test_the_gradient_of_the_step_is_not_that_of_the_penalty():
    """Otherwise nothing above would tell a rescaled penalty from one that is not."""
    assert relative_error(penalized("kl"), gradient_of("kl")) > 0.1
    assert len(stack(data())["labels"]) == 12
