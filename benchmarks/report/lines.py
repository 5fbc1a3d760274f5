"""Finished runs of a study, as they are read from its JSON lines: whole or in part."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.report.choice import best_candidates
from benchmarks.report.merging import merged
from benchmarks.report.planned import Plan, described, of_plan, plan_of
from benchmarks.run_file import RunFile
from rgd_hf import ReweightingArguments
from rgd_hf.scripts.errors import UserError

Record = Mapping[str, Any]

BASELINE = "erm"
STUDY_NAME = "study.json"
RUN_OPTIONS = ("seed", "first_seed", "first_trial", "data_seed", "learning_rate")
# At these commits the log of a table's training ended with the best model evaluated again, as if of the last epoch.
BEST_AGAIN = ("72c6381", "ae36080")
# Lines from before they told which of the settings are the method's own.
METHOD_OPTIONS = (
    *(field.name for field in fields(ReweightingArguments)),
    *("objectives", "reweightings", "label_smoothing_factor"),
)
KINDS = ("text", "images", "domains", "tabular")


@dataclass(frozen=True)
class Records:
    """The runs of a study.

    Attributes:
        final: runs that are compared, by data set, method and seed.
        tuning: runs of the settings tried, by data set, method, seed, candidate and part (`""` where there is none).
        failed: cell and reason of those that ended with an error.
        checkpointed: lines with the checkpoints of a training on several domains, by data set.
        study: the study's file as it is now; empty for lines alone.
        left_out: what of an earlier version of the study's file lines are there, and how many.
    """

    final: Mapping[tuple[str, str, int], Record]
    tuning: Mapping[tuple[str, str, int, str, str], Record]
    failed: Mapping[str, str] = field(default_factory=dict)
    checkpointed: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    study: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets with a final run, text first, tables last, each kind by name."""
        kinds = {
            name: str(record.get("kind", "")) for (name, _, _), record in reversed(list(self.final.items()))
        }
        return sorted(kinds, key=lambda name: (KINDS.index(k) if (k := kinds[name]) in KINDS else 99, name))

    @cached_property
    def searched(self) -> list[str]:
        """Data sets whose final runs a random search chose."""
        found = {name for (name, _, _), record in self.final.items() if record.get("draws")}
        return [name for name in self.datasets if name in found]

    @cached_property
    def plan(self) -> Plan:
        """What the study's file plans."""
        return plan_of(self.study)

    def methods(self, dataset: str) -> set[str]:
        """Methods of a data set that have a run of any stage, finished or failed."""
        found = {key[1] for runs in (self.final, self.tuning) for key in runs if key[0] == dataset}
        parts = [cell.split("/") for cell in self.failed]
        return found | {part[1] for part in parts if len(part) > 1 and part[0] == dataset}

    def is_same_model(self, dataset: str, method: str) -> bool:
        """Whether a method is trained by the recipe of ERM on a data set: one with a script of its own is another model."""
        of_both = (self.runs(dataset, name) for name in (method, BASELINE))
        recipes = {run.get("settings", {}).get("recipe") for runs in of_both for run in runs.values()}
        return len(recipes) < 2

    def compared_with(self, method: str) -> str:
        """The method that this one adds something to."""
        return next(
            (
                str(r.get("compared_with", BASELINE))
                for (_, name, _), r in self.final.items()
                if name == method
            ),
            BASELINE,
        )

    def runs(self, dataset: str, method: str) -> Mapping[int, Record]:
        """Final runs by seed, in the order of the seeds."""
        return self._by_method.get((dataset, method), {})

    @cached_property
    def _by_method(self) -> dict[tuple[str, str], dict[int, Record]]:
        found: dict[tuple[str, str], dict[int, Record]] = {}
        for dataset, method, seed in sorted(self.final):
            found.setdefault((dataset, method), {})[seed] = self.final[dataset, method, seed]
        return found

    def best_candidates(self, dataset: str, method: str, part: str = "") -> list[str]:
        """The settings that tuning chose for a method, then those that tied; none where it was not tuned, or not to the end."""
        return self._best.get((dataset, method, part), [])

    @cached_property
    def _best(self) -> dict[tuple[str, str, str], list[str]]:
        return _best_candidates(self.tuning)

    def mixed(self) -> list[str]:
        """Data sets and methods with runs that no comparison is made of: the study was edited between them.

        Runs of a method may differ in seed, and those of ERM and a method in how they re-weight and in the learning rate that
        tuning chose, but not in the one that it multiplies.

        Returns:
            Lines `"dataset/method: differing settings"`.
        """
        return [f"{dataset}/{method}: {', '.join(names)}" for (dataset, method), names in self._mixed.items()]

    def comparable(self, dataset: str, *methods: str) -> bool:
        """Whether none of these methods is `mixed` on a data set."""
        return not any((dataset, method) in self._mixed for method in methods)

    @cached_property
    def _mixed(self) -> dict[tuple[str, str], list[str]]:
        found = {}
        for (dataset, method), runs in sorted(self._by_method.items()):
            differing = _differing(list(self.runs(dataset, BASELINE).values()), list(runs.values()))
            if differing:
                found[dataset, method] = differing
        return found

    def pairs(self, dataset: str, method: str, baseline: str = BASELINE) -> dict[int, tuple[Record, Record]]:
        """Runs of two methods by seed, of those that both have, trained on the same device."""
        ours, theirs = self.runs(dataset, method), self.runs(dataset, baseline)
        both = {seed: (ours[seed], theirs[seed]) for seed in ours if seed in theirs}
        return {s: pair for s, pair in both.items() if len({run.get("device") for run in pair}) == 1}

    @cached_property
    def unpaired(self) -> int:
        """How many runs are in no comparison with ERM because that of their seed was on another device."""
        return sum(
            len(runs.keys() & self.runs(dataset, BASELINE).keys()) - len(self.pairs(dataset, method))
            for (dataset, method), runs in self._by_method.items()
        )

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
    """Read all `runs*.jsonl` of a directory, and its `study.json` where there is one.

    Lines that are not of the study as its file is now are left out. Of two others with the same cell the later one counts;
    of final runs of a method and seed with several settings, those that tuning chose, or that this seed's own validation
    rows choose in a random search. Parts of a run count once all are there. A line that a killed process left half written
    is passed over.

    Raises:
        UserError: there is no such file, it is not of a study, or no final run is in it.
    """
    try:
        study = _study(directory)
        lines = RunFile(directory, key="cell").lines()
        fitting, left_out = of_plan(lines, plan_of(study))
        by_cell = {line["cell"]: line for line in fitting}
        records = _sort_out(by_cell, study, described(left_out))
    except (KeyError, TypeError) as error:
        raise UserError(
            f"a line of the runs*.jsonl in {str(directory)!r} has no {error}: they are not runs of benchmarks.study. "
            "Give the directory of a study as --results_dir."
        ) from error
    if not lines:
        raise UserError(
            f"there is no finished run in {str(directory)!r} (runs*.jsonl): "
            f"`python -m benchmarks.study benchmarks/configs/compare.yaml --output_dir {directory}` makes them."
        )
    if not records.final:
        raise UserError(
            f"{str(directory)!r} holds no final run yet ({len(records.tuning)} of tuning, {len(records.failed)} "
            f"failed{f', {len(left_out)} of an earlier version of its study.json' if left_out else ''}): let "
            "`python -m benchmarks.study` resume."
        )
    return records


