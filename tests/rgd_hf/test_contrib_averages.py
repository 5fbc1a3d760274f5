"""SWAD and EMA against their definitions, on the library's Trainer and on the stock one, resumed at any step."""

import math
import warnings

import numpy as np
import pytest
import torch
from transformers import Trainer

from rgd_hf import ReweightedTrainer
from rgd_hf.contrib import EMAMixin, LossValley, SetupError, SWADMixin, WeightAverage, swad
from rgd_hf.hub.scores import last_scores
from tests.helpers.averages import SWADTrainer, loss_of, trainer_of
from tests.helpers.weights_kept import Keep


class EMATrainer(EMAMixin, Trainer):
    pass


def assert_same_weights(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def mean_of(states):
    return {
        name: torch.stack([state[name] for state in states]).mean(0)
        if value.is_floating_point()
        else states[-1][name]
        for name, value in states[0].items()
    }


# --- SWAD -----------------------------------------------------------------------------------------------------------


def paper_rule(losses, tolerance):
    """Algorithm 1 of SWAD, evaluation by evaluation, on the whole list: the segments of the average.

    Losses that are not finite, of which it does not speak, are infinite ones whose segments are left out.
    """
    losses = [loss if math.isfinite(loss) else math.inf for loss in losses]
    start, end, threshold = None, len(losses) - 1, None
    for i in range(len(losses)):
        if start is None:
            window = losses[i - swad.PATIENCE_TO_START + 1 : i + 1]
            if i + 1 >= swad.PATIENCE_TO_START and window[0] == min(window) and max(window) < math.inf:
                start = i - swad.PATIENCE_TO_START + 1
                threshold = tolerance * sum(window) / swad.PATIENCE_TO_START
        elif i - swad.PATIENCE_TO_END + 1 >= start and threshold < min(
            losses[i - swad.PATIENCE_TO_END + 1 : i + 1]
        ):
            end = i - swad.PATIENCE_TO_END
            break
    if start is None:
        return list(range(len(losses)))[-1:]
    return [i for i in range(start, end + 1) if losses[i] < math.inf]


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
@pytest.mark.parametrize("seed", range(40))
def test_loss_valley_is_the_paper_rule(seed, bad):
    random = np.random.RandomState(seed)
    steps = np.arange(random.randint(1, 40))
    losses = (
        np.abs(steps - random.randint(1, 20)) * random.rand() * 0.2 + random.rand(len(steps)) * 0.5
    ).tolist()
    if bad is not None:
        losses = [
            bad if random.rand() < 0.1 or i > random.randint(1, 60) else loss for i, loss in enumerate(losses)
        ]
    valley, taken = LossValley(1.2), []
    for number, loss in enumerate(losses):
        taken += valley.add(loss, number)
    taken += valley.finish()
    assert taken == paper_rule(losses, 1.2)


def test_falling_losses_have_no_valley_and_leave_the_last_segment():
    valley = LossValley(1.3)
    assert [valley.add(10.0 - n, n) for n in range(9)] == [[]] * 9 and valley.finish() == [8]
    assert LossValley(1.3).finish() == []


def test_weight_average_weighs_segments_by_their_steps():
    values = torch.randn(7, 3)
    whole, first, second = WeightAverage(), WeightAverage(), WeightAverage()
    for number, value in enumerate(values):
        (first if number < 2 else second).add({"w": value, "n": torch.tensor(number)})
    for part in (first, second):
        whole.add(part.mean, part.count)
    assert torch.allclose(whole.mean["w"], values.mean(0), atol=1e-6) and whole.mean["n"] == 6


def swad_with(losses, tmp_path, **settings):
    """A trainer whose evaluations give these losses, and the weights after each of its steps."""
    trainer, keep, found = trainer_of(SWADTrainer, tmp_path, {}, **settings), Keep(), iter(losses)
    trainer.validation_loss = lambda metrics: next(found)
    trainer.add_callback(keep)
    return trainer, keep


def test_swad_ends_with_the_mean_of_the_steps_in_its_valley(tmp_path):
    trainer, keep = swad_with([2.0, 1.0, 1.1, 1.2, 1.1], tmp_path)  # it starts with the second
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="SWAD")
        trainer.train()
    assert trainer.swad_average.count == 8
    assert_same_weights(trainer.model.state_dict(), mean_of(keep.seen[2:]))


def test_swad_ends_before_the_losses_that_are_too_high(tmp_path):
    losses = [1.0, 1.1, 1.2, 1.3, *[9.0] * 6, 1.0, 1.0]
    trainer, keep = swad_with(losses, tmp_path, max_steps=24)
    trainer.train()
    assert trainer.swad_average.count == 8
    assert_same_weights(trainer.model.state_dict(), mean_of(keep.seen[:8]))


