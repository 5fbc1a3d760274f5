"""Statistics of paired differences: intervals of their mean, Wilcoxon's signed-rank test, Holm's correction."""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

CONFIDENCE = 0.95
RESAMPLES = 9999
BOOTSTRAP_SEED = 0
# Two values have no interval worth printing. Three or four have so few different resamples that a bootstrap interval
# cannot reach beyond the values themselves, which hold the mean in 75 % and 87.5 % of cases: Student's t does better.
FEWEST_FOR_INTERVAL = 3
FEWEST_FOR_BOOTSTRAP = 5
# Scores are sums of hundreds of samples: differences below this are rounding, and would break ties between ranks.
DECIMALS = 12
# Of a point, in print. An interval that is printed as ending at 0 must not count as one that excludes it.
SHOWN_DECIMALS = 2


class Estimate(NamedTuple):
    """A mean with its 95 % interval.

    Attributes:
        mean: of the values; NaN for none.
        low: lower end of the interval; None for fewer than three values.
        high: upper end; None likewise.
        n: how many values.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def verdict(self) -> str | None:
        """`"gain"` or `"loss"` where the interval excludes 0, else `"tie"`; None where there is no interval.

        The ends are those that are printed, in hundredths of a point.
        """
        if self.low is None or self.high is None:
            return None
        if round(self.low, SHOWN_DECIMALS) > 0:
            return "gain"
        return "loss" if round(self.high, SHOWN_DECIMALS) < 0 else "tie"


def mean_interval(values: Sequence[float]) -> Estimate:
    """The mean of paired differences and its 95 % interval.

    From five values on it is the expanded percentile bootstrap interval (Hesterberg, "What Teachers Should Know About
    the Bootstrap", The American Statistician 2015): the resampled means' quantiles are taken further out, so that for
    normal values the interval is as wide as Student's. The plain percentile interval and BCa are too narrow for few
    values: of five normal ones they miss the true mean in one of six cases, not in one of twenty. Three or four
    values get Student's t interval. Values that are all equal have an interval of no width.

    Args:
        values: one difference a seed or a data set.

    Returns:
        The estimate; always the same one for the same values.
    """
    return _mean_interval(tuple(np.round(np.asarray(values, dtype=float), DECIMALS).tolist()))


@cache  # a report prints and draws most of them several times
def _mean_interval(values: tuple[float, ...]) -> Estimate:
    array = np.array(values)
    n = len(array)
    if n == 0:
        return Estimate(math.nan, None, None, 0)
    mean = float(array.mean())
    if n < FEWEST_FOR_INTERVAL:
        return Estimate(mean, None, None, n)
    if np.ptp(array) == 0:
        return Estimate(float(array[0]), float(array[0]), float(array[0]), n)
    if n < FEWEST_FOR_BOOTSTRAP:
        found = stats.ttest_1samp(array, 0.0).confidence_interval(CONFIDENCE)
    else:
        found = stats.bootstrap(
            (array,),
            np.mean,
            confidence_level=expanded_confidence(n),
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(BOOTSTRAP_SEED),
        ).confidence_interval
    return Estimate(mean, float(found.low), float(found.high), n)


def expanded_confidence(n: int) -> float:
    """The nominal level at which a percentile bootstrap interval of `n` normal values is as wide as Student's at 95 %."""
    quantile = stats.t.ppf((1 - CONFIDENCE) / 2, n - 1) * math.sqrt(n / (n - 1))
    return 1 - 2 * float(stats.norm.cdf(quantile))


def signed_rank_p(differences: Sequence[float]) -> float:
    """Two-sided p value of Wilcoxon's signed-rank test that differences lie around 0.

    It is exact up to 13 values (ties and zeros are enumerated; up to 50 without either), a normal approximation
    beyond. Zero differences are ranked and then dropped (Pratt), which is the more conservative way; only zeros give 1.

    Returns:
        The p value; NaN without a difference.
    """
    array = np.round(np.asarray(differences, dtype=float), DECIMALS)
    if len(array) == 0:
        return math.nan
    if not array.any():
        return 1.0
    return float(stats.wilcoxon(array, zero_method="pratt").pvalue)


def smallest_p(n: int) -> float:
    """The smallest two-sided p value that the signed-rank test of `n` differences can reach: 2 / 2**n."""
    return min(1.0, 2.0 ** (1 - n))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number by Holm's method, in the same order; a NaN is not counted and stays."""
    corrected = np.array(p_values, dtype=float)
    known = ~np.isnan(corrected)
    if known.any():
        corrected[known] = multipletests(corrected[known], method="holm")[1]
    return corrected.tolist()