def _study(directory: Path) -> Mapping[str, Any]:
    path = directory / STUDY_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _differing(erm: Sequence[Record], own: Sequence[Record]) -> list[str]:
    """Settings in which the runs of a method differ that should not, among themselves or from those of ERM."""
    method_options = {*METHOD_OPTIONS, *(name for run in own for name in run.get("method_options", ()))}
    of_erm, of_own = ([run.get("settings", {}) for run in runs] for runs in (erm, own))
    same_recipe = not _differ("recipe", [*of_erm, *of_own])
    names = {name for settings in (*of_erm, *of_own) for name in settings}.difference(RUN_OPTIONS)
    tried = {name for run in own for name in _settings_tried(run)}
    found = [
        name
        for name in sorted(names - tried)
        if _differ(name, of_own)
        or (same_recipe and name not in method_options and _differ(name, [*of_erm, *of_own]))
    ]
    rates = {rate for run in ([*erm, *own] if same_recipe else own) if (rate := _base_rate(run)) is not None}
    if len(rates) > 1:
        found.append("learning_rate")
    if len({candidate_of(run) for run in own if not run.get("draws")}) > 1:
        found.append("settings that tuning chose")
    return found


def _base_rate(run: Record) -> str | None:
    """The learning rate that tuning multiplies, as far as numbers agree; None where a line does not tell it."""
    rate, factor = run.get("settings", {}).get("learning_rate"), run.get("learning_rate_factor")
    if rate is None or factor is None or run.get("draws"):
        return None
    return f"{rate / factor / run.get('learning_rate_scale', 1.0):.6g}"


