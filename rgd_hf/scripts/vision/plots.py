"""Pictures of runs, from the log history that the Trainer keeps: curves, and the weights over training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt

from rgd_hf.observers.histogram import BOUNDS, HISTOGRAM

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
)  # of Okabe and Ito: told apart by colour-blind readers and in grey


def read_history(directory: str | Path) -> list[dict[str, Any]]:
    """The log history of a finished run."""
    path = Path(directory) / "trainer_state.json"
    return json.loads(path.read_text(encoding="utf-8"))["log_history"] if path.is_file() else []


def plot_curves(histories: Mapping[str, Sequence[list[dict[str, Any]]]], path: str | Path) -> None:
    """Unweighted training loss, validation loss and validation accuracy against epochs, one colour a method.

    Args:
        histories: log histories by the method's name, of every seed; several are a thin line each.
        path: path of the PNG file.
    """
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    panels = (
        ("training loss, without weights", ("unweighted_loss", "loss")),
        ("validation loss", ("eval_loss",)),
        ("validation accuracy", ("eval_accuracy",)),
    )
    for axis, (title, keys) in zip(axes, panels):
        for (name, seeds), colour in zip(histories.items(), COLOURS):
            style = {"color": colour, "alpha": 1.0 if len(seeds) == 1 else 0.6}
            for number, history in enumerate(seeds):
                points = [
                    (entry["epoch"], next(entry[key] for key in keys if key in entry))
                    for entry in history
                    if any(key in entry for key in keys)
                ]
                if points:
                    epochs, values = zip(*points)
                    marker = "." if len(points) < 30 else None
                    axis.plot(
                        epochs, values, label=None if number else name, marker=marker,
                        linewidth=1.5 if len(seeds) == 1 else 0.8, **style,
                    )  # fmt: skip
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if axes[0].lines:
        axes[0].legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_weights(history: list[dict[str, Any]], title: str, path: str | Path) -> bool:
    """A histogram of the weights at every log, as a map: epochs to the right, weights upward.

    Args:
        history: log history of a re-weighted run.
        title: title of the picture.
        path: path of the PNG file.

    Returns:
        Whether there was anything to draw.
    """
    entries = [entry for entry in history if sum(entry.get(HISTOGRAM, ()))]
    if not entries:
        return False
    counts = np.array([entry[HISTOGRAM] for entry in entries], dtype=float)
    shares = 100 * counts / counts.sum(axis=1, keepdims=True)
    ends = np.array([0.0, *(entry["epoch"] for entry in entries)])
    low, high = entries[0][BOUNDS]
    bins = np.linspace(low, high, shares.shape[1] + 1)
    figure, axis = plt.subplots(figsize=(8, 4.2), layout="constrained")
    mesh = axis.pcolormesh(ends, bins, shares.T, cmap="magma_r", vmin=0, rasterized=True)
    means = [entry["weight_mean"] for entry in entries]
    axis.plot((ends[:-1] + ends[1:]) / 2, means, color="#56b4e9", linewidth=2, label="mean weight")
    axis.set(title=title, xlabel="epoch", ylabel="weight of a sample")
    axis.legend(frameon=False, loc="upper right")
    figure.colorbar(mesh, label="share of the samples (%)")
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True
