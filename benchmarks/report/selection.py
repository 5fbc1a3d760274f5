"""What other rules than the study's would have chosen among the checkpoints of trainings on several domains."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.domains.selection import RULES
from benchmarks.report.formats import marked, mean_and_spread, table
from benchmarks.report.lines import BASELINE, Record, Records, candidate_of
from benchmarks.report.merging import of_parts
from benchmarks.report.methods import in_order, method_title
from benchmarks.report.progress import interim
from rgd_hf.comparison.statistics import mean_interval


def by_rule(records: Records, dataset: str) -> list[str]:
    """Markdown: a table per rule of DomainBed, one row per method; none where no line has checkpoints.

    A rule chooses among the checkpoints of all settings that a seed was finally trained with, of each held-out domain; the
    score is the mean accuracy over these domains.
    """
    lines: list[str] = []
    runs = [
        run
        for run in records.checkpointed.get(dataset, ())
        if records.comparable(dataset, BASELINE, run["method"])
    ]
    domains, by_method = _held_out(records, dataset, runs), _by_method(runs)
    places = {method: _devices(of_method) for method, of_method in by_method.items()}
    for title, rule in RULES.values():
        scores = {method: _scores(of_method, rule, domains) for method, of_method in by_method.items()}
        scores = {method: found for method, found in scores.items() if found}
        if BASELINE not in scores:
            continue
        body = []
        for method in in_order(set(scores)):
            pairs = [
                100 * (s - scores[BASELINE][seed])
                for seed, s in scores[method].items()
                if seed in scores[BASELINE] and places[method][seed] == places[BASELINE][seed]
            ]
            found = mean_interval(pairs)
            difference = marked(found) + interim(records, dataset, found, method)
            difference = "" if method == BASELINE else difference
            body.append([method_title(method), mean_and_spread(list(scores[method].values())), difference])
        lines += [*table([f"by {title}", "accuracy (%, ± sd)", "− ERM (points)"], body), ""]
    return lines


def _by_method(runs: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for run in runs:
        found.setdefault(run["method"], []).append(run)
    return found


def _held_out(records: Records, dataset: str, runs: Sequence[Record]) -> list[str]:
    """The domains that are held out in turn: by the study's file, else in any run, whatever its method."""
    trained = (run["part"] for run in runs if "+" not in run.get("part", "+"))
    return sorted({*records.plan.parts(dataset), *trained})


def _scores(runs: Sequence[Record], rule: Any, domains: Sequence[str]) -> dict[int, float]:
    """By seed, of those in which every one of `domains` has a checkpoint that the rule chose among all draws."""
    found = {}
    number = Counter((run["seed"], run["part"]) for run in runs)
    for seed in sorted({run["seed"] for run in runs}):
        of_seed = [
            _as_a_rule_reads_it(run)
            for run in runs
            if run["seed"] == seed and number[seed, run["part"]] >= (run.get("draws") or 1)
        ]
        choices = [rule(of_seed, domain, _environments(runs)) for domain in domains]
        if domains and all(choice is not None for choice in choices):
            found[seed] = float(np.mean([choice.accuracy for choice in choices]))
    return found


def _devices(runs: Sequence[Record]) -> dict[int, Any]:
    """By seed."""
    return {
        seed: of_parts([run for run in runs if run["seed"] == seed], "device")
        for seed in {run["seed"] for run in runs}
    }


def _as_a_rule_reads_it(run: Record) -> Mapping[str, Any]:
    parts = str(run["part"]).split("+")
    return {
        "name": run["cell"],
        "held_out": parts,
        "draw": candidate_of(run),
        "checkpoints": run["checkpoints"],
    }


def _environments(runs: Sequence[Record]) -> list[str]:
    suffix = "_out_accuracy"
    names = {name for run in runs for name in run["checkpoints"][0] if name.endswith(suffix)}
    return sorted(name.removesuffix(suffix) for name in names)
