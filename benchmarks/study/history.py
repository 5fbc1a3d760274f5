"""A run's training log as a study keeps it: a few points of the curves, and a few histograms of its weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rgd_hf.observers.histogram import BOUNDS, HISTOGRAM

POINTS = 20
PERIODS = 10
KEPT = (
    "loss",
    "unweighted_loss",
    "effective_sample_size",
    "weight_mean",
    "weight_max",
    "clipped_fraction",
    "eval_loss",
)
EVAL_SCORE = "eval_score"
DIGITS = 6


def read_history(log: Sequence[Mapping[str, Any]], plain: bool, score: str) -> list[dict[str, Any]]:
    """`step`, what is logged of `KEPT`, and the validation score as `eval_score`.

    At most `POINTS` points, evenly spread, the first and the last among them, and as many that have a score.

    Args:
        log: the Trainer's `log_history`; entries of the same step become one, in which the first value of a name stands: a
            recipe may evaluate its best model again after the last step.
        plain: whether the training loss is that of plain ERM, and so the `unweighted_loss` too, where that is not logged.
        score: under which name evaluations during the training logged the score.
    """
    points: dict[int, dict[str, Any]] = {}
    for entry in log:
        values = {name: round(float(entry[name]), DIGITS) for name in KEPT if name in entry}
        if score in entry:
            values[EVAL_SCORE] = round(float(entry[score]), DIGITS)
        if values:
            point = points.get(entry["step"], {})
            points[entry["step"]] = {"step": entry["step"], **values, **point}
    every = [points[step] for step in sorted(points)]
    if plain:
        every = [
            {**({"unweighted_loss": point["loss"]} if "loss" in point else {}), **point} for point in every
        ]
    scored = [number for number, point in enumerate(every) if EVAL_SCORE in point]
    return [every[number] for number in sorted({*_spread(range(len(every))), *_spread(scored)})]


def _spread(numbers: Sequence[int]) -> list[int]:
    """At most `POINTS` of them, evenly spread."""
    if len(numbers) <= POINTS:
        return list(numbers)
    return [numbers[place] for place in np.linspace(0, len(numbers) - 1, POINTS).round().astype(int)]


def mean_weight(log: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean weight over a run whose log has entries at equal distances; None where weights were not logged."""
    means = [entry["weight_mean"] for entry in log if "weight_mean" in entry]
    return float(np.mean(means)) if means else None


def weight_histogram(log: Sequence[Mapping[str, Any]]) -> dict[str, list] | None:
    """The histograms of a log, summed over each of `PERIODS` equally many entries; None where none was logged.

    Returns:
        `edges` [bins + 1] of the equal bins, and `counts` of items, [periods, bins] in the order of training.
    """
    found = [entry for entry in log if HISTOGRAM in entry]
    if not found:
        return None
    periods = np.array_split(np.array([entry[HISTOGRAM] for entry in found]), min(PERIODS, len(found)))
    counts = [period.sum(axis=0).tolist() for period in periods]
    low, high = found[0][BOUNDS]
    edges = np.linspace(low, high, len(counts[0]) + 1)
    return {"edges": [round(edge, DIGITS) for edge in edges.tolist()], "counts": counts}
