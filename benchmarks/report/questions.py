"""The questions of a study's file, and what its runs answer."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from benchmarks.report.formats import NOTHING, SAME_RUNS, counted, detectable, marked, table, verdict
from benchmarks.report.lines import Records
from benchmarks.report.methods import difference_title
from benchmarks.report.progress import interim, interim_mean
from benchmarks.report.summary import (
    SCORE,
    decimals_of,
    difference,
    difference_values,
    in_points,
    no_run_has,
    same_runs,
)
from rgd_hf.comparison.directions import is_lower_better
from rgd_hf.comparison.statistics import Estimate, mean_interval, smallest_detectable


def answers(records: Records) -> list[str]:
    """Markdown: a table per question, one row per data set, and the mean over them; none where nothing was asked."""
    lines: list[str] = []
    for question in records.study.get("questions", ()):
        lines += _answer(records, question)
    return ["## Questions", "", "Those of the study's file as it is now.", "", *lines] if lines else []


def _answer(records: Records, question: Mapping[str, Any]) -> list[str]:
    (ours, theirs), metric = question["compare"], question.get("metric", SCORE)
    names = [name for name in question.get("datasets") or records.datasets if name in records.datasets]
    found = {name: difference(records, name, ours, theirs, metric) for name in names}
    found = {name: estimate for name, estimate in found.items() if estimate.n}
    title = f"### {question['ask']}"
    of_both = [name for name in names if records.runs(name, ours) and records.runs(name, theirs)]
    lacking = [text for name in of_both if (text := no_run_has(records, name, [metric]))]
    if not found:
        nothing = (
            "No two runs of both methods make a pair yet."
            if of_both
            else "No data set has runs of both methods yet."
        )
        return [title, "", " ".join(lacking) or nothing, ""]
    lower, decimals = is_lower_better(metric), decimals_of(metric)
    unit = "points" if in_points(metric) else "its own unit"
    what = f"{difference_title(ours, theirs)} ({'' if metric == SCORE else metric + ', '}{unit})"
    same = [name for name in found if same_runs(records, name, ours, theirs)]
    body = [
        [
            name,
            str(estimate.n),
            (SAME_RUNS if name in same else marked(estimate, lower, decimals))
            + interim(records, name, estimate, ours, theirs),
            NOTHING if name in same else _power(records, name, ours, theirs, metric),
        ]
        for name, estimate in found.items()
    ]
    means = mean_interval([estimate.mean for estimate in found.values()])
    if len(found) > 1:
        # Zeros that could not have been otherwise say nothing about the spread.
        spread = math.nan if same else smallest_detectable([estimate.mean for estimate in found.values()])
        title_of_mean = "mean over data sets" + (f", {len(same)} of them {SAME_RUNS}" if same else "")
        early = interim_mean(records, found, (ours, theirs), question.get("datasets", ()))
        body.append(
            [
                title_of_mean,
                str(means.n),
                marked(means, lower, decimals) + early,
                detectable(spread, decimals),
            ]
        )
    header = ["data", "pairs", what, "detectable"]
    return [
        title,
        "",
        *table(header, body),
        "",
        " ".join([_sentence(found, lower, same, decimals), *lacking]),
        "",
    ]


def _power(records: Records, dataset: str, ours: str, theirs: str, metric: str) -> str:
    values = difference_values(records, dataset, ours, theirs, metric)
    return detectable(smallest_detectable(values), decimals_of(metric))


def _sentence(found: Mapping[str, Estimate], lower: bool, same: Collection[str], decimals: int) -> str:
    apart = f" On {counted(len(same), 'data set')} both are {SAME_RUNS}." if same else ""
    verdicts = [verdict(estimate, decimals) for name, estimate in found.items() if name not in same]
    flip = {"gain": "loss", "loss": "gain"} if lower else {}
    counts = [flip.get(str(name), str(name)) for name in verdicts if name is not None]
    if not counts:
        return apart.strip() or "Too few seeds for an interval."
    each = (counted(counts.count(name), name) for name in ("gain", "tie", "loss"))
    return f"Of {counted(len(counts), 'data set')}: {', '.join(each)}.{apart}"
