"""The training rows that carried the most weight, as they stand in the user's table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import PartialState

from rgd_hf.observers import HardExample
from rgd_hf.scripts.tabular.preprocessing import MISSING
from rgd_hf.scripts.tabular.splits import PreparedTable, Splits
from rgd_hf.scripts.tabular.training import TrainedNetwork, predict
from rgd_hf.scripts.training.hard_examples import (
    Columns,
    most_weighted,
    render,
    short_table,
    title_of,
    what_to_look_for,
    write_list,
)

MAX_COLUMNS = 24
"""The page shows the rows of a table with more of them as one text each."""
MAX_CHARACTERS = 200


def list_hard_rows(
    trained: TrainedNetwork,
    count: int,
    table: PreparedTable,
    splits: Splits,
    names: Sequence[str],
    method: str,
    directory: Path,
) -> None:
    """Write `hard_examples.json` and `hard_examples.html` into `directory`, and print the first ten.

    Every process has to call it; only the main process predicts and writes.

    Args:
        trained: its trainer has trained with the observer `HardExamples`.
        count: rows to list.
        table: the table that was split.
        splits: what the network was trained on, wrong labels included.
        names: columns to show.
        method: `network/objective`.
        directory: made where it is missing.
    """
    examples = most_weighted(trained.trainer, count)
    if not PartialState().is_main_process:
        return
    rows = hard_rows(trained, examples, table, splits, names)
    shown = [_as_text(row) for row in rows]
    page = render(shown, _page_columns(rows, names), _introduction(rows, table, splits, method))
    title = title_of(rows, len(splits.train), trained.trainer)
    write_list(directory, rows, page, short_table(shown, _short_columns(rows), directory, title))


def hard_rows(
    trained: TrainedNetwork,
    examples: Sequence[HardExample],
    table: PreparedTable,
    splits: Splits,
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """What the list says of each example.

    Returns:
        One dict a row: `index`, its position in the table as it was given, from 0; `weight`, `loss` and `seen` (see
        `rgd_hf.observers.HardExample`); `label` that was trained on; where training labels were replaced by wrong
        ones, `label_in_table` and whether it was `replaced`; `prediction` and `correct` (not for regression) of the
        trained network; `values` of the columns.
    """
    chosen = np.array([example.index for example in examples], dtype=np.int64)
    part, positions = splits.train.select(chosen), table.rows(splits.seed)[0][chosen]
    regression, given = splits.target.is_regression, table.y[positions]
    predicted = predict(trained.model, part, trained.trainer.args)
    if not regression:
        predicted = predicted.argmax(axis=1)
    noisy = replaced_labels(table, splits).any()
    # By column: a row of several dtypes would be cast to a common one.
    values = {name: table.frame[name].iloc[positions].tolist() for name in names}

    def meaning(y: Any) -> Any:
        return float(y) if regression else splits.target.classes[y]

    rows = []
    for i, example in enumerate(examples):
        row = {**asdict(example), "index": int(table.frame.index[positions[i]]), "label": meaning(part.y[i])}
        if noisy:
            row |= {"label_in_table": meaning(given[i]), "replaced": bool(given[i] != part.y[i])}
        row["prediction"] = meaning(predicted[i])
        if not regression:
            row["correct"] = bool(predicted[i] == part.y[i])
        rows.append({**row, "values": {name: as_json(values[name][i]) for name in names}})
    return rows


def replaced_labels(table: PreparedTable, splits: Splits) -> np.ndarray:
    """Which training labels are not those of the table, bool `[training rows]`."""
    return splits.train.y != table.y[table.rows(splits.seed)[0]]


def as_json(value: Any) -> Any:
    """A value of a table as JSON can hold it: None where it is missing."""
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str) else str(value)


def readable(value: Any) -> str:
    """A value of `as_json` to be read: numbers to six digits, or to their decimal point; long texts cut."""
    if value is None:
        return MISSING
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e5 else f"{value:.0f}"
    text = str(value)
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"


def _as_text(row: Mapping[str, Any]) -> dict[Any, Any]:
    values = {name: readable(value) for name, value in row["values"].items()}
    return {
        **row,
        **{key: readable(row[key]) for key in ("label", "prediction")},
        "before": readable(row["label_in_table"]) if row.get("replaced") else "",
        # A pair, since a column of the table may be called as a key is.
        **{("values", name): value for name, value in values.items()},
        "text": ", ".join(f"{name}={value}" for name, value in values.items()),
    }


def _label_columns(rows: Sequence[Mapping[str, Any]]) -> Columns:
    before = [("label before noise", "before")] if any("replaced" in row for row in rows) else []
    return (("label", "label"), *before, ("prediction", "prediction"))


def _page_columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Columns:
    sums = (("mean weight", "weight"), ("mean loss", "loss"), ("times seen", "seen"))
    values: Columns = [(name, ("values", name)) for name in names]
    if len(names) > MAX_COLUMNS:
        values = [("values", "text")]
    return (("row", "index"), *_label_columns(rows), *sums, *values)


def _short_columns(rows: Sequence[Mapping[str, Any]]) -> Columns:
    sums = (("weight", "weight"), ("loss", "loss"), ("seen", "seen"))
    return (("row", "index"), *sums, *_label_columns(rows), ("values", "text"))


def _introduction(
    rows: Sequence[Mapping[str, Any]], table: PreparedTable, splits: Splits, method: str
) -> str:
    loss = "focal loss" if method.endswith("/focal") else "cross-entropy"
    if splits.target.is_regression:
        loss = "squared error of the standardized target"
    sentences = [
        f"Of the {len(splits.train):,} training rows of {table.name}, the {len(rows)} that carried the most weight while "
        f"{method} learned {splits.target.name} with seed {splits.seed} (of equal weights, the largest loss first). The "
        f"loss is the {loss}. Row 0 is the first row of the table as it was given."
    ]
    replaced = replaced_labels(table, splits)
    if replaced.any():
        found = sum(row["replaced"] for row in rows)
        sentences.append(
            f"--label_noise replaced {replaced.sum():,} of the training labels by wrong ones; {found} of those are "
            "listed, with their label before."
        )
    return " ".join([*sentences, what_to_look_for(rows)])
