"""Plots of differences: all data sets at once, one data set's methods, and where on its samples they arise."""

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.report.drawing import COLOURS, MARKERS, forest, new_figure, png, tidy
from benchmarks.report.formats import verdict
from benchmarks.report.lines import BASELINE
from benchmarks.report.methods import method_title
from benchmarks.report.parts import Breakdown
from benchmarks.report.summary import Overall, Row
from rgd_hf.comparison.statistics import Estimate

DIFFERENCE = "difference to ERM (points)"
# Data sets differ a hundredfold in how much seeds move their scores: a linear axis would show the widest interval alone.
LINEAR_TO = 1.0
TICKS = (-10, -3, -1, 0, 1, 3, 10)


def plot_data_sets(found: Sequence[Overall], datasets: Sequence[str]) -> bytes:
    """A panel per method: its difference to ERM on every data set, and the mean over data sets at the bottom.

    Args:
        found: the methods to show, at least one.
        datasets: names, in order.

    Returns:
        A PNG file.
    """
    with_mean = len(datasets) > 1
    places = [*datasets, "mean over data sets"] if with_mean else list(datasets)
    figure = new_figure(max(7.5, 2.6 + 2.5 * len(found)), 1.3 + 0.27 * len(places))
    axes = figure.subplots(1, len(found), sharey=True, sharex=True, squeeze=False)[0]
    for axis, method in zip(axes, found):
        shown = [method.by_dataset.get(name, Estimate(np.nan, None, None, 0)) for name in datasets]
        forest(axis, [*shown, method.gain][: len(places)])
        if with_mean:
            axis.axhline(len(datasets) - 0.5, color="#999999", linewidth=0.8)
        axis.set_title(method_title(method.method), fontsize=10)
        axis.set_xscale("symlog", linthresh=LINEAR_TO, linscale=1.0)
        axis.set_xticks(
            TICKS, [f"{tick:+g}".replace("-", "−") if tick else "0" for tick in TICKS], minor=False
        )
        axis.minorticks_off()
    estimates = [e for method in found for e in (*method.by_dataset.values(), method.gain)]
    ends = [abs(end) for e in estimates for end in _ends(e)]
    axes[0].set_xlim(-1.3 * max([LINEAR_TO, *ends]), 1.3 * max([LINEAR_TO, *ends]))
    axes[0].set_yticks(range(len(places)), places)
    figure.supxlabel(
        f"{_label(estimates)}; the scale is linear to ±{LINEAR_TO:g}, logarithmic beyond", fontsize=10
    )
    return png(figure)


def _label(estimates: Sequence[Estimate]) -> str:
    """Of the axis, and what a mark without a line means, where there is one."""
    without = any(found.n and verdict(found) is None for found in estimates)
    some = any(verdict(found) is not None for found in estimates)
    return DIFFERENCE + ", 95 % interval" * some + "; ×: too few values for an interval" * without


def _ends(estimate: Estimate) -> list[float]:
    return [end for end in (estimate.low, estimate.mean, estimate.high) if end is not None]


def plot_methods(rows: Sequence[Row], title: str) -> bytes:
    """Difference to ERM of every method of one data set.

    Args:
        rows: the methods, without ERM, at least one.
        title: title of the picture.

    Returns:
        A PNG file.
    """
    figure = new_figure(8.5, 1.2 + 0.26 * len(rows))
    axis = figure.subplots()
    forest(axis, [row.difference for row in rows])
    axis.set_yticks(range(len(rows)), [method_title(row.method) for row in rows])
    axis.set_xlabel(_label([row.difference for row in rows]), fontsize=10)
    axis.set_title(title, fontsize=11)
    return png(figure)


def plot_breakdowns(breakdowns: Mapping[str, Breakdown], title: str) -> bytes:
    """For every breakdown, accuracy by part (left) and difference to ERM with its interval (right).

    Args:
        breakdowns: by what the parts are, which labels the horizontal axis; at least one.
        title: title of the picture.

    Returns:
        A PNG file.
    """
    figure = new_figure(9.5, 0.6 + 3.4 * len(breakdowns))
    axes = figure.subplots(len(breakdowns), 2, squeeze=False)
    for (left, right), (label, breakdown) in zip(axes, breakdowns.items()):
        places = np.arange(len(breakdown.names))
        others = [name for name in breakdown.accuracy if name != BASELINE]
        for number, (name, values) in enumerate(breakdown.accuracy.items()):
            left.plot(
                places,
                values,
                color=COLOURS[number],
                marker=MARKERS[number],
                label=method_title(name),
                markersize=5,
            )
        for number, name in enumerate(others):
            shift = (number - (len(others) - 1) / 2) * min(0.24, 0.03 * len(places))
            _draw_differences(right, places + shift, breakdown.difference[name], number + 1)
        right.axhline(0, color="black", linewidth=1)
        left.set_ylabel("accuracy (%)", fontsize=10)
        right.set_ylabel(DIFFERENCE, fontsize=10)
        for axis in (left, right):
            axis.set_xticks(places, breakdown.names)
            axis.set_xlabel(label, fontsize=10)
            tidy(axis, grid="y")
            if max(map(len, breakdown.names)) > 4:
                axis.tick_params(axis="x", rotation=45)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title, fontsize=11)
    return png(figure)


def _draw_differences(axis, places: np.ndarray, estimates: Sequence[Estimate], number: int) -> None:
    for place, found in zip(places, estimates):
        if found.low is not None and found.high is not None:
            axis.plot([place, place], [found.low, found.high], color=COLOURS[number], linewidth=1.8)
        axis.plot(place, found.mean, MARKERS[number], color=COLOURS[number], markersize=5)
