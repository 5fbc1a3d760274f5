"""Plots over training: losses, effective sample size and weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from recipe_lib.compare.drawing import COLOURS, DASHES, new_figure, png, tidy
from recipe_lib.compare.methods import method_title
from recipe_lib.compare.records import BASELINE, Record, Records

PANELS = {
    "training loss, without weights": ("unweighted_loss", "loss"),
    "validation loss": ("eval_loss",),
    "effective sample size": ("effective_sample_size",),
}
GRID_POINTS = 25
Curves = dict[str, tuple[np.ndarray, np.ndarray]]


def plot_training(records: Records, dataset: str, methods: Sequence[str]) -> bytes | None:
    """Losses and effective sample size over the steps: mean over seeds, and a band of one standard deviation.

    The weighted `loss` stands in for the unweighted one only for ERM, where they are the same. A last panel shows the
    weights of the first of `methods` that recorded a histogram.

    Returns:
        A PNG file; None where no run logged any of it.
    """
    curves: dict[str, Curves] = {}
    for panel, keys in PANELS.items():
        for name in methods:
            allowed = keys if name == BASELINE else keys[:1]
            found = curve(list(records.runs(dataset, name).values()), allowed)
            if found is not None:
                curves.setdefault(panel, {})[name] = found
    histogram = next(
        (
            (name, weights)
            for name in methods
            for record in records.runs(dataset, name).values()
            if (weights := record.get("weight_histogram")) and np.sum(weights["counts"]) > 0
        ),
        None,
    )
    count = len(curves) + (histogram is not None)
    if not count:
        return None
    figure = new_figure(min(11.5, 3.8 * count + 0.6), 3.9)
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis, (panel, of_methods) in zip(axes, curves.items()):
        _draw_curves(axis, of_methods, methods)
        axis.set_title(panel, fontsize=10)
    if histogram is not None:
        _draw_weights(axes[-1], histogram[1], method_title(histogram[0]))
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


def curve(runs: Sequence[Record], keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps [points] and values [seeds, points] of a logged number; None where no run has two entries of it.

    Seeds may have logged at different steps, as runs that stopped early do: all are interpolated to the same ones,
    within the steps that all of them have.

    Args:
        runs: one a seed.
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


def _draw_weights(axis: Axes, weights: Mapping[str, Any], title: str) -> None:
    """A map of the weights over training, where there is a histogram a log; the histogram itself, where there is one."""
    edges, counts = np.array(weights["edges"], dtype=float), np.array(weights["counts"], dtype=float)
    if counts.ndim == 1:
        axis.stairs(100 * counts / counts.sum(), edges, fill=True, color=COLOURS[5])
        axis.set_xlabel("weight", fontsize=10)
        axis.set_ylabel("share of the samples (%)", fontsize=10)
        tidy(axis, grid="y")
    else:
        counts = counts[counts.sum(axis=1) > 0]
        shares = 100 * counts / counts.sum(axis=1, keepdims=True)
        done = np.linspace(0, 100, len(shares) + 1)
        mesh = axis.pcolormesh(done, edges, shares.T, cmap="magma_r", vmin=0, rasterized=True)
        figure = axis.get_figure()
        assert figure is not None
        figure.colorbar(mesh, ax=axis, label="share of the samples (%)")
        axis.set_xlabel("training done (%)", fontsize=10)
        axis.set_ylabel("weight", fontsize=10)
    axis.set_title(f"weights, {title}", fontsize=10)
