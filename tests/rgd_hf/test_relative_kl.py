"""A rule with state, against a loop by hand: cuts of a step, two processes, resumes, units, logs."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import TrainerCallback

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments
from rgd_hf.items import Items
from rgd_hf.weightings import RelativeKL, Weighting
from rgd_hf.weightings.trainer import STATE_NAME
from tests.helpers.processes import run_on
from tests.helpers.quiet import QUIET
from tests.helpers.tiny import classification_data, parameters_of, relative_error, stack, tiny_bert

BATCH, STEPS, LEARNING_RATE, TAU, DECAY = 8, 5, 0.3, 1.5, 0.6
SAMPLES = BATCH * STEPS


def arguments(folder, micro=BATCH, **kwargs):
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": micro,
        "max_steps": STEPS,
        "learning_rate": LEARNING_RATE,
        "train_sampling_strategy": "sequential",
        "reweighting": "relative_kl",
        "reweighting_args": f"tau={TAU},decay={DECAY}",
    }
    return ReweightedTrainingArguments(**(QUIET | settings | kwargs))


def brute_force(unit=1.0):
    """Parameters after every step, and the scale that each step is weighted with."""
    model, data, scales, parameters = tiny_bert().train(), classification_data(SAMPLES), [], []
    average, total = 0.0, 0.0
    for step in range(STEPS):
        batch = stack(data[step * BATCH : (step + 1) * BATCH])
        losses = unit * F.cross_entropy(model(batch["input_ids"]).logits, batch["labels"], reduction="none")
        scales.append(average / total if total else math.inf)
        weights = torch.exp((losses.detach() / scales[-1]).clamp(max=TAU) / (TAU + 1))
        model.zero_grad()
        (weights * losses).mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= LEARNING_RATE / unit * parameter.grad
        average = DECAY * average + (1 - DECAY) * losses.mean().item()
        total = DECAY * total + (1 - DECAY)
        parameters.append(parameters_of(model))
    return parameters, [*scales[1:], average / total]


def check(found, scales):
    parameters, expected = brute_force()
    start = parameters_of(tiny_bert())
    assert relative_error(found - start, parameters[-1] - start) < 1e-4
    assert scales == pytest.approx(expected, rel=1e-4)


def scales_of(trainer):
    return [log["loss_scale"] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_step_is_the_same_however_it_is_cut(tmp_path, accumulation):
    args = arguments(tmp_path, BATCH // accumulation, gradient_accumulation_steps=accumulation)
    trainer = ReweightedTrainer(tiny_bert(), args, train_dataset=classification_data(SAMPLES))
    trainer.train()
    check(parameters_of(trainer.model), scales_of(trainer))


class StopAfter(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 3


def test_resumed_is_as_never_interrupted(tmp_path):
    args = arguments(tmp_path, 4, gradient_accumulation_steps=2, save_strategy="steps", save_steps=2)
    data = classification_data(SAMPLES)
    first = ReweightedTrainer(tiny_bert(), args, train_dataset=data, callbacks=[StopAfter()])
    first.train()
    state = load_file(tmp_path / "checkpoint-2" / STATE_NAME)
    assert (state["mean_loss"] / state["weight"]).item() == pytest.approx(brute_force()[1][1], rel=1e-4)
    rule = RelativeKL(TAU, DECAY)
    args = arguments(tmp_path, 4, gradient_accumulation_steps=2, reweighting="kl", reweighting_args=None)
    second = ReweightedTrainer(tiny_bert(seed=9), args, train_dataset=data, reweighting=rule)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    check(parameters_of(second.model), scales_of(second))
    second.train()  # a new training begins without what the last one left
    assert scales_of(second)[0] == pytest.approx(second.state.log_history[0]["unweighted_loss"], rel=1e-5)


def test_a_checkpoint_of_another_rule_is_refused(tmp_path):
    data = classification_data(SAMPLES)
    saving = {"save_strategy": "steps", "save_steps": 5}
    args = arguments(tmp_path, reweighting="kl", reweighting_args=None, **saving)
    ReweightedTrainer(tiny_bert(), args, train_dataset=data).train()
    trainer = ReweightedTrainer(tiny_bert(), arguments(tmp_path), train_dataset=data)
    with pytest.raises(ValueError, match=r"no weighting\.safetensors, the state of RGD .*another rule"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


def test_the_unit_of_the_losses_changes_no_weight():
    rules = [RelativeKL(TAU, DECAY), RelativeKL(TAU, DECAY)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        losses = torch.rand(6, generator=generator) * 3
        found = []
        for rule, unit in zip(rules, (1.0, 1000.0), strict=True):
            items = Items(unit * losses, torch.ones(6))
            found.append(rule.weights(items))
            rule.update(rule.sums(items))
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    assert found[0].min() < found[0].max()


def test_a_loss_that_is_not_finite_leaves_the_scale_alone():
    rule, items = RelativeKL(TAU, DECAY), Items(torch.tensor([1.0, 2.0]), torch.ones(2))
    assert rule.weights(items).tolist() == [1.0, 1.0] and rule.logs() == {}
    rule.update(rule.sums(items))
    for bad in (Items(torch.tensor([math.nan, 1.0]), torch.ones(2)), Items(torch.zeros(2), torch.zeros(2))):
        assert torch.isfinite(rule.weights(bad)).all()
        rule.update(rule.sums(bad))
        assert rule.scale().item() == pytest.approx(1.5)


def test_two_processes_take_the_steps_of_one(tmp_path):
    run_on(2, __file__, tmp_path)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        check(found["parameters"], found["scales"])


def train_on_this_process(folder):
    """What each of two processes runs: half of every batch, in two micro-batches."""
    args = arguments(folder, BATCH // 4, gradient_accumulation_steps=2)
    trainer = ReweightedTrainer(tiny_bert(), args, train_dataset=classification_data(SAMPLES))
    trainer.train()
    found = {"parameters": parameters_of(trainer.model), "scales": scales_of(trainer)}
    torch.save(found, Path(folder) / f"{args.process_index}.pt")


if __name__ == "__main__":
    train_on_this_process(sys.argv[1])


@dataclass
class LastAndBest(Weighting):
    """After its first step its state has one tensor under two names."""

    def initial_state(self):
        return {"last": torch.tensor(math.inf), "best": torch.tensor(math.inf)}

    def weights(self, items):
        return torch.where(items.losses > self.state["best"], 2.0, 1.0)

    def sums(self, items):
        return torch.stack([(items.reference * items.losses).sum(), items.reference.sum()])

    def update(self, sums):
        mean = sums[0] / sums[1]
        self.state["best"] = mean if self.steps == 0 else torch.minimum(self.state["best"], mean)
        self.state["last"] = mean
        self.steps += 1

    steps = 0


def test_one_tensor_may_stand_for_two_parts_of_a_state(tmp_path):
    args = arguments(
        tmp_path, reweighting="none", reweighting_args=None, save_strategy="steps", save_steps=1, max_steps=1
    )
    trainer = ReweightedTrainer(
        model=tiny_bert(), args=args, train_dataset=classification_data(8), reweighting=LastAndBest()
    )
    trainer.train()
    assert trainer.weighting.state["last"] is trainer.weighting.state["best"]
    saved = load_file(str(tmp_path / "checkpoint-1" / STATE_NAME))
    assert saved["last"] == saved["best"] == trainer.weighting.state["last"]