def _differ(name: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    return any(each.get(name) != settings[0].get(name) for each in settings)


def _settings_tried(record: Record) -> set[str]:
    """Settings that a random search drew for this run alone."""
    return set(record.get("settings", {})) - {"recipe"} if record.get("draws") else set()


def _best_candidates(
    tuning: Mapping[tuple[str, str, int, str, str], Record],
) -> dict[tuple[str, str, str], list[str]]:
    scores: dict[tuple[str, str, str], dict[str, dict[int, float]]] = {}
    for (dataset, method, seed, candidate, part), record in tuning.items():
        scores.setdefault((dataset, method, part), {}).setdefault(candidate, {})[seed] = record["score"]
    return {
        key: best_candidates(by_candidate, {seed for by_seed in by_candidate.values() for seed in by_seed})
        for key, by_candidate in scores.items()
    }


def _without_best_again(record: Record) -> Record:
    """A line whose last point does not have the best epoch's validation loss and score beside the last epoch's training loss."""
    history, best_epoch = record.get("history", ()), record.get("metrics", {}).get("best_epoch")
    if record.get("commit") not in BEST_AGAIN or best_epoch is None or not history:
        return record
    last, steps_per_epoch = history[-1], history[0]["step"]
    if last["step"] == best_epoch * steps_per_epoch:
        return record
    last = {name: value for name, value in last.items() if not name.startswith("eval_")}
    return {**record, "history": [*history[:-1], last]}


def candidate_of(record: Record) -> str:
    """The settings of a run; lines from before they had a name have a factor of the learning rate alone."""
    if "candidate" in record:
        return str(record["candidate"])
    return f"lr{float(record.get('learning_rate_factor', 1.0)):g}"


def _sort_out(
    by_cell: Mapping[str, Record], study: Mapping[str, Any], left_out: Mapping[str, int]
) -> Records:
    finals: dict[tuple[str, str, int], list[Record]] = {}
    tuning: dict[tuple[str, str, int, str, str], Record] = {}
    failed: dict[str, str] = {}
    checkpointed: dict[str, list[Record]] = {}
    for cell, record in by_cell.items():
        score = record.get("score", math.nan)
        if "error" in record:
            failed[cell] = " ".join(str(record["error"]).split())
            continue
        if not math.isfinite(score):
            failed[cell] = f"its score is {score}"
            continue
        record = _without_best_again(record)
        if record["stage"] != "tuning" and record.get("checkpoints"):
            checkpointed.setdefault(record["dataset"], []).append(record)
        key = record["dataset"], record["method"], record["seed"]
        if record["stage"] == "final":
            finals.setdefault(key, []).append(record)
        elif record["stage"] == "tuning":
            tuning[(*key, candidate_of(record), record.get("part", ""))] = record
    # Tuning runs that came later may have changed the choice: lines of both are there, as other cells.
    chosen = _best_candidates(tuning)
    final = {
        key: found for key, runs in finals.items() if (found := merged(_chosen(runs, chosen))) is not None
    }
    # A cell's name has its settings: a failed one may have been followed by one with others that did not fail.
    remaining = {
        cell: reason
        for cell, reason in sorted(failed.items())
        if by_cell[cell]["stage"] != "final"
        or (by_cell[cell]["dataset"], by_cell[cell]["method"], by_cell[cell]["seed"]) not in final
    }
    return Records(final, tuning, remaining, checkpointed, study, left_out)


def _chosen(runs: Sequence[Record], chosen: Mapping[tuple[str, str, str], list[str]]) -> list[Record]:
    """One run a part: with the settings that tuning chose, or the last where there is none of them.

    In a random search every part has the run with the best validation score, once all draws are there.
    """
    by_part: dict[str, list[Record]] = {}
    for run in runs:
        by_part.setdefault(run.get("part", ""), []).append(run)
    found = []
    for part, of_part in by_part.items():
        last = of_part[-1]
        if last.get("draws"):
            if len(of_part) >= last["draws"]:
                found.append(max(of_part, key=lambda run: run["validation_score"]))
            continue
        best = chosen.get((last["dataset"], last.get("tuned_as", last["method"]), part), [])
        candidate = next(iter(best), None)
        found.append(next((run for run in reversed(of_part) if candidate_of(run) == candidate), last))
    return found
