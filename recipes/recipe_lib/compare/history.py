"""A run's training log as a study keeps it: a few points of the curves, and one histogram of its weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recipe_lib.vision.weight_histogram import BOUNDS, HISTOGRAM

POINTS = 20
KEPT = (
    "loss",
    "unweighted_loss",
    "effective_sample_size",
    "weight_mean",
    "weight_max",
    "clipped_fraction",
    "eval_loss",
)
DIGITS = 6


def read_history(log: Sequence[Mapping[str, Any]], plain: bool) -> list[dict[str, Any]]:
    """At most `POINTS` points, evenly spread, the first and the last among them: `step` and what is logged of `KEPT`.

    Args:
        log: the Trainer's `log_history`; entries of the same step become one.
        plain: whether the training loss is that of plain ERM, and so the `unweighted_loss` too, which is not logged then.
    """
    points: dict[int, dict[str, Any]] = {}
    for entry in log:
        values = {name: round(float(entry[name]), DIGITS) for name in KEPT if name in entry}
        if values:
            points.setdefault(entry["step"], {"step": entry["step"]}).update(values)
    every = [points[step] for step in sorted(points)]
    if plain:
        every = [
            {**point, **({"unweighted_loss": point["loss"]} if "loss" in point else {})} for point in every
        ]
    if len(every) <= POINTS:
        return every
    chosen = np.linspace(0, len(every) - 1, POINTS).round().astype(int)
    return [every[number] for number in chosen]


def mean_weight(log: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean weight over a run whose log has entries at equal distances; None where weights were not logged."""
    means = [entry["weight_mean"] for entry in log if "weight_mean" in entry]
    return float(np.mean(means)) if means else None


def weight_histogram(log: Sequence[Mapping[str, Any]]) -> dict[str, list[float]] | None:
    """All histograms of a log summed: `edges` of the equal bins and `counts` of items; None where none was logged."""
    found = [entry for entry in log if HISTOGRAM in entry]
    if not found:
        return None
    counts = np.sum([entry[HISTOGRAM] for entry in found], axis=0)
    low, high = found[0][BOUNDS]
    edges = np.linspace(low, high, len(counts) + 1)
    return {"edges": [round(edge, DIGITS) for edge in edges.tolist()], "counts": counts.tolist()}
