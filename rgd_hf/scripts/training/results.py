"""Results of runs: `all_results.json` and a small table."""

import dataclasses
import json
import math
import platform
from collections.abc import Mapping, Sequence
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.table import Table

from rgd_hf.comparison.compare import SETTINGS_NAME
from rgd_hf.comparison.directions import is_greater_better
from rgd_hf.comparison.formats import mean_and_spread, number, signed
from rgd_hf.comparison.result import Comparison, comparison_of
from rgd_hf.comparison.run_settings import TEXT_TOKENS
from rgd_hf.json_lines import write_json
from rgd_hf.scripts.messages import console, say

RESULTS_NAME = "all_results.json"

OWN_FILES = "own_files"
"""The key under which a run records the files that it found in its directory, which are the user's."""

PACKAGES = (
    "rgd-hf", "torch", "transformers", "accelerate", "datasets", "timm", "scikit-learn", "lightgbm", "numpy", "pandas", "scipy"
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that decide a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def settings_of(*arguments: Any) -> dict[str, Any]:
    """What the user chose, as JSON: fields of dataclasses that differ from their defaults. Secrets are excluded."""
    chosen: dict[str, Any] = {}
    for group in arguments:
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            is_secret = field.name.endswith("token") and field.name not in TEXT_TOKENS
            if is_secret or not isinstance(value, str | int | float | bool | list | dict | None):
                continue
            if value not in (field.default, {}, []):
                chosen[field.name] = value.value if isinstance(value, Enum) else value
    return chosen


def write_results(directory: str | Path, results: Mapping[str, Any]) -> None:
    """Write `all_results.json`, whole or not at all, on the main process alone."""
    if PartialState().is_main_process:
        write_json(Path(directory) / RESULTS_NAME, results)


def read_results(directory: str | Path) -> dict[str, Any] | None:
    """The content of `all_results.json`, or None where there is none."""
    path = Path(directory) / RESULTS_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def recorded_settings(directory: Path) -> dict[str, Any] | None:
    """The settings that a run in `directory` was begun with, or None where they are not known."""
    path = directory / SETTINGS_NAME
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    return (read_results(directory) or {}).get("settings")


def compared(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the runs of a comparison say about their main metric, as JSON.

    Args:
        records: results of runs, each with `method`, its `settings` and the metrics; the first is the baseline.

    Returns:
        `metric`, and by method the `mean` of the paired differences to the baseline with the ends of its 95 % interval
        (`low` and `high`, None for one seed), their number `n`, and the `verdict` in words.
    """
    found = comparison_of_records(records, main_metric(records[0]))
    methods = [method for method in found.scores if method != found.baseline]
    differences = {
        method: {**found.difference(method)._asdict(), "verdict": found.verdict(method)} for method in methods
    }
    return {"metric": found.metric, "baseline": found.baseline, "differences": differences}


def comparison_of_records(records: Sequence[Mapping[str, Any]], metric: str) -> Comparison:
    """The runs of a recipe as a `Comparison` by one of their metrics."""
    runs = [
        {"method": record["method"], "seed": record["settings"]["seed"], "metrics": record}
        for record in records
    ]
    return comparison_of(runs, metric)


def print_results(title: str, results: Mapping[str, Any]) -> None:
    """Print what `train_runs` returned: one row a metric, and what a comparison says.

    Args:
        title: above the table.
        results: results of a run, or of a comparison. Several seeds are shown as mean ± standard deviation.
    """
    if not PartialState().is_main_process:
        return
    records = list(results["runs"].values()) if "runs" in results else [results]
    metrics = shown_metrics(records[0])
    by_metric = {name: comparison_of_records(records, name) for name in metrics}
    methods = list(dict.fromkeys(record["method"] for record in records))
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for method in methods:
        table.add_column(method, justify="right")
    for _ in methods[1:]:
        table.add_column("difference", justify="right")
        table.add_column("95 % interval", justify="right")
    for name in metrics:
        cells = [mean_and_spread([*by_metric[name].scores[method].values()], _shown) for method in methods]
        for method in methods[1:]:
            found = by_metric[name].difference(method)
            ends = [signed(end) for end in (found.low, found.high) if end is not None]
            cells += [signed(found.mean), " to ".join(ends)]
        table.add_row(name.removeprefix("eval_").removeprefix("test_"), *cells)
    seconds = [[record["seconds"] for record in records if record["method"] == method] for method in methods]
    table.add_row("seconds", *(f"{sum(each) / len(each):.0f}" for each in seconds))
    console.print(table)
    if "comparison" in results:
        say("", *(difference["verdict"] for difference in results["comparison"]["differences"].values()))
        if len(records) == 2:
            say("--seeds 0 1 2 3 4 trains five pairs, and says whether the difference is more than chance.")


def _shown(value: float) -> str:
    return f"{value:.4f}" if not math.isfinite(value) or abs(value) >= 0.001 else number(value)


def main_metric(record: Mapping[str, Any]) -> str:
    """The evaluation metric that a comparison goes by: the first that is no loss and has a direction, else `eval_loss`."""
    shown = shown_metrics(record)
    known = (name for name in shown if not name.endswith("loss") and is_greater_better(name) is not None)
    return next(known, shown[0])


def shown_metrics(record: Mapping[str, Any]) -> list[str]:
    """The metrics of a record that a table shows: those on test data, else those of the evaluation; no timings."""
    hidden = ("runtime", "per_second", "preparation_time", "samples")
    prefix = "test_" if any(name.startswith("test_") for name in record) else "eval_"
    return [name for name in record if name.startswith(prefix) and not name.endswith(hidden)]
