"""Finished runs of a study, as they are read from its JSON lines: whole or in part."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.report.learning_rates import best_factor
from rgd_hf import ReweightingArguments
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.run_file import RunFile

Record = Mapping[str, Any]

BASELINE = "erm"
OF_A_RUN = ("seed", "first_seed", "first_trial", "data_seed", "learning_rate")
OF_A_METHOD = (
    *(field.name for field in dataclasses.fields(ReweightingArguments)),
    *("objectives", "reweightings", "label_smoothing_factor"),
)
KINDS = ("text", "images", "domains", "tabular")


@dataclass(frozen=True)
class Records:
    """The runs of a study.

    Attributes:
        final: runs that are compared, by data set, method and seed.
        tuning: scores of the learning rates tried, by data set, method, seed and factor.
        failed: cell and reason of those that ended with an error.
    """

    final: Mapping[tuple[str, str, int], Record]
    tuning: Mapping[tuple[str, str, int, float], Record]
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets with a final run, text first, tables last, each kind by name."""
        kinds = {
            name: str(record.get("kind", "")) for (name, _, _), record in reversed(list(self.final.items()))
        }
        return sorted(kinds, key=lambda name: (KINDS.index(k) if (k := kinds[name]) in KINDS else 99, name))

    def methods(self, dataset: str) -> set[str]:
        """Methods of a data set that have a run of any stage, finished or failed."""
        found = {key[1] for runs in (self.final, self.tuning) for key in runs if key[0] == dataset}
        parts = [cell.split("/") for cell in self.failed]
        return found | {part[1] for part in parts if len(part) > 1 and part[0] == dataset}

    def runs(self, dataset: str, method: str) -> Mapping[int, Record]:
        """Final runs by seed, in the order of the seeds."""
        return self._by_method.get((dataset, method), {})

    @cached_property
    def _by_method(self) -> dict[tuple[str, str], dict[int, Record]]:
        found: dict[tuple[str, str], dict[int, Record]] = {}
        for dataset, method, seed in sorted(self.final):
            found.setdefault((dataset, method), {})[seed] = self.final[dataset, method, seed]
        return found

    def best_factor(self, dataset: str, method: str) -> float | None:
        """The learning-rate factor that tuning chose for a method; None where it was not tuned, or not to the end."""
        return _best_factors(self.tuning).get((dataset, method))

    def mixed(self) -> list[str]:
        """Data sets and methods with runs that no comparison is made of: the study was edited between them.

        Runs of a method may differ in seed and learning rate, and those of ERM and a method in how they re-weight.

        Returns:
            Lines `"dataset/method: differing settings"`.
        """
        found = []
        for (dataset, method), runs in sorted(self._by_method.items()):
            erm = [record.get("settings", {}) for record in self.runs(dataset, BASELINE).values()]
            own = [record.get("settings", {}) for record in runs.values()]
            names = {name for settings in (*erm, *own) for name in settings}.difference(OF_A_RUN)
            differing = [
                name
                for name in sorted(names)
                if _differ(name, own) or (name not in OF_A_METHOD and _differ(name, [*erm, *own]))
            ]
            if differing:
                found.append(f"{dataset}/{method}: {', '.join(differing)}")
        return found

    def seeds(self, dataset: str) -> list[int]:
        """Seeds of which any method has a final run."""
        return sorted({seed for name, _, seed in self.final if name == dataset})

    def missing(self) -> list[str]:
        """Cells that other cells lead to expect: every method of a data set with every seed of the data set.

        Failed ones are among them. A seed of which no run is finished is not known, and not listed.
        """
        cells = []
        for dataset in self.datasets:
            for seed in self.seeds(dataset):
                for method in sorted(self.methods(dataset)):
                    if (dataset, method, seed) not in self.final:
                        cells.append(f"{dataset}/{method}/seed{seed}")
        known = set(self.datasets)
        only_tuned = {name for name, *_ in self.tuning} - known
        return [*cells, *(f"{name}: no final run" for name in sorted(only_tuned))]


def read_records(directory: Path) -> Records:
    """Read all `runs*.jsonl` of a directory.

    Of two lines with the same cell the later one counts; of final runs of a method and seed with several learning rates,
    the one that tuning chose. A line that a killed process left half written is passed over.

    Raises:
        UserError: there is no such file, it is not of `compare.py`, or no final run is in it.
    """
    try:
        by_cell = RunFile(directory, key="cell").read()
        records = _sort_out(by_cell)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"a line of the runs*.jsonl in {str(directory)!r} has no {error}: they are not runs of benchmarks.study. "
            "Give the directory of a comparison as --results_dir."
        ) from error
    if not by_cell:
        raise UserError(
            f"there is no finished run in {str(directory)!r} (runs*.jsonl): "
            f"`python -m benchmarks.study benchmarks/configs/compare.yaml --output_dir {directory}` makes them."
        )
    if not records.final:
        raise UserError(
            f"{str(directory)!r} holds no final run yet ({len(records.tuning)} of tuning, {len(records.failed)} "
            "failed): let `python -m benchmarks.study` go on."
        )
    return records


def _differ(name: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    return any(each.get(name) != settings[0].get(name) for each in settings)


def _best_factors(
    tuning: Mapping[tuple[str, str, int, float], Record],
) -> dict[tuple[str, str], float | None]:
    scores: dict[tuple[str, str], dict[float, dict[int, float]]] = {}
    for (dataset, method, seed, factor), record in tuning.items():
        scores.setdefault((dataset, method), {}).setdefault(factor, {})[seed] = record["score"]
    return {
        key: best_factor(by_factor, {seed for by_seed in by_factor.values() for seed in by_seed})
        for key, by_factor in scores.items()
    }


def _sort_out(by_cell: Mapping[str, Record]) -> Records:
    finals: dict[tuple[str, str, int], list[Record]] = {}
    tuning: dict[tuple[str, str, int, float], Record] = {}
    failed: dict[str, str] = {}
    for cell, record in by_cell.items():
        score = record.get("score", math.nan)
        if "error" in record:
            failed[cell] = " ".join(str(record["error"]).split())
        elif not math.isfinite(score):
            failed[cell] = f"its score is {score}"
        elif record["stage"] == "final":
            finals.setdefault((record["dataset"], record["method"], record["seed"]), []).append(record)
        else:
            tuning[record["dataset"], record["method"], record["seed"], _factor(record)] = record
    # Tuning runs that came later may have changed the learning rate: lines of both are there, as other cells.
    chosen = _best_factors(tuning)
    final = {key: _of_chosen_rate(runs, chosen) for key, runs in finals.items()}
    # A cell's name has its learning rate: a failed one may have been followed by one with another that did not fail.
    remaining = {
        cell: reason
        for cell, reason in sorted(failed.items())
        if by_cell[cell]["stage"] != "final"
        or (by_cell[cell]["dataset"], by_cell[cell]["method"], by_cell[cell]["seed"]) not in final
    }
    return Records(final, tuning, remaining)


def _factor(record: Record) -> float:
    return float(record.get("learning_rate_factor", 1.0))


def _of_chosen_rate(runs: Sequence[Record], chosen: Mapping[tuple[str, str], float | None]) -> Record:
    """The last run with the learning rate that tuning chose; the last of all where there is none of it."""
    tuned_as = runs[-1].get("tuned_as", runs[-1]["method"])
    factor = chosen.get((runs[-1]["dataset"], tuned_as))
    return next((run for run in reversed(runs) if _factor(run) == factor), runs[-1])
