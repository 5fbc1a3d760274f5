"""Statistics of paired differences: mean with interval, smallest detectable difference, Holm's correction.

Two methods trained from the same seed give one difference of scores per seed (or per data set), and a handful of these
decides whether a method helps. The differences are assumed to be normal: Student's t is then exact from two seeds on,
whereas a bootstrap of five values covers their mean too rarely.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

CONFIDENCE = 0.95
POWER = 0.8
FEWEST_FOR_INTERVAL = 2
# Scores are sums over many samples: what differs by less than this is rounding.
DECIMALS = 12


class Estimate(NamedTuple):
    """A mean with its 95 % interval.

    Attributes:
        mean: mean of the values; NaN if there are none, or one is not finite.
        low: lower end of the interval; None for fewer than two values, or one that is not finite.
        high: upper end of the interval; None as `low`.
        n: number of values.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def verdict(self) -> str | None:
        """`"gain"` or `"loss"` where the interval excludes 0, else `"tie"`; None where there is no interval."""
        if self.low is None or self.high is None:
            return None
        if self.low > 0:
            return "gain"
        return "loss" if self.high < 0 else "tie"

    def rounded(self, decimals: int) -> "Estimate":
        """The estimate rounded to `decimals`: an interval that is printed as ending at 0 does not exclude 0."""
        low, high = (None if end is None else round(end, decimals) + 0.0 for end in (self.low, self.high))
        return Estimate(round(self.mean, decimals) + 0.0, low, high, self.n)


def mean_interval(values: Sequence[float]) -> Estimate:
    """The mean of paired differences and its 95 % interval, Student's t.

    Args:
        values: one difference per seed, or one per data set. If all are equal, the interval has width 0.
    """
    array = _rounded(values)
    n = len(array)
    if not np.isfinite(array).all():
        return Estimate(math.nan, None, None, n)
    if n < FEWEST_FOR_INTERVAL:
        return Estimate(float(array.mean()) if n else math.nan, None, None, n)
    mean, half_width = float(array.mean()), _t_quantile(n) * _standard_error(array)
    return Estimate(mean, mean - half_width, mean + half_width, n)


def paired_p(values: Sequence[float]) -> float:
    """Two-sided p value of the paired t test that the differences' true mean is 0.

    It is below 0.05 where the interval of `mean_interval` excludes 0, and only there.

    Args:
        values: one difference per seed, or one per data set.

    Returns:
        The p value; NaN for fewer than two values, or one that is not finite; 1 where all are 0, 0 where all are equal and not 0.
    """
    array = _rounded(values)
    if len(array) < FEWEST_FOR_INTERVAL or not np.isfinite(array).all():
        return math.nan
    error = _standard_error(array)
    if error == 0:
        return 0.0 if array[0] else 1.0
    return float(2 * stats.t.sf(abs(array.mean()) / error, len(array) - 1))


def smallest_detectable(values: Sequence[float], power: float = POWER) -> float:
    """The smallest true mean difference that this number of values, with their spread, detects with the given power.

    A tie should be read together with it: a smaller gain may exist and go undetected.

    Args:
        values: one difference per seed; only their number and standard deviation matter, not their mean.
        power: probability that the interval excludes 0 (two-sided paired t test at 5 %).

    Returns:
        A difference in the unit of the values; NaN for fewer than two of them, or one that is not finite, 0 where all are equal.
    """
    array = _rounded(values)
    n = len(array)
    if n < FEWEST_FOR_INTERVAL or not np.isfinite(array).all():
        return math.nan

    def lacking(shift: float) -> float:
        # An interval that excludes 0 on the wrong side hardly ever happens at such a shift.
        return float(stats.nct.sf(_t_quantile(n), n - 1, shift)) - power

    most = 1.0
    while lacking(most) < 0:
        most *= 2
    return float(optimize.brentq(lacking, 0.0, most)) * _standard_error(array)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for multiple testing (Holm, Scandinavian Journal of Statistics 1979), in the same order.

    Args:
        p_values: the p values of one family of tests; NaN values are not counted and stay NaN.
    """
    corrected = np.array(p_values, dtype=float)
    known = np.flatnonzero(~np.isnan(corrected))
    order = known[np.argsort(corrected[known])]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.maximum.accumulate(np.minimum(1.0, factors * corrected[order]))
    return corrected.tolist()


def _rounded(values: Sequence[float]) -> np.ndarray:
    return np.round(np.asarray(values, dtype=float), DECIMALS)


def _standard_error(values: np.ndarray) -> float:
    if np.ptp(values) == 0:  # numpy's mean of equal values may differ from them in the last digit
        return 0.0
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def _t_quantile(n: int) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
