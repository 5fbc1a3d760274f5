"""Losses that are negative, as those of densities, or all the same: what the rules and functions make of them."""

import math

import pytest
import torch
from torch.nn import functional as F

from rgd_hf import ReweightedTrainer
from rgd_hf.items import Items
from rgd_hf.weightings import KL, WEIGHTINGS, Chi2, CVaR, Focal, Function, RelativeKL, ReverseKL
from tests.helpers.tiny import classification_data, parameters_of, tiny_bert

ROWS = classification_data(16)


def likelihoods(outputs, labels):
    """Cross-entropies of a unit in which all are negative."""
    return F.cross_entropy(outputs.logits, labels, reduction="none") - 20


# --- relative_kl ----------------------------------------------------------------------------------------------------


def weights_over_steps(losses, **settings):
    rule, found = RelativeKL(**settings), []
    for step in losses:
        items = Items(step, torch.ones(len(step)))
        found.append(rule.weights(items))
        rule.update(rule.sums(items))
    return found


@pytest.mark.parametrize("shift", [0.0, -1.5, -20.0], ids=["positive", "of both signs", "negative"])
def test_the_unit_is_the_running_mean_of_the_losses_sizes(shift):
    losses = torch.rand(5, 6, generator=torch.Generator().manual_seed(0)) * 3 + shift
    found = weights_over_steps(losses, tau=1.5, decay=0.6)
    average = total = 0.0
    for step, weights in zip(losses, found, strict=True):
        scale = average / total if total else math.inf
        torch.testing.assert_close(weights, torch.exp((step / scale).clamp(max=1.5) / 2.5))
        average, total = 0.6 * average + 0.4 * step.abs().mean().item(), 0.6 * total + 0.4


def test_all_weights_are_one_while_no_loss_has_had_a_size():
    for weights in weights_over_steps(torch.tensor([[0.0, 0.0], [0.0, 0.0], [-1.0, 2.0]])):
        assert weights.tolist() == [1.0, 1.0]


def test_a_state_that_was_saved_with_a_negative_mean_does_not_stop_the_training():
    rule = RelativeKL()
    rule.load_state_dict({"mean_loss": torch.tensor(-0.5), "weight": torch.tensor(0.1)})
    items = Items(torch.tensor([-5.0, -6.0]), torch.ones(2))
    assert rule.weights(items).tolist() == [1.0, 1.0]


def test_negative_losses_are_trained_on(make_args):
    """The steps of losses that are one constant lower, with the weights of the formula."""
    args = make_args(max_steps=4, learning_rate=0.1, logging_steps=1, train_sampling_strategy="sequential")
    model = tiny_bert()
    start = parameters_of(model)
    trainer = ReweightedTrainer(
        model, args, train_dataset=ROWS, per_sample_loss_fn=likelihoods, reweighting="relative_kl"
    )
    trainer.train()
    means = [log["weight_mean"] for log in trainer.state.log_history if "weight_mean" in log]
    assert means[0] == 1.0 and means[1:] == pytest.approx([math.exp(-1 / 3)] * 3, rel=0.05)
    assert (parameters_of(model) - start).norm() > 1e-2


# --- every rule -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(WEIGHTINGS) - {"group_dro"}))
def test_weights_of_negative_losses_are_weights_and_those_of_others_within_the_bounds(name):
    losses = torch.tensor([-300.0, -20.0, -1.0, -1e-3, 0.0, 0.5, 3.0, 1e3])
    rule, bounds = WEIGHTINGS[name](), WEIGHTINGS[name]().bounds()
    rule.update(torch.tensor([2.0, 1.0]))
    weights = rule.weights(Items(losses, torch.ones(8)))
    assert torch.isfinite(weights).all() and (weights >= 0).all()
    if name != "lin_upper":  # which rises up to the middle alone
        assert (weights.diff() >= -1e-6).all() or name == "focal"
    if bounds is not None:
        assert bounds[0] - 1e-6 <= weights[4:].min() and weights.max() <= bounds[1] + 1e-6


@pytest.mark.parametrize("rule", [KL(), Chi2(), ReverseKL(), Focal()], ids=lambda rule: rule.name)
def test_a_rule_whose_weights_vanish_says_so_and_its_remedies_train(rule, make_args):
    def train(**settings):
        args = make_args(
            max_steps=2, learning_rate=0.1, logging_steps=1, train_sampling_strategy="sequential"
        )
        trainer = ReweightedTrainer(
            tiny_bert(), args, train_dataset=ROWS, per_sample_loss_fn=likelihoods, **settings
        )
        trainer.train()
        return trainer.state.log_history[1]["weight_mean"]

    with pytest.warns(
        UserWarning, match=r"Set reweighting='kl' and target_ess=0\.9, .*reweighting='relative_kl'"
    ):
        assert train(reweighting=rule) < 0.1
    assert train(reweighting="kl", target_ess=0.9) == pytest.approx(1.0)
    assert train(reweighting="relative_kl") > 0.5
    assert rule.advice({"unweighted_loss": 0.1}) is None


def test_rules_of_mean_one_need_no_advice():
    assert CVaR().advice({"unweighted_loss": -1.0}) is None


# --- functions ------------------------------------------------------------------------------------------------------


def relative(losses):
    return losses / losses.mean()


@pytest.mark.parametrize("nearly", [0.0, 1e-5])
def test_a_function_that_compares_is_known_by_a_batch_whose_losses_differ(nearly):
    """A classifier of zeros gives every item log(classes), but for rounding."""
    rule, reference = Function(relative), torch.tensor([1.0, 1.0, 0.0, 0.0])
    equal = math.log(3) * torch.tensor([1.0, 1.0 + nearly, 0.0, 0.0])
    for losses in (equal, torch.tensor([1.0, 3.0, 0.0, 0.0])):
        found = rule.weights(Items(losses, reference))
        torch.testing.assert_close(found[:2], relative(losses[:2]))
        assert found[2:].tolist() == [1.0, 1.0]
