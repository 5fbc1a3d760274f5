"""What users' code does around the loss, in every place where it can stand: the right step, or a refusal.

Batches that change on their way, methods set on the object, gradients that are changed, the order of classes.
"""

import functools
from typing import Any

import pytest
import torch
from override_batches import SAMPLES, assert_same_gradient, data, unreduced
from override_cases import OwnLoss
from override_steps import (
    BEHIND,
    CUTS,
    EVERY_SETTING,
    IN_FRONT,
    gradient_of,
    gradient_taken,
    placed,
    refuses,
    trainer_of,
)
from transformers import Trainer, TrainerCallback

from rgd_hf import ReweightedTrainer, ReweightingMixin
from tests.helpers.tiny import relative_error, stack

# --- batches that change on their way -------------------------------------------------------------------------------


def kept(batch):
    """The samples whose first token is even, a different number in every micro-batch."""
    rows = batch["input_ids"][:, 0] % 2 == 0
    return {name: value[rows] for name, value in batch.items()}


def ignored(batch):
    """The same by a label that does not count."""
    return {**batch, "labels": batch["labels"].masked_fill(batch["input_ids"][:, 0] % 2 == 1, -100)}


class PreparesFewer:
    def _prepare_inputs(self, inputs):
        return kept(super()._prepare_inputs(inputs))


class IgnoresInTheLoss:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, ignored(inputs), return_outputs, num_items_in_batch)


class DropsInTheLoss:
    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(model, kept(inputs), *args, **kwargs)


class DropsInTheStep:
    def training_step(self, model, inputs, num_items_in_batch=None):
        return super().training_step(model, kept(inputs), num_items_in_batch)


class DropsInTheBatches:
    def get_batch_samples(self, *args):
        batches, count = super().get_batch_samples(*args)
        return [kept(batch) for batch in batches], count


class ChangesTheBatchesInPlace:
    def get_batch_samples(self, *args):
        batches, count = super().get_batch_samples(*args)
        for batch in batches:
            batch["labels"] = ignored(batch)["labels"]
        return batches, count


CHANGING = [
    (PreparesFewer, IN_FRONT),
    (PreparesFewer, BEHIND),
    (IgnoresInTheLoss, IN_FRONT),
    (DropsInTheLoss, IN_FRONT),
    (DropsInTheStep, IN_FRONT),
    (DropsInTheStep, BEHIND),
    (DropsInTheBatches, IN_FRONT),
    (DropsInTheBatches, BEHIND),
    (ChangesTheBatchesInPlace, IN_FRONT),
]


@EVERY_SETTING
@CUTS
@pytest.mark.parametrize("cls, where", CHANGING, ids=lambda value: getattr(value, "__name__", value))
def test_the_mean_is_over_the_items_that_come_to_the_loss(cls, where, cut, setting, make_args):
    if setting == "own losses" and cls in (IgnoresInTheLoss, ChangesTheBatchesInPlace):
        pytest.skip("per_sample_loss_fn says by itself which items count")
    found = gradient_taken(trainer_of(placed(cls, where), make_args, setting, cut))
    assert_same_gradient(found, gradient_of(setting, kept(stack(data()))))


def halves(batch):
    middle = len(batch["labels"]) // 2
    return [
        {name: value[part] for name, value in batch.items()} for part in (slice(middle), slice(middle, None))
    ]


class DividesInTheLoss:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        compute_loss = super().compute_loss
        return sum(compute_loss(model, part, False, num_items_in_batch) for part in halves(inputs))


class DividesInTheStep:
    def training_step(self, model, inputs, num_items_in_batch=None):
        training_step = super().training_step
        return sum(training_step(model, part, num_items_in_batch) for part in halves(inputs))


class DividesByItself:
    def training_step(self, model, inputs, num_items_in_batch=None):
        losses = [self.compute_loss(model, part) for part in halves(self._prepare_inputs(inputs))]
        for loss in losses:
            self.accelerator.backward(loss)
        return sum(losses).detach()


