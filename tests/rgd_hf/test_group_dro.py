"""GroupDRO against a loop that follows the paper, for any cut of a step, with groups that a batch lacks."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.utils.data import SequentialSampler
from transformers import TrainingArguments

from rgd_hf import ReweightedTrainer, rgd_weights
from rgd_hf.items import Items
from rgd_hf.weightings import KL, WEIGHTINGS, Function, GroupDRO
from rgd_hf.weightings.trainer import STATE_NAME
from tests.helpers.processes import run_on
from tests.helpers.tiny import classification_data, parameters_of, relative_error, stack, tiny_bert

GROUPS = 4  # the last one never occurs
BATCH = 8
STEP_SIZE = 0.7
LEARNING_RATE = 0.5
MEMBERS = [0, 1, 2, 1, 1, 1, 1, 1] + [0, 0, 0, 0, 0, 0, 1, 1] + [2, 1, 0, 2, 1, 0, 2, 1] + [1] * 8


class InOrder(ReweightedTrainer):
    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)


def grouped_data():
    data = classification_data(len(MEMBERS))
    for example, group in zip(data, MEMBERS, strict=True):
        example["group"] = group
    return data


def trainer_for(make_args, divergence="none", micro_batches=1, **kwargs):
    args = make_args(
        per_device_train_batch_size=BATCH // micro_batches,
        gradient_accumulation_steps=micro_batches,
        max_steps=len(MEMBERS) // BATCH,
        learning_rate=LEARNING_RATE,
        **kwargs,
    )
    return InOrder(
        tiny_bert(),
        args,
        train_dataset=grouped_data(),
        reweighting=GroupDRO(GROUPS, STEP_SIZE, within=WEIGHTINGS[divergence]()),
    )


def group_weights(trainer):
    return trainer.weighting.state["group_weights"]


def brute_force(divergence):
    model, data = tiny_bert().train(), classification_data(len(MEMBERS))
    weights, seen = torch.full((GROUPS,), 1 / GROUPS), [torch.full((GROUPS,), 1 / GROUPS)]
    for step in range(len(MEMBERS) // BATCH):
        chosen = range(step * BATCH, (step + 1) * BATCH)
        batch = stack([data[i] for i in chosen])
        losses = F.cross_entropy(model(batch["input_ids"]).logits, batch["labels"], reduction="none")
        objective, updated = torch.zeros(()), weights.clone()
        for group in range(GROUPS):
            members = [k for k, i in enumerate(chosen) if MEMBERS[i] == group]
            if members:
                weighted = rgd_weights(losses[members], divergence) * losses[members]
                objective = objective + weights[group] * weighted.mean()
                updated[group] = weights[group] * torch.exp(STEP_SIZE * losses[members].detach().mean())
        model.zero_grad()
        objective.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= LEARNING_RATE * parameter.grad
        weights = updated / updated.sum()
        seen.append(weights)
    return model, seen


@pytest.mark.parametrize("divergence", ["none", "kl"])
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_trajectory_is_that_of_the_algorithm(make_args, divergence, micro_batches):
    trainer = trainer_for(make_args, divergence, micro_batches)
    trainer.train()
    model, weights = brute_force(divergence)
    start = parameters_of(tiny_bert())
    assert relative_error(parameters_of(trainer.model) - start, parameters_of(model) - start) < 1e-4
    assert torch.allclose(group_weights(trainer), weights[-1], atol=1e-5)
    logged = [[entry[f"group_weight_{g}"] for g in range(GROUPS)] for entry in trainer.state.log_history[:-1]]
    assert torch.allclose(torch.tensor(logged), torch.stack(weights[1:]), atol=1e-5)


def test_absent_groups_keep_their_share_and_weigh_nothing(make_args):
    trainer = trainer_for(make_args)
    trainer.train()
    # Groups 2 and 3 are both absent from the second step: their ratio is what the first step made it.
    logs = trainer.state.log_history
    ratios = [logs[step]["group_weight_2"] / logs[step]["group_weight_3"] for step in range(3)]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-5) and ratios[2] > 1.1 * ratios[1]
    assert group_weights(trainer).sum().item() == pytest.approx(1)


def test_equal_groups_with_step_size_zero_are_erm(make_args):
    data = classification_data(16)
    grouped = [{**example, "group": number % 2} for number, example in enumerate(data)]
    plain = InOrder(tiny_bert(), make_args(), train_dataset=data, reweighting="none")
    trainer = InOrder(tiny_bert(), make_args(), train_dataset=grouped, reweighting=GroupDRO(2, 0.0))
    plain.train()
    trainer.train()
    assert relative_error(parameters_of(trainer.model), parameters_of(plain.model)) < 1e-6


def test_resuming_goes_on_with_the_group_weights(make_args, tmp_path):
    whole = trainer_for(make_args, "kl", save_strategy="steps", save_steps=2, output_dir=str(tmp_path / "a"))
    whole.train()
    checkpoint = tmp_path / "a" / "checkpoint-2"
    saved = load_file(checkpoint / STATE_NAME)["group_weights"]
    assert torch.allclose(saved, brute_force("kl")[1][2], atol=1e-5)
    resumed = trainer_for(make_args, "kl", output_dir=str(tmp_path / "b"))
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert torch.allclose(parameters_of(resumed.model), parameters_of(whole.model), atol=1e-6)
    assert torch.allclose(group_weights(resumed), group_weights(whole), atol=1e-6)
    (checkpoint / STATE_NAME).unlink()
    with pytest.raises(ValueError, match="the state of GroupDRO"):
        resumed.train(resume_from_checkpoint=str(checkpoint))


def test_evaluation_ignores_groups(make_args):
    trainer = trainer_for(make_args)
    with_groups = trainer.evaluate(grouped_data())["eval_loss"]
    assert with_groups == pytest.approx(trainer.evaluate(classification_data(len(MEMBERS)))["eval_loss"])


def test_settings_and_batches_that_cannot_work(make_args):
    with pytest.raises(ValueError, match="at least one group"):
        GroupDRO(num_groups=0)
    with pytest.raises(ValueError, match="2 names for num_groups=3"):
        GroupDRO(num_groups=3, names=["a", "b"])
    trainer = InOrder(tiny_bert(), make_args(), train_dataset=classification_data(8), reweighting=GroupDRO(2))
    with pytest.raises(ValueError, match=r"column 'group'.*only input_ids, labels"):
        trainer.train()
    out_of_range = [{**example, "group": 2} for example in classification_data(8)]
    trainer = InOrder(tiny_bert(), make_args(), train_dataset=out_of_range, reweighting=GroupDRO(2))
    with pytest.raises(ValueError, match="the group 2, but num_groups=2 allows the integers from 0 to 1"):
        trainer.train()


def test_a_setting_that_changes_does_not_lose_those_of_the_object(make_args):
    """As a hyperparameter search changes them."""
    rule = GroupDRO(2, within=KL(1.0), names=["a", "b"])
    trainer = InOrder(tiny_bert(), make_args(), train_dataset=grouped_data(), reweighting=rule)
    assert trainer.weighting is rule
    trainer.args.tau = 2.0
    with pytest.raises(
        ValueError, match=r"tau of the arguments changed, .* given as an object with settings"
    ):
        trainer.train()
    whole = InOrder(tiny_bert(), make_args(), train_dataset=grouped_data(), reweighting=KL(1.0))
    whole.args.tau = 2.0
    assert whole.weighting == KL(2.0), "a rule whose settings are all in the arguments is made anew"


def test_an_item_that_does_not_count_may_have_any_weight_within_its_group():
    losses, reference = torch.tensor([0.5, 0.0, 2.0]), torch.tensor([1.0, 0.0, 1.0])
    rule = GroupDRO(1, within=lambda losses: 1 / losses)
    assert isinstance(rule.within, Function)
    rule.reset()
    weights = rule.weights(Items(losses, reference, {"group": torch.zeros(3, dtype=torch.long)}))
    assert (weights * reference).sum().item() == pytest.approx(2.5)


def test_two_processes_take_the_steps_of_one(tmp_path):
    run_on(2, __file__, tmp_path)
    model, weights = brute_force("kl")
    start = parameters_of(tiny_bert())
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert relative_error(found["parameters"] - start, parameters_of(model) - start) < 1e-4
        assert torch.allclose(found["group_weights"], weights[-1], atol=1e-5)


def train_on_this_process(folder):
    """What each of two processes runs: half of every batch."""

    def make(**kwargs):
        return TrainingArguments(output_dir=folder, use_cpu=True, optim="sgd", report_to=[], **kwargs)

    constant = {
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    trainer = trainer_for(make, "kl", micro_batches=1, **constant)
    trainer.args.per_device_train_batch_size = trainer._train_batch_size = BATCH // 2
    trainer.train()
    found = {"parameters": parameters_of(trainer.model), "group_weights": group_weights(trainer)}
    torch.save(found, Path(folder) / f"{trainer.args.process_index}.pt")


if __name__ == "__main__":
    train_on_this_process(sys.argv[1])


@pytest.mark.parametrize("rule", sorted(WEIGHTINGS))
def test_a_rule_with_a_state_within_the_groups_is_refused(rule):
    """Nobody would update it."""
    within = WEIGHTINGS[rule](**({"num_groups": 2} if rule == "group_dro" else {}))
    if within.initial_state():
        with pytest.raises(ValueError, match="keeps a state of its own"):
            GroupDRO(2, within=within)
    else:
        assert GroupDRO(2, within=within).within is within