def test_swad_without_a_valley_has_the_mean_of_the_last_segment_and_says_so(tmp_path):
    trainer, keep = swad_with([5.0, 4.0, 3.0, 2.0, 1.0], tmp_path)
    with pytest.warns(UserWarning, match=r"no end of fitting in 5 evaluations.* the last 2 steps alone"):
        output = trainer.train()
    assert trainer.swad_average.count == output.metrics["swad_steps"] == 2
    assert_same_weights(trainer.model.state_dict(), mean_of(keep.seen[-2:]))


def test_swad_that_evaluates_too_late_keeps_the_last_weights_and_says_so(tmp_path):
    trainer, keep = swad_with([], tmp_path, eval_delay=99)
    with pytest.warns(UserWarning, match="in 0 evaluations.* has its last weights"):
        trainer.train()
    assert_same_weights(trainer.model.state_dict(), keep.seen[-1])


@pytest.mark.parametrize("step", [4, 6, 16, 22])
def test_swad_resumes_before_in_and_after_its_valley(step, tmp_path):
    losses = [2.0, 1.0, 1.1, 1.2, 1.3, *[9.0] * 6, 1.0]
    whole, _ = swad_with(losses, tmp_path, max_steps=24, save_strategy="steps", save_steps=2)
    whole.train()
    resumed, _ = swad_with(losses[step // 2 :], tmp_path, max_steps=24, save_strategy="no")
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert resumed.swad_average.count == whole.swad_average.count > 0
    assert_same_weights(resumed.model.state_dict(), whole.model.state_dict())


def test_swad_goes_by_the_mean_loss_of_several_evaluation_sets(tmp_path):
    trainer = trainer_of(SWADTrainer, tmp_path, {})
    assert trainer.validation_loss({"eval_loss": 3.0, "eval_a_loss": 1.0}) == 3.0
    trainer.eval_dataset = dict.fromkeys("ab", trainer.eval_dataset)
    losses = {"eval_a_loss": 1.0, "eval_b_loss": 2.0}
    assert trainer.validation_loss({**losses, "eval_a_accuracy": 9.0, "eval_a_hinge_loss": 9.0}) == 1.5
    with pytest.raises(SetupError, match="evaluation gave none, only eval_hinge_loss"):
        trainer.validation_loss({"eval_hinge_loss": 9.0})


@pytest.mark.parametrize("losses", [[2.0, 1.0, 1.1, 1.2, 1.1], [1.0, 1.0, 1.0, math.nan, math.nan]])
def test_swad_ends_with_one_evaluation_of_its_average(losses, tmp_path):
    """It is what the card reports; the weights stay as precise as they were."""
    trainer, keep = swad_with(losses, tmp_path, bf16_full_eval=True)
    trainer.train()
    after = trainer.state.log_history[-1]
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 6 and evaluated[-1] is after
    assert after["eval_loss"] == pytest.approx(loss_of(trainer), rel=1e-5) != evaluated[-2]["eval_loss"]
    assert [score.value for score in last_scores(trainer)] == [after["eval_loss"]]
    assert_same_weights(
        trainer.model.state_dict(), mean_of(keep.seen[2:] if losses[0] == 2.0 else keep.seen[:6])
    )


# --- EMA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [False, True])
def test_ema_is_the_recurrence(warmup, tmp_path):
    trainer, keep = trainer_of(EMATrainer, tmp_path, {"ema_decay": 0.8, "ema_warmup": warmup}), Keep()
    trainer.add_callback(keep)
    trainer.train()
    expected = keep.seen[0]
    for step, state in enumerate(keep.seen[1:], start=1):
        d = min(0.8, 1 - (1 + step) ** (-2 / 3)) if warmup else 0.8
        expected = {
            name: d * value + (1 - d) * state[name] if value.is_floating_point() else state[name]
            for name, value in expected.items()
        }
    with trainer.averaged():
        assert_same_weights(trainer.model.state_dict(), expected)
    assert_same_weights(trainer.model.state_dict(), keep.seen[-1])
    trainer.save_model(str(tmp_path / "saved"))
    assert_same_weights(type(trainer.model).from_pretrained(tmp_path / "saved").state_dict(), expected)


def test_ema_leaves_whole_numbers_as_they_are(tmp_path):
    trainer = trainer_of(EMATrainer, tmp_path, {"ema_decay": 0.9}, max_steps=3)
    before = {n: b.clone() for n, b in trainer.model.named_buffers() if not b.is_floating_point()}
    trainer.train()
    assert before and all(
        torch.equal(dict(trainer.ema.module.named_buffers())[n], b) for n, b in before.items()
    )


def test_ema_reports_both_weights(tmp_path):
    trainer = trainer_of(EMATrainer, tmp_path, {"ema_decay": 0.99}, max_steps=6)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] != metrics["eval_last_loss"]
    with trainer.averaged():
        logits = trainer.model(input_ids=torch.stack([d["input_ids"] for d in trainer.eval_dataset])).logits
    labels = torch.stack([d["labels"] for d in trainer.eval_dataset])
    assert metrics["eval_loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5
    )


def test_ema_resumes(tmp_path):
    keywords = {"ema_decay": 0.9, "ema_warmup": True}
    whole = trainer_of(EMATrainer, tmp_path, keywords, save_strategy="steps", save_steps=4)
    whole.train()
    resumed = trainer_of(EMATrainer, tmp_path, keywords)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_same_weights(resumed.ema.module.state_dict(), whole.ema.module.state_dict())
    assert_same_weights(resumed.model.state_dict(), whole.model.state_dict())


# --- where an average begins ----------------------------------------------------------------------------------------


class DoesNotFit(Keep):
    """The device runs out of memory in the fifth step, once."""

    failed = False

    def on_step_begin(self, *args, **kwargs):
        if len(self.seen) == 4 and not self.failed:
            self.seen, self.failed = [], True
            raise RuntimeError("CUDA out of memory.")


@pytest.mark.parametrize("keep", [Keep, DoesNotFit])
def test_swad_begins_with_every_training_and_with_a_batch_size_that_fits(keep, tmp_path):
    trainer = trainer_of(SWADTrainer, tmp_path, {}, max_steps=6, eval_steps=1, auto_find_batch_size=True)
    trainer.validation_loss = lambda metrics: 1.0
    for _ in range(2):
        seen = keep()
        trainer.add_callback(seen)
        trainer.train()
        trainer.remove_callback(seen)
        assert trainer.swad_average.count == len(seen.seen) == 6
        assert_same_weights(trainer.model.state_dict(), mean_of(seen.seen))


# --- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cls,keywords,settings,message",
    [
        (SWADTrainer, {"swad_tolerance": 0.9}, {}, "swad_tolerance must be at least 1, not 0.9"),
        (SWADTrainer, {}, {"eval_strategy": "no"}, "set eval_strategy='steps'"),
        (
            SWADTrainer,
            {},
            {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 2},
            "discard",
        ),
        (EMATrainer, {"ema_decay": 1.0}, {}, "ema_decay must lie between 0 and 1, not 1"),
        (
            EMATrainer,
            {"ema_decay": 0.9},
            {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 2},
            "discard the averaged weights",
        ),
    ],
)
def test_settings_that_are_refused(cls, keywords, settings, message, tmp_path):
    with pytest.raises(SetupError, match=message):
        trainer_of(cls, tmp_path, keywords, **settings)


