"""Scores and their differences as a comparison prints them."""

import math
from collections.abc import Callable, Sequence

from rgd_hf.comparison.statistics import DECIMALS

ROUNDING = 10.0**-DECIMALS
"""Differences of scores below it are rounding."""


def number(value: float) -> str:
    """`value` with three digits, and at least four decimals where it is below 1: `"0.0123"`, `"12.3"`, `"1.23e-05"`."""
    if not math.isfinite(value):
        return str(value)
    if ROUNDING < abs(value) < 0.001:
        return f"{value:.3g}"
    digits = 4 if abs(value) < 1 else max(0, 3 - len(str(int(abs(value)))))
    return f"{value:.{digits}f}"


def signed(value: float) -> str:
    """Like `number`, with the sign; minus zero is printed as plus zero, and NaN has none."""
    text = number(value)
    if math.isnan(value):
        return text
    return text if text.startswith("-") and float(text) != 0 else f"+{text.lstrip('-')}"


def mean_and_spread(values: Sequence[float], shown: Callable[[float], str] = number) -> str:
    """Mean ± sample standard deviation, each as `shown`; one value stands alone, and so does a mean that is not finite."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return shown(sum(values) / len(values))
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{shown(mean)} ± {shown(deviation)}"
