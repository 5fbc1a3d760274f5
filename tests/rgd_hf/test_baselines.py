"""Weights of the baselines, against the gradient of the objective that each stands for."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments
from rgd_hf.weightings.cvar import cvar_weights
from rgd_hf.weightings.focal import focal_weights
from rgd_hf.weightings.tilted import tilted_weights
from tests.helpers.tiny import classification_data, gradients_of, relative_error, stack, tiny_bert


def batch_of(seed, n=12):
    generator = torch.Generator().manual_seed(seed)
    reference = (torch.rand(n, generator=generator) > 0.25) * (torch.rand(n, generator=generator) + 0.5)
    reference[0] = 1.0
    return torch.randn(n, generator=generator).exp(), reference


@given(st.integers(0, 999), st.sampled_from([0.5, 1.0, 2.0, 5.0]))
def test_focal_weights_are_the_derivative_of_the_focal_loss(seed, gamma):
    losses = batch_of(seed)[0].double().requires_grad_()
    focal = (1 - torch.exp(-losses)) ** gamma * losses
    (expected,) = torch.autograd.grad(focal.sum(), losses)
    torch.testing.assert_close(focal_weights(losses, gamma).double(), expected, rtol=1e-4, atol=1e-6)


def test_focal_weights_at_the_ends():
    found = focal_weights(torch.tensor([0.0, 1e-30, 200.0, math.inf, math.nan, -1.0]), 2.0)
    assert found.tolist() == pytest.approx([0.0, 0.0, 1.0, 1.0, 1.0, 0.0])


@given(st.integers(0, 999), st.sampled_from([0.1, 1.0, 3.0]))
def test_tilted_weights_are_the_derivative_of_the_tilted_loss(seed, tilt):
    losses, reference = batch_of(seed)
    losses = losses.double().requires_grad_()
    share = reference.double() / reference.sum()
    (share * torch.exp(tilt * losses)).sum().log().div(tilt).backward()
    found = tilted_weights(losses, reference, tilt)
    torch.testing.assert_close((found * share).double(), losses.grad, rtol=1e-4, atol=1e-6)


def test_tilted_weights_do_not_overflow():
    weights = tilted_weights(torch.tensor([1e5, 1.0, math.nan]), torch.ones(3), 10.0)
    assert weights.tolist() == pytest.approx([1.5, 0.0, 1.5])


@given(st.integers(0, 999), st.floats(0.05, 1.0))
def test_cvar_is_the_largest_mean_that_bounded_weights_can_have(seed, fraction):
    """Its dual: `max sum(q * loss)` over distributions q with `q <= p / fraction`, against a linear program."""
    from scipy.optimize import linprog

    losses, reference = batch_of(seed)
    share = (reference / reference.sum()).double()
    bounds = [(0, p / fraction) for p in share.tolist()]
    best = linprog(-losses.double().numpy(), A_eq=[[1.0] * len(losses)], b_eq=[1.0], bounds=bounds)
    weights = cvar_weights(losses, reference, fraction).double()
    assert (weights * share).sum().item() == pytest.approx(1, abs=1e-5)
    assert (weights * share * losses).sum().item() == pytest.approx(-best.fun, rel=1e-5)
    assert weights[reference > 0].max().item() <= 1 / fraction + 1e-5


def test_cvar_of_one_half_trains_on_the_larger_half():
    weights = cvar_weights(torch.tensor([[1.0, 5.0], [3.0, 2.0]]), torch.ones(2, 2), 0.5)
    assert weights.tolist() == [[0.0, 2.0], [2.0, 0.0]]
    assert cvar_weights(torch.tensor([1.0, math.nan]), torch.ones(2), 0.5).tolist() == [0.0, 2.0]


def focal(losses):
    return ((1 - torch.exp(-losses)) ** 2 * losses).mean()


def tilted(losses):
    return torch.logsumexp(losses, 0) - math.log(len(losses))


def top_half(losses):
    return losses.topk(len(losses) // 2).values.mean()


@pytest.mark.parametrize(("name", "objective"), [("focal", focal), ("tilted", tilted), ("cvar", top_half)])
def test_the_trainers_gradient_is_that_of_the_objective(make_args, name, objective):
    data = classification_data(8)
    trainer = ReweightedTrainer(tiny_bert(), make_args(), reweighting=name)
    trainer.model.train()
    trainer.compute_loss(trainer.model, stack(data)).backward()
    oracle, batch = tiny_bert(), stack(data)
    objective(
        F.cross_entropy(oracle(input_ids=batch["input_ids"]).logits, batch["labels"], reduction="none")
    ).backward()
    assert relative_error(gradients_of(trainer.model), gradients_of(oracle)) < 1e-5


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("focal_gamma", 0.0, "focal_gamma must be a positive"),
        ("tilt", math.inf, "tilt must be a positive"),
        ("cvar_fraction", 1.5, "above 0 and at most 1"),
        ("reweighting", "cvr", "'cvar', 'tilted'"),
    ],
)
def test_values_that_are_not_allowed_are_named(make_args, setting, value, said):
    with pytest.raises(ValueError, match=said):
        make_args(ReweightedTrainingArguments, **{setting: value})