@EVERY_SETTING
@CUTS
@pytest.mark.parametrize(
    "cls, where",
    [
        (DividesInTheLoss, IN_FRONT),
        (DividesInTheStep, IN_FRONT),
        (DividesInTheStep, BEHIND),
        (DividesByItself, IN_FRONT),
        (DividesByItself, BEHIND),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_parts_of_a_batch_are_refused(cls, where, cut, setting, make_args):
    trainer = trainer_of(placed(cls, where), make_args, setting, cut)
    refuses(
        trainer,
        rf"{cls.__name__}\.(compute_loss|training_step) (divides the batch|calls .* more than once|calls compute_loss by)",
    )


@CUTS
def test_labels_made_on_the_way_need_not_be_in_the_batch(cut, make_args):
    class MakesLabels(ReweightedTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            return super().compute_loss(
                model, {**inputs, "labels": inputs["input_ids"][:, 0] % 3}, *args, **kwargs
            )

    trainer = trainer_of(MakesLabels, make_args, "kl", cut)
    trainer.train_dataset = [{"input_ids": row["input_ids"]} for row in data()]
    batch = stack(data())
    expected = gradient_of("kl", {**batch, "labels": batch["input_ids"][:, 0] % 3})
    assert_same_gradient(gradient_taken(trainer), expected)


# --- methods set on the object ---------------------------------------------------------------------------------------


def tripled(compute_loss, model, inputs, return_outputs=False, **kwargs):
    loss = compute_loss(model, inputs, return_outputs, **kwargs)
    return (3 * loss[0], loss[1]) if return_outputs else 3 * loss


def set_partial(trainer):
    trainer.compute_loss = functools.partial(tripled, trainer.compute_loss)


def set_wrapped(trainer):
    """A decorator passes for what it decorates."""
    compute_loss = trainer.compute_loss

    @functools.wraps(compute_loss)
    def wrapper(*args, **kwargs):
        return tripled(compute_loss, *args, **kwargs)

    trainer.compute_loss = wrapper


def set_training_step(trainer):
    training_step = trainer.training_step

    def three_times(model, inputs, num_items_in_batch=None):
        loss = training_step(model, inputs, num_items_in_batch)
        if trainer.accelerator.sync_gradients:
            for parameter in model.parameters():
                parameter.grad = None if parameter.grad is None else 3 * parameter.grad
        return loss

    trainer.training_step = three_times


@EVERY_SETTING
@CUTS
@pytest.mark.parametrize("change", [set_partial, set_wrapped, set_training_step])
def test_methods_set_on_the_object_are_used(change, cut, setting, make_args):
    trainer = trainer_of(ReweightedTrainer, make_args, setting, cut)
    change(trainer)
    methods = dict(vars(trainer))
    assert_same_gradient(gradient_taken(trainer), gradient_of(setting, change=lambda gradient: 3 * gradient))
    assert all(
        vars(trainer)[name] is methods[name] for name in ("compute_loss", "training_step") if name in methods
    )


@CUTS
def test_a_loss_set_on_the_object_that_is_not_ours_is_refused(cut, make_args):
    trainer = trainer_of(ReweightedTrainer, make_args, "kl", cut)
    trainer.compute_loss = functools.partial(OwnLoss.compute_loss, trainer)
    refuses(trainer, r"trainer\.compute_loss never reaches .*compute_per_sample_losses")


@pytest.mark.parametrize("setting", ["kl", "own losses"])
@CUTS
def test_a_step_set_on_the_object_that_is_not_ours_is_refused(cut, setting, make_args):
    trainer = trainer_of(ReweightedTrainer, make_args, setting, cut)

    def training_step(model, inputs, num_items_in_batch=None):
        loss = model(**inputs).loss
        loss.backward()
        return loss.detach()

    trainer.training_step = training_step
    refuses(trainer, r"trainer\.training_step takes its step without self\.compute_loss")


def test_per_sample_losses_set_on_the_object_are_used(make_args):
    trainer = trainer_of(ReweightedTrainer, make_args, "kl", (5, 3))

    def doubled(model, inputs):
        losses = unreduced(outputs := model(input_ids=inputs["input_ids"]), inputs["labels"])
        return 0 * losses, outputs

    trainer.compute_per_sample_losses = doubled
    assert gradient_taken(trainer).abs().max() < 1e-4


# --- gradients that are changed -------------------------------------------------------------------------------------

SMALL = 1e-3


class ClampsInTheStep:
    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            torch.nn.utils.clip_grad_value_(model.parameters(), SMALL)
        return loss


class ClampsWhereOthersClip:
    def _clip_grad_norm(self, model):
        torch.nn.utils.clip_grad_value_(model.parameters(), SMALL)


class StepsByItself:
    """The Trainer's own step then finds no gradients."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            torch.nn.utils.clip_grad_value_(model.parameters(), SMALL)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


class ClampsBeforeTheStep(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        torch.nn.utils.clip_grad_value_(model.parameters(), SMALL)


@EVERY_SETTING
@CUTS
@pytest.mark.parametrize("where", [IN_FRONT, BEHIND])
@pytest.mark.parametrize("cls", [ClampsInTheStep, ClampsWhereOthersClip, StepsByItself])
def test_what_changes_the_gradients_sees_those_of_the_whole_step(cls, where, cut, setting, make_args):
    trainer = trainer_of(placed(cls, where), make_args, setting, cut, max_grad_norm=1e9)
    assert_clamped(gradient_taken(trainer), setting)


@EVERY_SETTING
@CUTS
def test_so_does_a_callback(cut, setting, make_args):
    trainer = trainer_of(ReweightedTrainer, make_args, setting, cut, [ClampsBeforeTheStep()])
    assert_clamped(gradient_taken(trainer), setting)


def assert_clamped(found, setting):
    expected = gradient_of(setting, change=lambda gradient: gradient.clamp(-SMALL, SMALL))
    assert (gradient_of(setting).abs() > 2 * SMALL).any()
    assert relative_error(found, expected) < 1e-3


class AsksForTheLoss(TrainerCallback):
    trainer: Any = None

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.compute_loss(self.trainer.model, stack(data()))

    on_substep_end = on_step_end


@EVERY_SETTING
@CUTS
def test_a_loss_that_a_callback_asks_for_is_not_counted(cut, setting, make_args):
    logs = []
    for asks in (False, True):
        callback = AsksForTheLoss()
        trainer = trainer_of(
            ReweightedTrainer, make_args, setting, cut, [callback] if asks else [], logging_steps=1
        )
        callback.trainer = trainer
        assert_same_gradient(gradient_taken(trainer), gradient_of(setting))
        logs.append({key: value for key, value in trainer.state.log_history[0].items() if "time" not in key})
    assert logs[0] == logs[1]


# --- the order of classes --------------------------------------------------------------------------------------------


class Scales:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        return (3 * loss, outputs) if return_outputs else 3 * loss


class TheirsFirst(Scales, Trainer):
    pass


class Ours(ReweightedTrainer):
    pass


@EVERY_SETTING
@CUTS
def test_a_diamond_with_their_class_first_uses_it(cut, setting, make_args):
    cls = type("Diamond", (TheirsFirst, Ours), {})
    found = gradient_taken(trainer_of(cls, make_args, setting, cut))
    assert_same_gradient(found, gradient_of(setting, change=lambda gradient: 3 * gradient))


@pytest.mark.parametrize(
    "bases", [(Ours, TheirsFirst), (ReweightingMixin, Scales, Trainer), (ReweightingMixin, TheirsFirst)]
)
def test_a_loss_behind_the_mixin_is_refused_in_every_order(bases, make_args):
    cls = type("Mine", bases, {})
    with pytest.raises(
        NotImplementedError, match=r"(Scales|TheirsFirst)\.compute_loss computes its own loss"
    ):
        trainer_of(cls, make_args, "kl", (12, 1))


class PastTheMixin(ReweightedTrainer):
    def compute_loss(self, *args, **kwargs):
        return Trainer.compute_loss(self, *args, **kwargs)


@CUTS
@pytest.mark.parametrize("setting", ["kl", "none"])
def test_a_call_past_the_mixin_is_refused(setting, cut, make_args):
    refuses(
        trainer_of(PastTheMixin, make_args, setting, cut),
        r"PastTheMixin\.compute_loss never .*use the class without rgd_hf\.",
    )


def test_the_samples_of_the_step_differ_in_number_between_micro_batches():
    """Otherwise nothing above would tell a mean of means from a mean."""
    batch = stack(data())
    assert (
        len({len(kept({k: v[i : i + 5] for k, v in batch.items()})["labels"]) for i in range(0, SAMPLES, 5)})
        > 1
    )
