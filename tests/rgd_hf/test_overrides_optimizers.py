"""Optimizers and loops of the user's own that take steps where they like: the right step, or a refusal before it."""

from dataclasses import dataclass

import pytest
import torch
from override_batches import assert_same_gradient
from override_steps import (
    BEHIND,
    CUTS,
    EVERY_SETTING,
    IN_FRONT,
    RATE,
    gradient_of,
    gradient_taken,
    placed,
    refuses,
    trainer_of,
)

# --- optimizers that take steps by themselves ------------------------------------------------------------------------


class LayerByLayer:
    """As GaLore and APOLLO do: an optimizer for every parameter, which steps as soon as there is a gradient."""

    def create_optimizer(self, *args):
        of_parameter = {p: torch.optim.SGD([p], lr=RATE) for p in self.model.parameters() if p.requires_grad}

        def step(parameter):
            of_parameter[parameter].step()
            of_parameter[parameter].zero_grad()

        for parameter in of_parameter:
            parameter.register_post_accumulate_grad_hook(step)
        self.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
        return self.optimizer


class InPlace:
    """As LOMO does: no optimizer at all."""

    def create_optimizer(self, *args):
        def step(parameter):
            parameter.data.sub_(RATE * parameter.grad)
            parameter.grad = None

        for parameter in self.model.parameters():
            parameter.register_post_accumulate_grad_hook(step)
        self.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
        return self.optimizer


@EVERY_SETTING
@pytest.mark.parametrize("where", [IN_FRONT, BEHIND])
@pytest.mark.parametrize("cls", [LayerByLayer, InPlace])
def test_steps_in_the_backward_pass_are_right_without_accumulation(cls, where, setting, make_args):
    trainer = trainer_of(placed(cls, where), make_args, setting, (12, 1), max_grad_norm=0.0)
    assert_same_gradient(gradient_taken(trainer), gradient_of(setting))


@EVERY_SETTING
@pytest.mark.parametrize("where", [IN_FRONT, BEHIND])
def test_they_are_refused_before_the_first_where_gradients_accumulate(where, setting, make_args):
    trainer = trainer_of(placed(LayerByLayer, where), make_args, setting, (5, 3))
    refuses(
        trainer,
        r"SGD takes a step within a training_step or its backward pass.*gradient_accumulation_steps=1",
    )


@EVERY_SETTING
def test_and_where_no_optimizer_is_seen_after_the_first_micro_batch(setting, make_args):
    trainer = trainer_of(placed(InPlace, IN_FRONT), make_args, setting, (5, 3))
    with pytest.raises(NotImplementedError, match=r"gradients .* are gone .*gradient_accumulation_steps=1"):
        trainer.train()


class StepsInEveryMicroBatch:
    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.optimizer.optimizer.step()
        self.optimizer.optimizer.zero_grad()
        return loss


@EVERY_SETTING
@pytest.mark.parametrize("where", [IN_FRONT, BEHIND])
def test_so_is_a_training_step_that_steps_in_every_micro_batch(where, setting, make_args):
    refuses(
        trainer_of(placed(StepsInEveryMicroBatch, where), make_args, setting, (5, 3)),
        r"SGD takes a step within StepsInEveryMicroBatch\.training_step",
    )


class AttacksTheInput:
    """An optimizer of something else than the model is nobody's business."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        noise = torch.nn.Parameter(torch.zeros(2))
        noise.square().sum().backward()
        torch.optim.SGD([noise], lr=1.0).step()
        return super().training_step(model, inputs, num_items_in_batch)


@EVERY_SETTING
@CUTS
def test_an_optimizer_of_other_parameters_may_step(cut, setting, make_args):
    trainer = trainer_of(placed(AttacksTheInput, IN_FRONT), make_args, setting, cut)
    assert_same_gradient(gradient_taken(trainer), gradient_of(setting))


# --- loops of their own ----------------------------------------------------------------------------------------------


@dataclass
class Finished:
    global_step: int = 1


class LoopOfItsOwn:
    zeroes = True

    def _inner_training_loop(self, *args, **kwargs):
        self.is_in_train = True
        optimizer = torch.optim.SGD(self.model.parameters(), lr=RATE)
        for batch in self.get_train_dataloader():
            if self.zeroes:
                optimizer.zero_grad()
            self.take(batch)
        optimizer.step()
        return Finished()

    def take(self, batch):
        self.training_step(self.model, batch)


class Accumulates(LoopOfItsOwn):
    zeroes = False


class WithoutLoss(LoopOfItsOwn):
    def take(self, batch):
        self.model(**batch).loss.backward()


@EVERY_SETTING
@pytest.mark.parametrize("where", [IN_FRONT, BEHIND])
def test_a_loop_of_its_own_takes_the_right_step(where, setting, make_args):
    trainer = trainer_of(placed(LoopOfItsOwn, where), make_args, setting, (12, 1))
    assert_same_gradient(gradient_taken(trainer), gradient_of(setting))


@EVERY_SETTING
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_loop_of_its_own_that_accumulates_is_refused(accumulation, setting, make_args):
    trainer = trainer_of(placed(Accumulates, IN_FRONT), make_args, setting, (5, accumulation))
    refuses(trainer, r"LoopOfItsOwn\._inner_training_loop calls training_step for several batches")


@pytest.mark.parametrize("setting", ["kl", "normalized", "own losses"])
def test_a_loop_without_the_loss_is_refused(setting, make_args):
    trainer = trainer_of(placed(WithoutLoss, IN_FRONT), make_args, setting, (12, 1))
    refuses(trainer, r"LoopOfItsOwn\._inner_training_loop takes its step without self\.compute_loss")
