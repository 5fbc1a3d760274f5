"""The scores of a study as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from rgd_hf.scripts.tabular.report import PERCENT, Records, data_sets, summarize
from rgd_hf.scripts.tabular.rivals import RIVALS
from rgd_hf.scripts.tabular.scores import LOWER_IS_BETTER

COLORS = {
    "rival": "#7f7f7f",
    "erm": "#1f77b4",
    "focal": "#9467bd",
    "class_weights": "#8c564b",
    "reweighted": "#d62728",
}


def _group(method: str) -> str:
    if method in RIVALS:
        return "rival"
    objective = method.split("/")[1]
    return objective if objective in COLORS else "reweighted"


def plot_scores(records: Records, path: Path) -> None:
    """Write a picture with one panel a data set: every method's mean main score, with its standard deviation.

    Args:
        records: of the study.
        path: of the PNG file.
    """
    entries = summarize(records)
    sets = data_sets(records)
    heights = [1 + sum(entry["data"] == data for entry in entries) for data in sets]
    figure, axes = plt.subplots(
        len(sets), 1, figsize=(7, 0.26 * sum(heights) + 0.7 * len(sets)), height_ratios=heights, squeeze=False
    )
    for axis, data in zip(axes[:, 0], sets):
        _draw(axis, data, [entry for entry in entries if entry["data"] == data])
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw(axis: Any, data: str, entries: Sequence[Any]) -> None:
    name = "rmse" if "rmse" in entries[0] else "accuracy"
    scale = 100 if name in PERCENT else 1
    for row, entry in enumerate(reversed(entries)):
        axis.errorbar(
            scale * entry[name]["mean"],
            row,
            xerr=scale * (entry[name]["std"] or 0),
            fmt="o",
            markersize=5,
            capsize=2,
            color=COLORS[_group(entry["method"])],
        )
    axis.set_yticks(range(len(entries)), [entry["method"] for entry in reversed(entries)], fontsize=8)
    axis.set_ylim(-0.7, len(entries) - 0.3)
    unit = " (%)" if scale == 100 else ""
    better = "lower" if name in LOWER_IS_BETTER else "higher"
    axis.set_title(f"{data}: test {name}{unit}, {better} is better, mean ± std over the seeds", fontsize=9)
    axis.grid(axis="x", alpha=0.3)
    axis.tick_params(axis="x", labelsize=8)
