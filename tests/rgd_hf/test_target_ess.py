"""The temperature found for a target effective sample size, against what defines it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch.nn import functional as F
from transformers import TrainerCallback

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments, RGDLoss, ess_weights
from tests.helpers.tiny import (
    classification_data,
    gradients_of,
    parameters_of,
    relative_error,
    stack,
    tiny_bert,
)


def effective_sample_size(weights, reference):
    weights, reference = weights.double(), reference.double()
    mass = (weights * reference).sum()
    return (mass**2 / (reference.sum() * (reference * weights**2).sum())).item()


@st.composite
def batches(draw):
    """Losses of very different spreads, and reference weights with some items left out."""
    n = draw(st.integers(3, 60))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    losses = torch.rand(n, generator=generator) ** draw(st.sampled_from([0.2, 1.0, 5.0]))
    reference = torch.rand(n, generator=generator) + 0.5
    reference[2:] *= (torch.rand(n - 2, generator=generator) > 0.2).float()
    return losses * draw(st.sampled_from([1e-3, 1.0, 1e3])), reference


@given(batches(), st.floats(0.05, 0.99))
def test_the_effective_sample_size_is_the_target(batch, target):
    losses, reference = batch
    weights = ess_weights(losses, target, reference)
    counts = reference > 0
    mean = (weights * reference).sum() / reference.sum()
    assert mean.item() == pytest.approx(1, abs=1e-5)
    assert (weights[~counts] == 1).all()
    # However low the temperature, the item with the largest loss keeps its own share.
    reachable = (reference[losses.where(counts, -math.inf).argmax()] / reference.sum()).item()
    if target > reachable * 1.01:
        assert effective_sample_size(weights, reference) == pytest.approx(target, rel=1e-4)
    else:
        assert effective_sample_size(weights, reference) == pytest.approx(reachable, rel=0.02)


@given(batches(), st.floats(0.5, 0.99))
def test_weights_are_exponentials_of_the_losses_at_one_temperature(batch, target):
    losses, _ = batch
    scaled = ((losses - losses.max()) / (losses.max() - losses.min())).double()

    def excess(log_inverse_temperature):
        w = torch.exp(math.exp(log_inverse_temperature) * scaled)
        return effective_sample_size(w, torch.ones_like(w)) - target

    expected = torch.exp(math.exp(brentq(excess, math.log(1e-3), math.log(1e8), xtol=1e-12)) * scaled)
    expected *= len(losses) / expected.sum()
    torch.testing.assert_close(ess_weights(losses, target).double(), expected, rtol=1e-3, atol=1e-4)


@given(batches(), st.sampled_from([0.5, 0.9]), st.sampled_from([0.1, 10.0, 1000.0]), st.floats(-5, 5))
def test_neither_unit_nor_origin_of_the_losses_matters(batch, target, factor, shift):
    losses, reference = batch
    losses = losses.double()
    expected = ess_weights(losses, target, reference)
    torch.testing.assert_close(
        ess_weights(losses * factor, target, reference), expected, rtol=1e-3, atol=1e-3
    )
    spread = (losses.max() - losses.min()).item()
    moved = ess_weights(losses + shift * spread, target, reference)
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-3)


def test_no_weight_exceeds_the_bound_of_its_effective_sample_size():
    """One loss far above 31 equal ones is the worst case, in which the bound is reached."""
    losses = torch.ones(32)
    losses[5] = 1e6
    weights = ess_weights(losses, 0.9)
    assert weights.max().item() == pytest.approx(1 + math.sqrt(31 * (1 / 0.9 - 1)), rel=1e-4)


def test_equal_losses_have_equal_weights():
    assert ess_weights(torch.full((4,), 2.5), 0.5).tolist() == [1.0] * 4
    assert ess_weights(torch.tensor([2.5]), 0.5).tolist() == [1.0]
    assert ess_weights(torch.tensor([1.0, 2.0]), 0.5, torch.zeros(2)).tolist() == [1.0, 1.0]


def test_more_shares_of_the_largest_loss_than_the_target_share_all_weight():
    weights = ess_weights(torch.tensor([3.0, 3.0, 3.0, 1.0]), 0.5)
    assert weights.tolist() == pytest.approx([4 / 3, 4 / 3, 4 / 3, 0.0], abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_has_the_largest_finite_weight(bad):
    weights = ess_weights(torch.tensor([0.2, bad, 1.0, 0.5]), 0.9)
    assert torch.isfinite(weights).all()
    assert weights[1] == weights[2] == weights.max() > weights[3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_are_float32_and_detached(dtype):
    losses = torch.tensor([[0.5, 2.0], [1.0, 0.25]], dtype=dtype, requires_grad=True)
    weights = ess_weights(losses, 0.9)
    assert weights.dtype == torch.float32 and not weights.requires_grad and weights.shape == (2, 2)
    torch.testing.assert_close(weights, ess_weights(losses.detach().float(), 0.9))


@pytest.mark.parametrize("target", [0, 1, -0.5, 1.5, math.nan, "0.9", True])
def test_a_target_that_is_no_fraction_is_refused(target):
    with pytest.raises(ValueError, match="above 0 and below 1"):
        ess_weights(torch.ones(3), target)


# --- in training --------------------------------------------------------------------------------------------------------


def losses_of(model, batch):
    return F.cross_entropy(model(input_ids=batch["input_ids"]).logits, batch["labels"], reduction="none")


class KeepGradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = gradients_of(model).clone()


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_step_is_brute_force_over_its_micro_batches(make_args, accumulation):
    data, keep = classification_data(8 * accumulation), KeepGradients()
    args = make_args(
        ReweightedTrainingArguments,
        max_steps=1,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.0,
        target_ess=0.8,
        train_sampling_strategy="sequential",
    )
    ReweightedTrainer(tiny_bert(), args, train_dataset=data, callbacks=[keep]).train()
    oracle, total = tiny_bert(), 0
    for start in range(0, len(data), 8):
        losses = losses_of(oracle, stack(data[start : start + 8]))
        total = total + (ess_weights(losses, 0.8) * losses).sum()
    (total / len(data)).backward()
    assert relative_error(keep.gradients, gradients_of(oracle)) < 1e-5


def test_multiplying_the_losses_multiplies_nothing_but_the_gradient(make_args):
    data, found = classification_data(8), []
    for factor in (1.0, 10.0):
        trainer = ReweightedTrainer(
            tiny_bert(),
            make_args(),
            per_sample_loss_fn=lambda outputs, labels, factor=factor: (
                factor * F.cross_entropy(outputs.logits, labels, reduction="none")
            ),
            target_ess=0.9,
        )
        trainer.model.train()
        trainer.compute_loss(trainer.model, stack(data)).backward()
        found.append(gradients_of(trainer.model))
    assert relative_error(found[1], 10 * found[0]) < 1e-4


def test_logs_tell_the_target(make_args):
    args = make_args(
        ReweightedTrainingArguments,
        max_steps=3,
        logging_steps=1,
        per_device_train_batch_size=16,
        target_ess=0.9,
    )
    trainer = ReweightedTrainer(tiny_bert(), args, train_dataset=classification_data(64))
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "weight_mean" in entry]
    assert [entry["effective_sample_size"] for entry in logs] == pytest.approx([0.9] * 3, rel=1e-4)
    assert [entry["weight_mean"] for entry in logs] == pytest.approx([1.0] * 3, rel=1e-5)
    assert [entry["clipped_fraction"] for entry in logs] == [0.0] * 3


def test_re_weighting_stops_where_it_was_told_to(make_args):
    data = classification_data(32)
    common = {"max_steps": 4, "logging_steps": 1, "per_device_train_batch_size": 8}
    args = make_args(ReweightedTrainingArguments, **common, target_ess=0.8, reweighting_stop_ratio=0.5)
    trainer = ReweightedTrainer(tiny_bert(), args, train_dataset=data)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "weight_mean" in entry]
    assert [entry["effective_sample_size"] for entry in logs] == pytest.approx([0.8, 0.8, 1, 1], rel=1e-4)
    plain = ReweightedTrainer(tiny_bert(), make_args(**common), train_dataset=data, reweighting="none")
    plain.train()
    assert not torch.equal(parameters_of(trainer.model), parameters_of(plain.model))


def test_the_loss_function_for_the_stock_trainer_has_it_too(make_args):
    model, batch = tiny_bert(), stack(classification_data(8))
    labels = batch.pop("labels")
    loss = RGDLoss(model, target_ess=0.9)(model(**batch), labels)
    losses = losses_of(model, {**batch, "labels": labels})
    torch.testing.assert_close(loss, (ess_weights(losses, 0.9) * losses).mean())


def test_settings_that_cannot_hold_are_refused(make_args):
    with pytest.raises(ValueError, match=r"target_ess.*'chi2'"):
        make_args(ReweightedTrainingArguments, target_ess=0.9, reweighting="chi2")
    with pytest.raises(ValueError, match="raise per_device_train_batch_size"):
        ReweightedTrainer(tiny_bert(), make_args(per_device_train_batch_size=1), target_ess=0.9)
    per_sample = ReweightedTrainer(
        tiny_bert(),
        make_args(per_device_train_batch_size=1),
        target_ess=0.9,
        train_dataset=classification_data(4),
        per_sample_loss_fn=lambda outputs, labels: F.cross_entropy(outputs.logits, labels, reduction="none"),
    )
    with pytest.raises(ValueError, match="only one: raise per_device_train_batch_size"):
        per_sample.train()
    with pytest.raises(ValueError, match="never"):
        make_args(ReweightedTrainingArguments, reweighting_warmup_ratio=0.5, reweighting_stop_ratio=0.5)
