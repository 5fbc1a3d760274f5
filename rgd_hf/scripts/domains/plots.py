"""Plots of a sweep: accuracy of every method in every environment, and paired differences to ERM."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rgd_hf.scripts.domains.comparison import ERM, Comparison


def plot_accuracies(comparison: Comparison, rule: str, directory: Path) -> Path | None:
    """Bars of the accuracy by environment and method, with standard errors; None where nothing is finished."""
    methods = comparison.methods
    if not methods:
        return None
    names = [*comparison.held_out, "average"]
    figure = Figure(figsize=(max(6.0, 1.1 * len(names) + 2), 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(methods)
    for number, method in enumerate(methods):
        cells = comparison.row(rule, method)
        means = [cells[name].mean for name in names]
        errors = np.nan_to_num([cells[name].error for name in names])
        places = np.arange(len(names)) + (number - (len(methods) - 1) / 2) * width
        axes.bar(places, means, width, yerr=errors if errors.any() else None, capsize=2, label=method.title)
    axes.set_xticks(np.arange(len(names)), names)
    axes.set_ylabel("accuracy (%)")
    axes.set_xlabel("held-out environment")
    figure.legend(loc="outside upper center", ncols=2, fontsize="small")
    return _save(figure, directory / f"accuracy_{rule}.png")


def plot_differences(comparison: Comparison, rule: str, directory: Path) -> Path | None:
    """Paired differences to ERM with 95 % intervals; None where there is nothing to compare."""
    methods = [method for method in comparison.methods if method != ERM]
    found = {method: comparison.difference(rule, method, ERM) for method in methods}
    found = {method: difference for method, difference in found.items() if difference.trials}
    if not found:
        return None
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(found)), layout="constrained")
    axes = figure.subplots()
    for place, difference in enumerate(found.values()):
        interval = difference.interval()
        error = (
            None if interval is None else [[difference.mean - interval[0]], [interval[1] - difference.mean]]
        )
        axes.errorbar(difference.mean, place, xerr=error, fmt="o", capsize=3, color="tab:blue")
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_yticks(range(len(found)), [method.title for method in found])
    axes.invert_yaxis()
    axes.set_xlabel("difference to ERM in average accuracy (points)")
    return _save(figure, directory / f"difference_{rule}.png")


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure).print_png(str(path))
    return path
