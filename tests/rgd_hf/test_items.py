import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rgd_hf.items import Items, losses_at_level, reference_at_level, token_reference, zero_uncounted
from rgd_hf.training_args import ReweightingArguments
from rgd_hf.weightings.choice import weighting_of


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
