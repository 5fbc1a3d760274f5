"""Runs the cells of a study, each as soon as what it needs is known, and keeps a JSON line of each."""

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.run_file import RunFile, duration
from benchmarks.study.cells import TUNING, CannotRun, Cell, chooses_as_now, identity, plan, resolve_cell
from benchmarks.study.machine import git_commit
from benchmarks.study.scripts import CHECKOUT
from benchmarks.study.specification import Study
from benchmarks.study.training import KEY, Line, lost_line
from benchmarks.study.workers import WorkerDied, Workers
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.training.results import package_versions

MISSING = "missing"
SLOWER = 1.5
DEATHS = 2
"""A study ends after more deaths in a row than this a worker: one cause may end all of them at once."""


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
        left_out: cells that were not begun, because a run like them showed that they would have no score.
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
        self.left_out: list[Cell] = []
        now = (git_commit(CHECKOUT), package_versions())
        self.records = {
            key: record
            for key, record in self.file.read().items()
            if (
                chooses_as_now(study, record)
                if "error" not in record
                else not (
                    retry_failed
                    or record.get("may_pass")
                    or (record.get("commit"), record.get("versions")) != now
                )
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

    def finished_cells(self) -> dict[str, tuple[Cell, Line]]:
        """Finished cells with their settings, and their lines, by name: that of the plan, and that of the line."""
        found: dict[str, tuple[Cell, Line]] = {}
        for planned, (cell, record) in self._known().items():
            if "error" not in record:
                found[planned.name] = found[cell.name] = (cell, dict(record))
        return found

    def _known(self) -> dict[Cell, tuple[Cell, Mapping[str, Any]]]:
        """By cell, the same with its settings, and the record of its run, which finished or failed.

        A final run counts once all tuning of its method has ended: what is still to be tuned may choose other settings.
        """
        found: dict[Cell, tuple[Cell, Mapping[str, Any]]] = {}
        finished = self.finished
        untuned = {
            (cell.dataset, cell.method)
            for cell in self.cells
            if cell.stage == TUNING and identity(self.study, cell) not in self.records
        }
        for cell in self.cells:
            if cell.candidate is None and (cell.dataset, self.study.methods[cell.method].tuned_as) in untuned:
                continue
            try:
                resolved = resolve_cell(self.study, cell, finished)
            except CannotRun:
                continue
            record = self.records.get(identity(self.study, resolved))
            if record is not None:
                found[cell] = (resolved, record)
        return found

    def run(self, workers: Workers, time_budget: float | None = None) -> list[Cell]:
        """Run the missing cells, in their order as far as what they need is known; what is left.

        Every line is written as soon as its cell has ended. When this ends, in whatever way, the workers do.

        Args:
            workers: what trains them.
            time_budget: seconds; no cell is begun that would not fit into what is left of them, by one and a half
                times the median run of its data set and stage so far. Those that run then are waited for.

        Raises:
            UserError: workers die again and again, and nothing else happens.
        """
        waiting, started = self._begin(), time.perf_counter()
        running: dict[Cell, Cell] = {}  # as it is planned, by what was begun
        died = 0
        with contextlib.closing(workers):
            while waiting or running:
                for cell, resolved in self._ready(waiting, running.values()):
                    if len(running) == workers.number:
                        break
                    record = self.records.get(identity(self.study, resolved))
                    if record is not None:  # tuning chose the settings of an earlier start again
                        waiting.remove(cell)
                        if "error" in record:
                            self.failed[resolved] = record["error"]
                    elif self._fits(cell, time_budget, started):
                        self.report(f"{self._place(waiting, running.values(), workers)} {resolved.name}")
                        waiting.remove(cell)
                        running[resolved] = cell
                        workers.submit(resolved)
                if not running:
                    break
                died = self._keep_next(workers, running, waiting, died)
        if any(True for _ in self._ready(waiting, ())):
            self._tell_too_long(waiting, time_budget)
            return waiting
        for cell in waiting:
            self._cannot_run(cell)
        return []

    def _begin(self) -> list[Cell]:
        """Make the files that lines go to, say what is finished, and return what is not."""
        self.file.prepare()
        missing = self.missing()
        if len(missing) < len(self.cells):
            before = f", {len(self.failed)} failed before" if self.failed else ""
            done = len(self.cells) - len(missing) - len(self.failed)
            self.report(f"{done} of {len(self.cells)} cells are finished already{before}.")
        self._tell_other_commits()
        return missing

    def _tell_other_commits(self) -> None:
        """Pairs of old and new runs differ by what the code changed, too: that is for whoever resumes to judge."""
        now = git_commit(CHECKOUT)
        of = [str(record.get("commit")) for _, record in self._known().values() if "error" not in record]
        others = [commit for commit in of if commit != str(now)]
        if others:
            named = ", ".join(dict.fromkeys(others))
            self.report(f"{len(others):,} of the finished cells are of commits {named}; this is {now}.")

    def _ready(self, waiting: Sequence[Cell], running: Collection[Cell]) -> Iterator[tuple[Cell, Cell]]:
        """Cells that can be begun, and the same with their settings.

        The final runs of a data set begin once all of its tuning has ended, also that of other methods: whenever time runs
        out, the methods have the same seeds.
        """
        tuning = {cell.dataset for cell in [*waiting, *running] if cell.stage == TUNING}
        finished = self.finished
        for cell in [*waiting]:
            if cell.candidate is None and cell.dataset in tuning:
                continue
            with contextlib.suppress(CannotRun):
                yield cell, resolve_cell(self.study, cell, finished)

    def _fits(self, cell: Cell, time_budget: float | None, started: float) -> bool:
        """Whether a cell may be begun so many seconds after `started`, a time of `time.perf_counter`."""
        if time_budget is None:
            return True
        remaining = time_budget - (time.perf_counter() - started)
        return remaining > 0 and self._needed(cell) <= remaining

    def _needed(self, cell: Cell) -> float:
        """Seconds to allow a cell for. One run of a machine that stood still must not keep all others from beginning."""
        return SLOWER * (self.seconds(cell, np.median) or 0.0)

    def _tell_too_long(self, waiting: Sequence[Cell], time_budget: float | None) -> None:
        """No start of the same command would begin these."""
        for cell in {(cell.dataset, cell.stage): cell for cell in waiting}.values():
            if time_budget and self._needed(cell) > time_budget:
                self.report(
                    f"{cell.dataset}: a {cell.stage} run may take {duration(self._needed(cell))}, longer than the whole time "
                    f"budget of {duration(time_budget)}: give a longer one."
                )

    def _place(self, waiting: Sequence[Cell], running: Collection[Cell], workers: Workers) -> str:
        expected = self.seconds_of([*waiting, *running])
        parts = [f"{len(self.cells) - len(waiting) + 1}/{len(self.cells)}"]
        if workers.number > 1:
            parts.append(f"{len(running) + 1} running")
        if expected is not None:
            parts.append(f"about {duration(expected / workers.number)} left")
        return f"[{', '.join(parts)}]"

    def _keep_next(self, workers: Workers, running: dict[Cell, Cell], waiting: list[Cell], died: int) -> int:
        """Wait for what ends next, write its lines to the disk and say what they say; how many died in a row."""
        for cell, found in workers.wait():
            del running[cell]
            died = died + 1 if isinstance(found, WorkerDied) else 0
            line = lost_line(self.study, cell, str(found)) if isinstance(found, WorkerDied) else found
            self.file.append(line)
            self.records[line[KEY]] = line
            name = f"{cell.name}: " if workers.number > 1 else ""
            if "error" in line:
                self.failed[cell] = line["error"]
                self.report(f"  {name}failed: {line['error']}")
                if line.get("lacks_score"):
                    self._leave_out(cell, waiting)
            else:
                self.report(f"  {name}{line['score_name']} {line['score']:.4f} ({line['seconds']:.1f} s)")
        if died > DEATHS * workers.number:
            raise UserError(
                f"the last {died} cells all ended without a result: {self.failed[cell]}. The lines so far are kept, and the "
                "same command resumes; with less side by side, if memory was short."
            )
        return died

    def _leave_out(self, cell: Cell, waiting: list[Cell]) -> None:
        """Let no cell wait that would have no score either: of the data set, or of the script of a method's own."""
        methods = self.study.methods
        recipe = methods[cell.method].recipe
        alike = [
            other
            for other in waiting
            if other.dataset == cell.dataset and (recipe is None or methods[other.method].recipe == recipe)
        ]
        if alike:
            self.report(
                f"  {len(alike)} more of {cell.dataset} would have no score either: they are left out."
            )
        for other in alike:
            waiting.remove(other)
        self.left_out += alike

    def _cannot_run(self, cell: Cell) -> None:
        """Remember a cell that lacks the result of another."""
        try:
            resolve_cell(self.study, cell, self.finished)
        except CannotRun as error:
            self.failed[cell] = str(error)
            self.report(f"{cell.name}\n  failed: {error}")

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
