"""One cell trained, and the line that is kept of it."""

import gc
import json
import os
import tempfile
import time
import traceback
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.study.cells import FINAL, TUNING, Cell, identity, options_of, script_of
from benchmarks.study.history import mean_weight, read_history, weight_histogram
from benchmarks.study.machine import (
    device_name,
    git_commit,
    peak_memory_mb,
    processor_name,
    quiet_and_apart,
    reset_peak_memory,
    use_plain_attention_on_cpu,
)
from benchmarks.study.measures import from_predictions
from benchmarks.study.scripts import CHECKOUT
from benchmarks.study.specification import BASELINE, Study
from rgd_hf.comparison.directions import is_lower_better
from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.training.predictions import PREDICTIONS
from rgd_hf.scripts.training.results import package_versions

KEY = "identity"
VERSIONS = cache(package_versions)
TIMING = ("runtime", "per_second", "preparation_time", "seconds")
MAY_PASS = (UserError, OSError, MemoryError, torch.OutOfMemoryError)
Line = dict[str, Any]


class NoScore(UserError):
    """A result lacks the metric that its study goes by, as all others of the recipe will."""


def train_cell(study: Study, cell: Cell) -> Line:
    """Train a cell, whose settings are chosen, and return its line; that of a failed one has an `error`.

    An error is marked `may_pass` where what its user puts right may make it pass: missing data, a full disk, too little
    memory for what runs side by side.
    """
    _freeze_imports()
    use_plain_attention_on_cpu()
    started = time.perf_counter()
    line = _head(study, cell)
    try:
        line |= _train(study, cell)
    except Exception as error:
        # Without the place of this checkout: the lines are shared with others.
        where = "".join(traceback.format_exception(error)[-3:]).replace(f"{CHECKOUT}{os.sep}", "")
        line["error"] = " ".join(f"{type(error).__name__}: {error}".split())
        line["may_pass"] = isinstance(error, MAY_PASS)
        if isinstance(error, NoScore):
            line["lacks_score"] = True
        line["traceback"] = where
    finally:
        gc.collect()
    line["seconds"] = round(time.perf_counter() - started, 2)
    line["finished"] = _now()
    return line


def lost_line(study: Study, cell: Cell, error: str) -> Line:
    """The line of a cell whose process ended before it could write one; it `may_pass`."""
    return _head(study, cell) | {"error": error, "may_pass": True, "seconds": 0.0, "finished": _now()}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@cache
def _freeze_imports() -> None:
    """What the imports made need not be walked through by every collection (half a second each)."""
    gc.collect()
    gc.freeze()


def _head(study: Study, cell: Cell) -> Line:
    data, method = study.datasets[cell.dataset], study.methods[cell.method]
    assert cell.candidate is not None
    line = {
        "cell": cell.name,
        KEY: identity(study, cell),
        "dataset": cell.dataset,
        "kind": data.kind,
        "method": cell.method,
        "tuned_as": method.tuned_as,
        "compared_with": method.compared_with,
        "stage": cell.stage,
        "candidate": cell.candidate.label,
        "learning_rate_factor": cell.candidate.factor,
        "learning_rate_scale": cell.scale,
        "seed": cell.seed,
        "settings": {"recipe": method.recipe or data.recipe, **options_of(study, cell)},
        "method_options": sorted({*method.options, *method.tune}),
        "looked_at": list(data.metrics),
        "versions": VERSIONS(),
        "device": device_name(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "commit": git_commit(CHECKOUT),
    }
    if cell.part:
        line |= {"part": cell.part, "parts": len(data.part_values)}
    if data.random_search is not None:
        line["draws"] = data.random_search.draws
    return line


def _train(study: Study, cell: Cell) -> Line:
    data, method = study.datasets[cell.dataset], study.methods[cell.method]
    options = options_of(study, cell)
    reset_peak_memory()
    with tempfile.TemporaryDirectory(prefix="study-") as directory, quiet_and_apart():
        record = script_of(data, method).run(options, directory)
        found = _contents(study, cell, record, Path(directory), options)
    metrics = found["metrics"]
    chooses = data.random_search is not None
    holds_out = cell.stage == TUNING and options.get("holdout_fraction") is not None
    # Of rows held out for it, tuning may know its own score under another name alone: MNLI has two evaluation sets.
    needed = {} if holds_out and data.chosen_by != data.score else {data.score: "score"}
    if cell.stage == TUNING or chooses:  # it needs both: or the error came when it is over
        needed.setdefault(data.chosen_by, "tuning_score")
    for name, key in needed.items():
        if name not in metrics:
            both = " for tuning_score, and that of the final runs for score" if holds_out else ""
            raise NoScore(
                f"datasets: {cell.dataset}: {key}: the recipe gave no {name!r}, but {listed(metrics)}. Choose one of these{both}."
            )
    name = data.chosen_by if cell.stage == TUNING else data.score
    score = -metrics[name] if is_lower_better(name) else metrics[name]
    if not np.isfinite(score):
        raise FloatingPointError(f"the score {name} is {score}")
    if chooses:
        value = metrics[data.chosen_by]
        found["validation_score"] = -value if is_lower_better(data.chosen_by) else value
        found["validation_score_name"] = data.chosen_by
    return {"score": score, "score_name": name, **found, "peak_memory_mb": peak_memory_mb()}


def _contents(
    study: Study, cell: Cell, record: Mapping[str, Any], directory: Path, options: Mapping[str, Any]
) -> Line:
    metrics = {
        name: round(float(value), 6)
        for name, value in {**record, **record.get("metrics", {})}.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not name.endswith(TIMING)
    }
    found: Line = {"metrics": metrics}
    state = _state(directory)
    if state.get("train_batch_size"):
        found["batch_size"] = state["train_batch_size"]
    if "checkpoints" in record:
        found["checkpoints"] = record["checkpoints"]
    if cell.stage != FINAL:
        return found
    log = state.get("log_history", [])
    weight = mean_weight(log)
    if weight is not None:
        metrics["weight_mean"] = weight
    changed = (options.get("class_weights"), options.get("label_smoothing_factor"))
    plain = options.get("reweighting") == "none" and not any(changed)
    data = study.datasets[cell.dataset]
    found["history"] = read_history(log, plain, data.chosen_by)
    histogram = weight_histogram(log)
    if histogram is not None:
        found["weight_histogram"] = histogram
    path = directory / f"{PREDICTIONS}.parquet"
    predictions = pd.read_parquet(path) if path.is_file() else None
    if predictions is None or "correct" not in predictions:
        return found
    counts = record.get("train_class_counts")
    for name, value in from_predictions(predictions, counts).items():
        metrics.setdefault(name, round(value, 6))
    right = predictions["correct"].fillna(False).to_numpy(dtype=bool)
    found["samples"] = {"correct": np.packbits(right).tobytes().hex(), "n": len(right)}
    if "row" in predictions:
        found["samples"]["rows"] = predictions["row"].tolist()
    if cell.method == BASELINE:
        losses = np.rint(100 * predictions["loss"].to_numpy(dtype=np.float64))
        found["samples"]["losses"] = np.clip(losses, 0, 99_999).astype(int).tolist()
        if cell.seed == study.datasets[cell.dataset].seeds[0]:
            found["labels"] = predictions["label"].astype(int).tolist()
            found["train_class_counts"] = counts
    return found


def _state(directory: Path) -> dict[str, Any]:
    """What the Trainer saved of its training (log, batch size), beside the results or below them."""
    states = sorted(directory.rglob("trainer_state.json"), key=lambda path: len(path.parts))
    return json.loads(states[0].read_text(encoding="utf-8")) if states else {}
