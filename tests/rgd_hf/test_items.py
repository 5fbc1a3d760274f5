import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from rgd_hf import ReweightedTrainer
from rgd_hf.items import Items, losses_at_level, reference_at_level, token_reference, zero_uncounted
from rgd_hf.training_args import ReweightingArguments
from rgd_hf.weightings.choice import weighting_of
from tests.helpers.tiny import (
    classification_data,
    gradients_of,
    parameters_of,
    relative_error,
    stack,
    tiny_bert,
)


@st.composite
def token_losses(draw):
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    valid = torch.tensor(
        draw(
            st.lists(
                st.lists(st.booleans(), min_size=columns, max_size=columns), min_size=rows, max_size=rows
            )
        )
    )
    return torch.rand(
        rows, columns, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))
    ) * 3, valid


@given(token_losses())
def test_sample_level_is_the_mean_over_valid_tokens(case):
    losses, valid = case
    expected = [row[mask].mean().item() if mask.any() else 0.0 for row, mask in zip(losses, valid)]
    found = losses_at_level(losses, token_reference(valid), "sample")
    assert found.tolist() == pytest.approx(expected)
    assert reference_at_level(token_reference(valid), "sample").tolist() == [
        float(mask.any()) for mask in valid
    ]


@given(token_losses())
def test_token_level_keeps_every_valid_token(case):
    losses, valid = case
    counted = zero_uncounted(losses, token_reference(valid))
    torch.testing.assert_close(losses_at_level(counted, token_reference(valid), "token"), losses * valid)
    torch.testing.assert_close(reference_at_level(token_reference(valid), "token"), valid.float())


def test_an_infinite_ignored_item_leaves_no_trace():
    losses = torch.tensor([[1.0, math.inf], [2.0, 4.0]])
    reference = token_reference(torch.tensor([[True, False], [True, True]]))
    losses = zero_uncounted(losses, reference)
    assert losses_at_level(losses, reference, "sample").tolist() == [1.0, 3.0]
    assert losses_at_level(losses, reference, "token").tolist() == [[1.0, 0.0], [2.0, 4.0]]


@pytest.mark.parametrize("level", ["sample", "token"])
def test_sample_weight_reaches_every_item_of_its_sample(level):
    valid = torch.tensor([[True, True], [True, False]])
    found = reference_at_level(token_reference(valid), level, torch.tensor([2.0, 0.5]))
    assert found.tolist() == ([2.0, 0.5] if level == "sample" else [[2.0, 2.0], [0.5, 0.0]])


def test_class_weights_make_a_weighted_mean_inside_a_sample():
    losses = torch.tensor([[1.0, 4.0], [2.0, 9.0]])
    valid = torch.tensor([[True, True], [True, False]])
    reference = token_reference(valid, torch.tensor([[1.0, 2.0], [0.5, 1.0]]))
    assert reference.tolist() == [[1.0, 2.0], [0.5, 0.0]]
    assert losses_at_level(losses, reference, "sample").tolist() == pytest.approx([3.0, 2.0])
    assert reference_at_level(reference, "sample").tolist() == [1.0, 1.0]


def test_a_sample_weight_of_the_wrong_length_is_named():
    with pytest.raises(ValueError, match=r"3 elements for losses of shape \[2\]"):
        reference_at_level(torch.ones(2), "sample", torch.ones(3))


@pytest.mark.parametrize(
    "settings",
    [{"target_ess": 0.8}, {"reweighting": "tilted"}, {"reweighting": "cvar"}, {"reweighting": "kl"}],
    ids=str,
)
def test_items_that_do_not_count_leave_the_weights_of_the_others_alone(settings):
    losses, reference = torch.tensor([0.5, 9.0, 1.0, 2.0, 8.0]), torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0])
    rule = weighting_of(ReweightingArguments(**settings))
    weights = rule.weights(Items(losses, reference))
    counted = reference > 0
    alone = rule.weights(Items(losses[counted], reference[counted]))
    torch.testing.assert_close(weights[counted], alone)


WAYS = {
    "a mask": {"per_sample_loss_fn": lambda outputs, labels: (cross_entropy(outputs, labels), labels != 2)},
    "a class of weight 0": {"class_weights": [1.0, 1.0, 0.0]},
    "samples of weight 0": {},
}


def cross_entropy(outputs, labels):
    return functional.cross_entropy(outputs.logits, labels, reduction="none")


@pytest.mark.parametrize("reweighting", ["kl", "tilted", "none"])
@pytest.mark.parametrize("way", WAYS)
def test_an_infinite_loss_that_does_not_count_leaves_no_trace_in_the_step(way, reweighting, make_args):
    model, batch = tiny_bert(), stack(classification_data(12))
    with torch.no_grad():
        model.classifier.bias[2] = -math.inf
    counted = batch["labels"] != 2
    assert 0 < counted.sum() < len(counted) and cross_entropy(model(**batch), batch["labels"]).isinf().any()
    found = []
    for some in (batch, {name: column[counted] for name, column in batch.items()}):
        if way == "samples of weight 0":
            some = {**some, "sample_weight": (some["labels"] != 2).float()}
        trainer = ReweightedTrainer(model, make_args(), reweighting=reweighting, **WAYS[way])
        model.zero_grad()
        loss = trainer.compute_loss(model, some)
        loss.backward()
        found.append(torch.cat([loss.detach()[None], gradients_of(model)]))
    assert relative_error(*found) < 1e-5


class Adds(ReweightedTrainer):
    """A penalty on the parameters, which belongs to the items of a batch."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs)
        return loss + sum(parameter.square().sum() for parameter in model.parameters())


@pytest.mark.parametrize("cls", [ReweightedTrainer, Adds])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_step_without_items_changes_nothing(cls, normalize, accumulated, make_args):
    data = [{**row, "labels": torch.tensor(-100)} for row in classification_data(8)]
    args = make_args(
        optim="sgd", gradient_accumulation_steps=accumulated, max_steps=2, logging_nan_inf_filter=False
    )
    trainer = cls(tiny_bert(), args, train_dataset=data, normalize_weights=normalize)
    assert trainer.train().training_loss == 0
    assert torch.equal(parameters_of(trainer.model), parameters_of(tiny_bert()))
