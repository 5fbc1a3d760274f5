"""LinUpper against the definition, one loss after the other."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rgd_hf.items import Items
from rgd_hf.weightings import LinUpper


@given(st.lists(st.floats(0, 8, width=32), min_size=2, max_size=9), st.sampled_from([0.3, 1.0, 4.0]))
def test_weights_are_those_of_the_definition(losses, temperature):
    low, high = min(losses), max(losses)
    scaled = [2 * (loss - low) / (high - low) - 1 if high - low > 1e-3 else 0.0 for loss in losses]
    raw = [math.exp(min(h + 1, 1) / temperature) for h in scaled]
    expected = torch.tensor([w * len(raw) / sum(raw) for w in raw])
    if 0 < high - low <= 1e-3:
        return  # rounding decides
    # Two items that do not count, one of them the largest.
    items = Items(torch.tensor([*losses, 0.0, 99.0]), torch.tensor([1.0] * len(losses) + [0.0, 0.0]))
    found = LinUpper(temperature).weights(items)
    torch.testing.assert_close(found[:-2], expected, rtol=1e-4, atol=1e-5)
    assert found[-2:].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_stay_finite(bad):
    weights = LinUpper().weights(Items(torch.tensor([0.5, bad, 3.0]), torch.ones(3)))
    assert torch.isfinite(weights).all() and weights[1] == weights[2] > weights[0]
    assert LinUpper().weights(Items(torch.zeros(2), torch.zeros(2))).tolist() == [1.0, 1.0]


def test_a_temperature_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="temperature must be a positive"):
        LinUpper(0.0)
