"""The statistics of paired differences against scipy, statsmodels and simulation."""

import gc
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from rgd_hf.comparison.statistics import Estimate, holm, mean_interval, paired_p, smallest_detectable

SOME = [[0.2, -0.1], [0.3, -0.2, 1.1, 0.5, 0.9], [5.0, 5.5, 4.9, 5.2], list(np.linspace(-1, 2, 30))]


def test_too_few_values_have_no_interval():
    assert math.isnan(mean_interval([]).mean) and mean_interval([]).n == 0
    assert mean_interval([1.5]) == Estimate(1.5, None, None, 1)
    assert mean_interval([1.5]).verdict is None
    assert math.isnan(paired_p([1.5])) and math.isnan(smallest_detectable([1.5]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_no_interval_and_is_no_tie(bad):
    for values in ([bad], [0.1, bad], [0.1, 0.2, bad], [bad, -bad, 0.1]):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = mean_interval(values)
            assert math.isnan(found.mean) and found[1:] == (None, None, len(values)) and found.verdict is None
            assert math.isnan(paired_p(values)) and math.isnan(smallest_detectable(values))


@pytest.mark.parametrize("values", SOME)
def test_interval_and_p_value_are_those_of_the_paired_t_test(values):
    test = stats.ttest_rel(values, np.zeros(len(values)))
    interval = test.confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((np.mean(values), interval.low, interval.high, len(values)))
    assert paired_p(values) == pytest.approx(test.pvalue)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_equal_values_have_an_interval_of_no_width(n):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # 0.1 + 0.2 - 0.2 is not 0.1: such differences are equal all the same.
        assert mean_interval([0.1, 0.1 + 0.2 - 0.2, *[0.1] * (n - 2)])[:3] == pytest.approx((0.1, 0.1, 0.1))
        assert mean_interval([0.0] * n).verdict == "tie" and paired_p([0.0] * n) == 1
        assert mean_interval([-0.5] * n).verdict == "loss" and paired_p([-0.5] * n) == 0
        assert smallest_detectable([0.5] * n) == 0


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12))
def test_verdict_p_value_and_sign_agree(values):
    estimate, p = mean_interval(values), paired_p(values)
    mirrored = mean_interval([-value for value in values])
    assert {"gain": "loss", "loss": "gain", "tie": "tie"}[estimate.verdict] == mirrored.verdict
    if abs(p - 0.05) > 1e-6:
        assert (estimate.verdict == "tie") == (p > 0.05)


def test_an_end_that_is_printed_as_zero_is_a_tie():
    estimate = Estimate(1.0, 0.004, 2.0, 5)
    assert estimate.verdict == "gain"
    assert estimate.rounded(2) == Estimate(1.0, 0.0, 2.0, 5) and estimate.rounded(2).verdict == "tie"
    assert str(Estimate(-0.001, -0.001, 0.001, 5).rounded(2).low) == "0.0"


def test_interval_holds_the_true_mean_as_often_as_it_says():
    draw = np.random.default_rng(0)
    for n in (2, 3, 5, 10):
        found = [mean_interval(draw.normal(0.4, 1, n)) for _ in range(1000)]
        # Of 1,000 intervals 950 are to hold it; the standard deviation of that count is 7.
        assert np.mean([e.low <= 0.4 <= e.high for e in found]) == pytest.approx(0.95, abs=0.035), n


@pytest.mark.parametrize("n", [2, 3, 5, 10])
@pytest.mark.parametrize("power", [0.5, 0.8])
def test_smallest_detectable_difference_is_found_as_often_as_it_says(n, power):
    values = np.random.default_rng(n).normal(3, 2, n)
    shift = smallest_detectable(values, power)
    drawn = np.random.default_rng(0).normal(shift, values.std(ddof=1), (20_000, n))
    # The standard deviation of this share is at most 0.0036.
    assert np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05) == pytest.approx(power, abs=0.018)


@pytest.fixture
def frozen_heap():
    """Garbage collection passes over what is there; statsmodels collects in every call, a second each late in a long run."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("frozen_heap")
@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=12))
def test_holm_is_that_of_statsmodels(p_values):
    known = [p for p in p_values if not math.isnan(p)]
    expected = iter(multipletests(known, method="holm")[1] if known else [])
    found = holm(p_values)
    assert found == pytest.approx(
        [math.nan if math.isnan(p) else next(expected) for p in p_values], nan_ok=True
    )
