"""What users' code does between the micro-batches of a step, and to rules with a state: the steps stay the same."""

from types import SimpleNamespace

import pytest
import torch
from override_batches import assert_same_gradient, data
from override_steps import CUTS, EVERY_SETTING, gradient_of, gradient_taken, trainer_of
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset
from transformers import TrainerCallback

from rgd_hf import ReweightedTrainer, rgd_surrogate
from rgd_hf.weightings import GroupDRO, RelativeKL
from tests.helpers.tiny import (
    classification_data,
    parameters_of,
    relative_error,
    stack,
    tiny_bert,
)

# --- between the micro-batches ---------------------------------------------------------------------------------------


class Evaluates(TrainerCallback):
    trainer: ReweightedTrainer

    def on_substep_end(self, args, state, control, **kwargs):
        self.trainer.evaluate(classification_data(4, seed=3))


@EVERY_SETTING
def test_an_evaluation_between_micro_batches_leaves_the_step_alone(setting, make_args):
    callback = Evaluates()
    trainer = trainer_of(ReweightedTrainer, make_args, setting, (5, 3), [callback])
    callback.trainer = trainer
    assert_same_gradient(gradient_taken(trainer), gradient_of(setting))


class LogsInTheLoss(ReweightedTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        returned = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.log({"loss": 0.0})
        return returned


class CountsByItself(ReweightedTrainer):
    def _get_num_items_in_batch(self, batch_samples, device):
        return None


class LoopOfItsOwn(ReweightedTrainer):
    def _inner_training_loop(self, *args, **kwargs):
        self.is_in_train = True
        optimizer = torch.optim.SGD(self.model.parameters(), lr=self.args.learning_rate)
        for batch in self.get_train_dataloader():
            optimizer.zero_grad()
            self.training_step(self.model, batch)
            optimizer.step()
        self.is_in_train = False
        return SimpleNamespace(global_step=3)


def grouped():
    return [
        {**row, "group": torch.tensor(int(i * i % 5 > 1))} for i, row in enumerate(classification_data(36))
    ]


def trained(cls, make_args, cut, rule):
    args = make_args(
        max_steps=3,
        learning_rate=0.5,
        per_device_train_batch_size=cut[0],
        gradient_accumulation_steps=cut[1],
        train_sampling_strategy="sequential",
        logging_steps=100,
    )
    trainer = cls(tiny_bert(), args, train_dataset=grouped(), reweighting=rule())
    trainer.train()
    trainer._end_step()
    return parameters_of(trainer.model), trainer.weighting.state_dict()


def group_dro():
    return GroupDRO(2, step_size=0.7)


def relative_kl():
    return RelativeKL(decay=0.5)


@pytest.mark.parametrize("rule", [group_dro, relative_kl])
@pytest.mark.parametrize(
    ("cls", "cut"),
    [
        (LogsInTheLoss, (12, 1)),
        (LogsInTheLoss, (4, 3)),
        (CountsByItself, (12, 1)),
        (CountsByItself, (4, 3)),
        (LoopOfItsOwn, (12, 1)),
    ],
)
def test_a_rule_with_a_state_sees_every_step_once(cls, cut, rule, make_args):
    expected, expected_state = trained(ReweightedTrainer, make_args, (12, 1), rule)
    found, state = trained(cls, make_args, cut, rule)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for name in expected_state:
        torch.testing.assert_close(state[name], expected_state[name], rtol=1e-4, atol=1e-6)


# --- epochs of unknown length ----------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return iter(data())


class StreamsByItself(ReweightedTrainer):
    """The training set is a list that its own loader makes a stream of."""

    def get_train_dataloader(self):
        return self.accelerator.prepare(DataLoader(Stream(), batch_size=5, collate_fn=self.data_collator))


@pytest.mark.parametrize("has_data", [True, False])
def test_what_an_epoch_of_unknown_length_leaves_is_one_mean_with_the_next(has_data, make_args):
    """12 samples in batches of 5, 5 and 2, two to a step: the first epoch leaves 2 samples to the second one's step."""
    rate, rows = 1e-2, data()
    args = make_args(
        max_steps=2,
        learning_rate=rate,
        lr_scheduler_type="constant",
        per_device_train_batch_size=5,
        gradient_accumulation_steps=2,
    )
    trainer = StreamsByItself(tiny_bert(), args, train_dataset=rows if has_data else None)
    trainer.train()
    model = tiny_bert()
    for samples in (rows[:10], [*rows[10:], *rows[:10]]):
        batch = stack(samples)
        logits = model(input_ids=batch["input_ids"]).logits
        rgd_surrogate(cross_entropy(logits, batch["labels"], reduction="none")).mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= rate * parameter.grad
        model.zero_grad()
    moved = parameters_of(trainer.model) - parameters_of(tiny_bert())
    assert_same_gradient(moved, parameters_of(model) - parameters_of(tiny_bert()))


# --- what is set on the object after it was made -----------------------------------------------------------------------


def doubled(outputs, labels):
    return 2 * cross_entropy(outputs.logits, labels, reduction="none")


@CUTS
def test_a_loss_function_set_later_is_used(cut, make_args):
    trainer = trainer_of(ReweightedTrainer, make_args, "none", cut)
    trainer.per_sample_loss_fn = doubled
    assert_same_gradient(gradient_taken(trainer), 2 * gradient_of("none"))


def test_balanced_class_weights_are_those_of_the_training_set_in_use(make_args):
    few, many = data()[:1] * 3 + data(), data()
    trainer = ReweightedTrainer(tiny_bert(), make_args(), train_dataset=many, class_weights="balanced")
    before = trainer._loss_source().class_weights
    trainer.train_dataset = few
    after = trainer._loss_source().class_weights
    assert not torch.equal(before, after)
    fresh = ReweightedTrainer(tiny_bert(), make_args(), train_dataset=few, class_weights="balanced")
    torch.testing.assert_close(after, fresh._loss_source().class_weights)


def test_a_teacher_without_gradient_is_refused_by_the_name_of_its_method(make_args):
    class Teacher(ReweightedTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            with torch.no_grad():
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    trainer = Teacher(tiny_bert(), make_args(), train_dataset=data())
    with pytest.raises(
        NotImplementedError, match=r"Teacher\.compute_loss asks for the loss without a gradient"
    ):
        trainer.train()


def test_the_error_of_a_step_is_measured():
    """Two gradients that differ by what these faults made of them are told apart."""
    assert relative_error(gradient_of("kl"), gradient_of("none")) > 1e-2
