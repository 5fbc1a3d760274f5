"""Runs the cells of a study one after the other and keeps a JSON line of each."""

import gc
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.study.adapters import RECIPES, resolve
from benchmarks.study.cells import FINAL, TUNING, CannotRun, Cell, identity, options_of, plan, resolve_cell
from benchmarks.study.history import mean_weight, read_history, weight_histogram
from benchmarks.study.machine import git_commit, peak_memory_mb, quiet_and_apart, reset_peak_memory
from benchmarks.study.recipe import Outcome
from benchmarks.study.study import BASELINE, Study
from rgd_hf.scripts.cli import as_arguments
from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.results import package_versions
from rgd_hf.scripts.run_file import RunFile, duration

KEY = "identity"
CHECKOUT = Path(__file__).resolve().parents[2]
MISSING = "missing"


class Runner:
    """Runs what is not finished yet.

    Args:
        study: what is compared.
        directory: of the JSON lines, one file a shard.
        shard: `(i, n)`: the i-th of n parts.
        report: shows a line.
        retry_failed: run again all that failed. By default that is what its user may have put right since (missing data, a
            full disk); an error of the run itself would come again as long as commit and packages are the same.

    Attributes:
        failed: reasons by cell, of this start and of earlier ones whose runs are left alone.
    """

    def __init__(
        self,
        study: Study,
        directory: Path,
        shard: tuple[int, int],
        report: Callable[[str], None],
        retry_failed: bool = False,
    ):
        self.study, self.report = study, report
        self.file = RunFile(directory, shard, KEY)
        self.cells = plan(study, shard)
        self.commit, self.versions = git_commit(Path(__file__).parent), package_versions()
        now = (self.commit, self.versions)
        self.records = {
            key: record
            for key, record in self.file.read().items()
            if "error" not in record
            or not (
                retry_failed
                or record.get("may_pass")
                or (record.get("commit"), record.get("versions")) != now
            )
        }
        self.failed: dict[Cell, str] = {
            cell: record["error"] for cell, record in self._known().values() if "error" in record
        }

    @property
    def finished(self) -> dict[str, dict[str, Any]]:
        """The records of runs that did not fail, by identity."""
        return {key: record for key, record in self.records.items() if "error" not in record}

    def missing(self) -> list[Cell]:
        """Cells of this shard that are neither finished nor left alone because they failed."""
        return [cell for cell, state in self.states().items() if state == MISSING]

    def states(self) -> dict[Cell, str]:
        """`"finished"`, `"failed"` (and left alone) or `"missing"`, by cell."""
        known = self._known()
        return {
            cell: MISSING if cell not in known else "failed" if "error" in known[cell][1] else "finished"
            for cell in self.cells
        }

    def _known(self) -> dict[Cell, tuple[Cell, dict[str, Any]]]:
        """By cell, the same with its learning rate, and the record of its run, which finished or failed."""
        found, finished = {}, self.finished
        for cell in self.cells:
            try:
                resolved = resolve_cell(self.study, cell, finished)
            except CannotRun:
                continue
            record = self.records.get(identity(self.study, resolved))
            if record is not None:
                found[cell] = (resolved, record)
        return found

    def run(self, time_budget: float | None = None) -> list[Cell]:
        """Run the missing cells in order; what is left.

        Args:
            time_budget: seconds; no cell is begun that would not fit into what is left of them, by the longest run of
                its data set and stage so far.
        """
        started = time.perf_counter()
        self.file.prepare()
        missing = self.missing()
        if len(missing) < len(self.cells):
            before = f", {len(self.failed)} failed before" if self.failed else ""
            done = len(self.cells) - len(missing) - len(self.failed)
            self.report(f"{done} of {len(self.cells)} runs are finished already{before}.")
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
        done = [record for record in self.records.values() if "error" not in record]
        of_data = [record for record in done if record["dataset"] == cell.dataset]
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
            # Without the place of this checkout: the lines are shared with others.
            where = "".join(traceback.format_exception(error)[-3:]).replace(f"{CHECKOUT}{os.sep}", "")
            reason = self._fail(cell, f"{type(error).__name__}: {error}")
            may_pass = isinstance(error, UserError | OSError | MemoryError)
            record = {**self._head(cell), "error": reason, "may_pass": may_pass, "traceback": where}
        finally:
            gc.unfreeze()
        record["seconds"] = round(time.perf_counter() - started, 2)
        record["finished"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.file.append(record)
        self.records[record[KEY]] = record
        if "score" in record:
            self.report(f"  {record['score_name']} {record['score']:.4f} ({record['seconds']:.1f} s)")

    def _fail(self, cell: Cell, reason: str) -> str:
        self.failed[cell] = " ".join(reason.split())
        self.report(f"  failed: {self.failed[cell]}")
        return self.failed[cell]

    def _head(self, cell: Cell) -> dict[str, Any]:
        data = self.study.datasets[cell.dataset]
        return {
            "cell": cell.name,
            KEY: identity(self.study, cell),
            "dataset": cell.dataset,
            "kind": RECIPES[data.recipe].kind,
            "method": cell.method,
            "tuned_as": self.study.methods[cell.method].tuned_as,
            "stage": cell.stage,
            "learning_rate_factor": cell.factor,
            "learning_rate_scale": cell.scale,
            "seed": cell.seed,
            "settings": {"recipe": data.recipe, **options_of(self.study, cell)},
            "versions": self.versions,
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
            record: Any = recipe.main(arguments)
            records = record if isinstance(record, list) else [record]
            outcome = recipe.outcome(records, Path(directory), options, data.score, tuning)
            first = cell.method == BASELINE and cell.seed == data.seeds[0] and not tuning
            found = _contents(outcome, options, cell, with_labels=first)
        if (
            data.score not in outcome.metrics
        ):  # in tuning too, which may go by another: not only when all of it is spent
            raise UserError(f"score: the recipe gave no {data.score!r}, but {listed(outcome.metrics)}.")
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
    weighted = options.get("class_weights") or options.get("objectives") == "class_weights"
    plain = not (reweighted or weighted or options.get("label_smoothing_factor"))
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
