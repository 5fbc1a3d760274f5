"""Results of runs: `all_results.json` and a small table."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from rich.table import Table

RESULTS_NAME = "all_results.json"
PACKAGES = ("rgd-hf", "torch", "transformers", "accelerate", "datasets", "timm", "scikit-learn")

console = Console()


def say(*lines: str) -> None:
    """Print on the main process alone."""
    if PartialState().is_main_process:
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def package_versions() -> dict[str, str]:
    """The installed versions of the packages that decide a result."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def settings_of(*arguments: Any) -> dict[str, Any]:
    """What the user chose, as JSON: fields of dataclasses that differ from their defaults. Tokens are left out."""
    chosen: dict[str, Any] = {}
    for group in arguments:
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if field.name.endswith("token") or not isinstance(
                value, str | int | float | bool | list | dict | None
            ):
                continue
            if value not in (field.default, {}, []):
                chosen[field.name] = str(value) if isinstance(value, str) else value  # an enumeration's value
    return chosen


def write_results(directory: str | Path, results: Mapping[str, Any]) -> None:
    """Write `all_results.json`, whole or not at all, on the main process alone."""
    if PartialState().is_main_process:
        write_json(Path(directory) / RESULTS_NAME, results)


def write_json(path: Path, content: Any) -> None:
    """Write JSON to a temporary file, then move it into place: a killed process leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_results(directory: str | Path) -> dict[str, Any] | None:
    """The content of `all_results.json`, or None where there is none."""
    path = Path(directory) / RESULTS_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def metric_differences(records: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, float]:
    """Second record minus first, for every metric."""
    first, second = records
    return {name: second[name] - first[name] for name in metrics}


def print_table(title: str, records: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> None:
    """Print one row a run; for two runs their difference too.

    Args:
        title: above the table.
        records: results of runs, each with `method` (how to call it), `seconds` and all `metrics`.
        metrics: which numbers to show, e.g. `["eval_accuracy", "eval_loss"]`.
    """
    if not PartialState().is_main_process:
        return
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    for name in metrics:
        table.add_column(name.removeprefix("eval_"), justify="right")
    table.add_column("seconds", justify="right")
    for record in records:
        table.add_row(
            record["method"],
            *(f"{record[name]:.4f}" for name in metrics),
            f"{record['seconds']:.0f}",
            end_section=True,
        )
    if len(records) == 2:
        differences = metric_differences(records, metrics)
        table.add_row("difference", *(f"{differences[name]:+.4f}" for name in metrics), "")
    console.print(table)


def shown_metrics(record: Mapping[str, Any]) -> list[str]:
    """The evaluation metrics of a record that a table shows: all but timings."""
    hidden = ("runtime", "per_second", "preparation_time", "samples")
    return [name for name in record if name.startswith("eval_") and not name.endswith(hidden)]
