"""Plots over training: losses, effective sample size and weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm

from benchmarks.report.drawing import COLOURS, DASHES, new_figure, png, tidy
from benchmarks.report.lines import BASELINE, Record, Records
from benchmarks.report.methods import method_title

PANELS = {
    "training loss, without weights": ("unweighted_loss", "loss"),
    "validation loss": ("eval_loss",),
    "validation score": ("eval_score",),
    "effective sample size": ("effective_sample_size",),
    "mean weight": ("weight_mean",),
    "largest weight": ("weight_max",),
}
COLUMNS = 3
GRID_POINTS = 25
Curves = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Logged:
    """What the runs of a data set logged over training.

    Attributes:
        methods: names, in the order of their colours.
        curves: steps [points] and values [seeds, points], by panel and method.
        histograms: edges [bins + 1] and counts [periods, bins] of the weights, by method.
    """

    methods: Sequence[str]
    curves: Mapping[str, Curves]
    histograms: Mapping[str, tuple[np.ndarray, np.ndarray]]


def logged_curves(records: Records, dataset: str, methods: Sequence[str]) -> Logged | None:
    """What `plot_training` draws; None where no run logged any of it.

    The weighted `loss` stands in for the unweighted one for ERM alone, where they are the same.
    """
    curves: dict[str, Curves] = {}
    for panel, keys in PANELS.items():
        for name in methods:
            allowed = keys if name == BASELINE else keys[:1]
            found = curve(list(records.runs(dataset, name).values()), allowed)
            if found is not None:
                curves.setdefault(panel, {})[name] = found
    histograms = {
        name: spread
        for name in methods
        if (spread := sum_of_histograms(list(records.runs(dataset, name).values()))) is not None
    }
    return Logged(methods, curves, histograms) if curves or histograms else None


def plot_training(logged: Logged) -> bytes:
    """Losses, effective sample size and weights over the steps, and how each method's weights were spread over training.

    Curves are means over seeds with a band of one standard deviation. The histograms sum over seeds, where runs recorded
    them.

    Returns:
        A PNG file.
    """
    curves, histograms = logged.curves, logged.histograms
    count = len(curves) + len(histograms)
    lines = -(-count // COLUMNS)
    figure = new_figure(min(11.0, 3.8 * count + 0.6), 0.5 + 3.1 * lines)
    axes = figure.subplots(lines, min(count, COLUMNS), squeeze=False).ravel()
    for axis, (panel, of_methods) in zip(axes, curves.items()):
        _draw_curves(axis, of_methods, logged.methods)
        axis.set_title(panel, fontsize=10)
    for axis, (name, spread) in zip(axes[len(curves) :], histograms.items()):
        _draw_histograms(axis, *spread)
        axis.set_title(f"weights: {method_title(name)}", fontsize=10)
    for axis in axes[count:]:
        axis.set_visible(False)
    handles = {
        label: handle
        for axis in axes[: len(curves)]
        for handle, label in zip(*axis.get_legend_handles_labels())
    }
    if handles:
        figure.legend(
            handles.values(), handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9
        )
    return png(figure)


def sum_of_histograms(runs: Sequence[Record]) -> tuple[np.ndarray, np.ndarray] | None:
    """Edges [bins + 1] and counts [periods, bins] of the weights of all runs, cut to the bins that hold any.

    Where runs cut training into different periods, those with the most periods are summed; a single histogram of all of
    training is one period.

    Returns:
        None without a histogram.
    """
    found = [weights for record in runs if (weights := record.get("weight_histogram"))]
    counted = [np.atleast_2d(w["counts"]) for w in found if w["edges"] == found[0]["edges"]]
    shapes = [counts.shape for counts in counted]
    most = max(shapes, default=None)
    counts = sum(
        (c for c in counted if c.shape == most), np.zeros((1, 0)) if most is None else np.zeros(most)
    )
    filled = np.flatnonzero(counts.sum(axis=0))
    if not len(filled):
        return None
    first, last = filled[0], filled[-1] + 1
    return np.array(found[0]["edges"])[first : last + 1], counts[:, first:last]


def curve(runs: Sequence[Record], keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps [points] and values [seeds, points] of a logged number; None where no run has two entries of it.

    Seeds may have logged at different steps, as runs that stopped early do: all are interpolated to the same ones,
    within the steps that all of them have.

    Args:
        runs: one per seed.
        keys: names of the number in the log entries; the first that an entry has is taken.
    """
    series = []
    for record in runs:
        points = [
            (entry["step"], next(entry[key] for key in keys if entry.get(key) is not None))
            for entry in record.get("history", ())
            if any(entry.get(key) is not None for key in keys)
        ]
        points = [point for point in points if np.isfinite(point[1])]
        if len(points) > 1:
            series.append(np.array(sorted(points), dtype=float).T)
    if not series:
        return None
    first, last = max(s[0][0] for s in series), min(s[0][-1] for s in series)
    if last <= first:
        return None
    same = all(np.array_equal(s[0], series[0][0]) for s in series)
    steps = series[0][0] if same else np.linspace(first, last, GRID_POINTS)
    return steps, np.array([np.interp(steps, *found) for found in series])


def _draw_curves(axis: Axes, found: Curves, methods: Sequence[str]) -> None:
    for name, (steps, values) in found.items():
        number = methods.index(name)
        mean = values.mean(axis=0)
        axis.plot(
            steps,
            mean,
            color=COLOURS[number],
            linestyle=DASHES[number],
            label=method_title(name),
            linewidth=1.7,
        )
        if len(values) > 1:
            spread = values.std(axis=0, ddof=1)
            axis.fill_between(
                steps, mean - spread, mean + spread, color=COLOURS[number], alpha=0.13, linewidth=0
            )
    axis.set_xlabel("step", fontsize=10)
    axis.locator_params(axis="x", nbins=5)
    tidy(axis)


def _draw_histograms(axis: Axes, edges: np.ndarray, counts: np.ndarray) -> None:
    """Training to the right, weights upward; the darker, the larger the share of the items of that time."""
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    times = np.linspace(0, 100, len(counts) + 1)
    # The few large weights matter as much as the many small ones: a root keeps them visible.
    mesh = axis.pcolormesh(times, edges, shares.T, cmap="Blues", norm=PowerNorm(0.5, vmin=0), rasterized=True)
    axis.figure.colorbar(mesh, ax=axis, pad=0.02).set_label("share of items (%)", fontsize=9)
    axis.set_xlabel("share of training (%)", fontsize=10)
    axis.set_ylabel("weight", fontsize=10)
    axis.tick_params(labelsize=9)