@pytest.mark.parametrize("mixins", [(EMAMixin, SWADMixin), (SWADMixin, EMAMixin)])
def test_a_training_has_one_average(mixins, tmp_path):
    both = type("Both", (*mixins, ReweightedTrainer), {})
    with pytest.raises(
        SetupError, match=r"Both has two averages.*SWAD.*EMA.*leave out SWADMixin or ema_decay"
    ):
        trainer_of(both, tmp_path, {"ema_decay": 0.9})
    trainer, keep = trainer_of(both, tmp_path, {}), Keep()
    trainer.add_callback(keep)
    losses = iter([1.0, 2.0, 3.0, 2.0, 2.0])
    trainer.validation_loss = lambda metrics: next(losses)
    trainer.train()
    assert_same_weights(trainer.model.state_dict(), mean_of(keep.seen))


def test_swad_explains_what_an_evaluation_without_a_loss_lacks(tmp_path):
    trainer = trainer_of(SWADTrainer, tmp_path, {})
    rows = trainer.eval_dataset
    trainer.eval_dataset = [{"input_ids": row["input_ids"]} for row in rows]
    with pytest.raises(SetupError, match=r"evaluation gave none, only .*eval_runtime.*has labels.*'labels'"):
        trainer.train()
    trainer.validation_loss = lambda metrics: 1.0
    trainer.train()
    del trainer.validation_loss
    trainer.eval_dataset = rows
    trainer.train()
    assert trainer.swad_valley.count == 5


@pytest.mark.parametrize("cls,keywords", [(SWADTrainer, {}), (EMATrainer, {"ema_decay": 0.9})])
def test_a_checkpoint_without_averages_is_refused(cls, keywords, tmp_path):
    trainer_of(Trainer, tmp_path, {}, max_steps=2, save_strategy="steps", save_steps=2).train()
    with pytest.raises(SetupError, match=r"checkpoint-2 has no \w+\.safetensors: it was written without"):
        trainer_of(cls, tmp_path, keywords).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("mixin", [SWADMixin, EMAMixin])
def test_the_wrong_side_of_the_trainer_is_refused(mixin):
    with pytest.raises(TypeError, match=f"{mixin.__name__} must be listed before"):
        type("Wrong", (Trainer, mixin), {})
