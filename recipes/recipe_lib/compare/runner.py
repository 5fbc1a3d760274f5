"""Runs the cells of a study one after the other and keeps a JSON line of each."""

import gc
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipe_lib.cli import as_arguments
from recipe_lib.compare.adapters import RECIPES, resolve
from recipe_lib.compare.cells import FINAL, TUNING, CannotRun, Cell, identity, options_of, plan, resolve_cell
from recipe_lib.compare.history import mean_weight, read_history, weight_histogram
from recipe_lib.compare.machine import git_commit, peak_memory_mb, quiet_and_apart, reset_peak_memory
from recipe_lib.compare.recipe import Outcome
from recipe_lib.compare.study import BASELINE, Study
from recipe_lib.results import package_versions
from recipe_lib.run_file import RunFile, duration

KEY = "identity"


class Runner:
    """Runs what is not finished yet.

    Args:
        study: what is compared.
        directory: of the JSON lines, one file a shard.
        shard: `(i, n)`: the i-th of n parts.
        report: shows a line.
    """

    def __init__(self, study: Study, directory: Path, shard: tuple[int, int], report: Callable[[str], None]):
        self.study, self.report = study, report
        self.file = RunFile(directory, shard, KEY)
        self.cells = plan(study, shard)
        self.records = self.file.read()
        self.commit = git_commit(Path(__file__).parent)
        self.failed: dict[str, str] = {}

    @property
    def finished(self) -> dict[str, dict[str, Any]]:
        """The records of runs that did not fail, by identity."""
        return {key: record for key, record in self.records.items() if "error" not in record}

    def missing(self) -> list[Cell]:
        """Cells of this shard that are not finished."""
        finished = self.finished
        return [cell for cell in self.cells if not self._is_finished(cell, finished)]

    def _is_finished(self, cell: Cell, finished: Mapping[str, Any]) -> bool:
        try:
            return identity(self.study, resolve_cell(self.study, cell, finished)) in finished
        except CannotRun:
            return False

    def run(self, time_budget: float | None = None) -> list[Cell]:
        """Run the missing cells in order; what is left.

        Args:
            time_budget: seconds; no cell is begun that would not fit into what is left of them, by the longest run of
                its data set and stage so far.
        """
        started = time.perf_counter()
        missing = self.missing()
        if len(missing) < len(self.cells):
            self.report(f"{len(self.cells) - len(missing)} of {len(self.cells)} runs are finished already.")
        for number, cell in enumerate(missing):
            left = missing[number:]
            if time_budget is not None:
                remaining = time_budget - (time.perf_counter() - started)
                if remaining <= 0 or (self.seconds(cell, max) or 0.0) > remaining:
                    return left
            expected = self.seconds_of(left)
            shown = f", about {duration(expected)} left" if expected is not None else ""
            place = f"[{len(self.cells) - len(left) + 1}/{len(self.cells)}{shown}]"
            self._run(cell, place)
        return []

    def seconds(self, cell: Cell, statistic: Callable[[Sequence[float]], float]) -> float | None:
        """A statistic of the seconds that runs of a cell's data set took, of its stage if there are such."""
        of_data = [record for record in self.records.values() if record["dataset"] == cell.dataset]
        of_stage = [record for record in of_data if record["stage"] == cell.stage]
        taken = [record["seconds"] for record in of_stage or of_data]
        return float(statistic(taken)) if taken else None

    def seconds_of(self, cells: Sequence[Cell]) -> float | None:
        """How long `cells` will take; data sets without a run yet are taken for an average one. None without any run."""
        kinds = {(cell.dataset, cell.stage): cell for cell in cells}
        costs = {kind: self.seconds(cell, np.mean) for kind, cell in kinds.items()}
        known = [cost for cost in costs.values() if cost is not None]
        if not known:
            return None
        average = float(np.mean(known))
        found = (costs[cell.dataset, cell.stage] for cell in cells)
        return sum(average if cost is None else cost for cost in found)

    def _run(self, cell: Cell, place: str) -> None:
        # What the imports made need not be walked through by every collection (half a second each).
        gc.collect()
        gc.freeze()
        started = time.perf_counter()
        try:
            cell = resolve_cell(self.study, cell, self.finished)
            self.report(f"{place} {cell.name}")
            record = {**self._head(cell), **self._train(cell)}
        except CannotRun as error:
            self.report(f"{place} {cell.name}")
            self._fail(cell, str(error))
            return
        except Exception as error:
            self._fail(cell, f"{type(error).__name__}: {error}")
            where = "".join(traceback.format_exception(error)[-3:])
            record = {**self._head(cell), "error": self.failed[cell.name], "traceback": where}
        finally:
            gc.unfreeze()
        record["seconds"] = round(time.perf_counter() - started, 2)
        self.file.append(record)
        self.records[record[KEY]] = record
        if "score" in record:
            self.report(f"  {record['score_name']} {record['score']:.4f} ({record['seconds']:.1f} s)")

    def _fail(self, cell: Cell, reason: str) -> None:
        self.failed[cell.name] = " ".join(reason.split())
        self.report(f"  failed: {self.failed[cell.name]}")

    def _head(self, cell: Cell) -> dict[str, Any]:
        data = self.study.datasets[cell.dataset]
        return {
            "cell": cell.name,
            KEY: identity(self.study, cell),
            "dataset": cell.dataset,
            "kind": RECIPES[data.recipe].kind,
            "method": cell.method,
            "stage": cell.stage,
            "learning_rate_factor": cell.factor,
            "learning_rate_scale": cell.scale,
            "seed": cell.seed,
            "settings": {"recipe": data.recipe, **options_of(self.study, cell)},
            "versions": package_versions(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "commit": self.commit,
        }

    def _train(self, cell: Cell) -> dict[str, Any]:
        data = self.study.datasets[cell.dataset]
        recipe, tuning = RECIPES[data.recipe], cell.stage == TUNING
        options = resolve(options_of(self.study, cell))
        reset_peak_memory()
        with tempfile.TemporaryDirectory(prefix="compare-") as directory, quiet_and_apart():
            arguments = as_arguments({**options, "output_dir": directory})
            records = recipe.main(arguments)
            outcome = recipe.outcome(records, Path(directory), options, data.score, tuning)
            first = cell.method == BASELINE and cell.seed == data.seeds[0] and not tuning
            found = _contents(outcome, options, cell, with_labels=first)
        if not np.isfinite(outcome.score):
            raise FloatingPointError(f"the score {outcome.score_name} is {outcome.score}")
        return {**found, "peak_memory_mb": peak_memory_mb()}


def _contents(outcome: Outcome, options: Mapping[str, Any], cell: Cell, with_labels: bool) -> dict[str, Any]:
    metrics = {name: round(value, 6) for name, value in outcome.metrics.items()}
    found: dict[str, Any] = {"score": outcome.score, "score_name": outcome.score_name, "metrics": metrics}
    if cell.stage != FINAL:
        return found
    weight = mean_weight(outcome.log)
    if weight is not None:
        metrics["weight_mean"] = weight
    reweighted = options.get("reweighting", options.get("reweightings", "none")) != "none"
    plain = not reweighted and not any(
        options.get(name) for name in ("class_weights", "label_smoothing_factor")
    )
    found["history"] = read_history(outcome.log, plain)
    histogram = weight_histogram(outcome.log)
    if histogram is not None:
        found["weight_histogram"] = histogram
    predictions = outcome.predictions
    if predictions is None:
        return found
    right = predictions["correct"].fillna(False).to_numpy(dtype=bool)
    found["samples"] = {"correct": np.packbits(right).tobytes().hex(), "n": len(right)}
    if "row" in predictions:
        found["samples"]["rows"] = predictions["row"].tolist()
    if cell.method == BASELINE:
        losses = np.rint(100 * predictions["loss"].to_numpy(dtype=np.float64))
        found["samples"]["losses"] = np.clip(losses, 0, 99_999).astype(int).tolist()
    if with_labels:
        found["labels"] = predictions["label"].astype(int).tolist()
        found["train_class_counts"] = outcome.train_class_counts()
    return found
