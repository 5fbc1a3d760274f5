"""Runs the cells of a study, one after the other or as Ray's tasks, and keeps a JSON line of each."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.run_file import RunFile, duration
from benchmarks.study.cells import CannotRun, Cell, identity, plan, resolve_cell
from benchmarks.study.machine import git_commit
from benchmarks.study.scripts import CHECKOUT
from benchmarks.study.specification import Study
from benchmarks.study.training import KEY, Line, train_cell
from rgd_hf.scripts.results import package_versions

MISSING = "missing"


class Runner:
    """Runs what is not finished yet.

    Args:
        study: what is compared.
        directory: the directory of the JSON lines, one file per shard.
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
        now = (git_commit(CHECKOUT), package_versions())
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
    def finished(self) -> dict[str, Line]:
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

    def _known(self) -> dict[Cell, tuple[Cell, Mapping[str, Any]]]:
        """By cell, the same with its settings, and the record of its run, which finished or failed."""
        found: dict[Cell, tuple[Cell, Mapping[str, Any]]] = {}
        finished = self.finished
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
        missing, started = self.begin(), time.perf_counter()
        for number, cell in enumerate(missing):
            left = missing[number:]
            if not self.fits(cell, time_budget, started):
                return left
            expected = self.seconds_of(left)
            shown = f", about {duration(expected)} left" if expected is not None else ""
            place = f"[{len(self.cells) - len(left) + 1}/{len(self.cells)}{shown}]"
            try:
                resolved = resolve_cell(self.study, cell, self.finished)
            except CannotRun as error:
                self.cannot_run(cell, error, place)
                continue
            self.report(f"{place} {resolved.name}")
            self.keep(resolved, train_cell(self.study, resolved))
        return []

    def begin(self) -> list[Cell]:
        """Make the files that lines go to, say what is finished, and return what is not."""
        self.file.prepare()
        missing = self.missing()
        if len(missing) < len(self.cells):
            before = f", {len(self.failed)} failed before" if self.failed else ""
            done = len(self.cells) - len(missing) - len(self.failed)
            self.report(f"{done} of {len(self.cells)} runs are finished already{before}.")
        return missing

    def fits(self, cell: Cell, time_budget: float | None, started: float) -> bool:
        """Whether a cell may be begun so many seconds after `started`, a time of `time.perf_counter`."""
        if time_budget is None:
            return True
        remaining = time_budget - (time.perf_counter() - started)
        return remaining > 0 and (self.seconds(cell, max) or 0.0) <= remaining

    def keep(self, cell: Cell, line: Line) -> None:
        """Write a line to the disk, and say what it says."""
        self.file.append(line)
        self.records[line[KEY]] = line
        if "error" in line:
            self.failed[cell] = line["error"]
            self.report(f"  failed: {line['error']}")
        else:
            self.report(f"  {line['score_name']} {line['score']:.4f} ({line['seconds']:.1f} s)")

    def cannot_run(self, cell: Cell, error: CannotRun, place: str = "") -> None:
        """Remember a cell that lacks the result of another."""
        self.failed[cell] = str(error)
        self.report(f"{place} {cell.name}".strip())
        self.report(f"  failed: {error}")

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
