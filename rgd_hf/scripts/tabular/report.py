"""What a study found: means over seeds, paired differences with 95 % intervals, ranks over data sets."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata, ttest_rel

from rgd_hf.scripts.tabular.rivals import BOOSTING
from rgd_hf.scripts.tabular.scores import (
    CLASSIFICATION_SCORES,
    LOWER_IS_BETTER,
    REGRESSION_SCORES,
    better_is_larger,
)

Records = Sequence[Mapping[str, Any]]

PERCENT = ("accuracy", "balanced_accuracy", "f1_macro")
# A log has no width; the tables need more than the 80 columns that are taken for one.
_LOG_WIDTH = 150
console = Console() if Console().is_terminal else Console(width=_LOG_WIDTH)


def data_sets(records: Records) -> list[str]:
    """Names of the data sets, in order."""
    return list(dict.fromkeys(record["data"] for record in records))


def methods(records: Records) -> list[str]:
    """Names of the methods, in order."""
    return list(dict.fromkeys(record["method"] for record in records))


def score_names(records: Records) -> tuple[str, ...]:
    """The scores of one data set's runs, the main one first."""
    return REGRESSION_SCORES if "rmse" in records[0] else CLASSIFICATION_SCORES


def by_seed(records: Records, method: str, score: str) -> dict[int, float]:
    """A method's score for each seed."""
    return {r["seed"]: r[score] for r in records if r["method"] == method}


def mean_score(records: Records, method: str, score: str) -> float:
    """Mean over the seeds."""
    return float(np.mean(list(by_seed(records, method, score).values())))


def summarize(records: Records) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of every score, one entry a data set and method, the best first."""
    entries = []
    for data in data_sets(records):
        of_data = [record for record in records if record["data"] == data]
        names = score_names(of_data)
        rows = []
        for method in methods(of_data):
            entry: dict[str, Any] = {"data": data, "method": method}
            for name in (*names, "seconds"):
                values = list(by_seed(of_data, method, name).values())
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
                entry[name] = {"mean": float(np.mean(values)), "std": spread}
                entry["seeds"] = len(values)
            rows.append(entry)
        rows.sort(key=lambda entry: -better_is_larger(names[0], entry[names[0]]["mean"]))
        entries += rows
    return entries


def paired_difference(one: Mapping[int, float], other: Mapping[int, float]) -> dict[str, Any] | None:
    """Mean of `one - other` over the seeds of both, with its 95 % interval by Student's t; None without a seed.

    The interval covers the seeds (cut between training and validation, initialization, order of the batches), not
    the choice of the test rows, which all seeds share. It is None with fewer than 2 seeds.
    """
    seeds = sorted(set(one) & set(other))
    if not seeds:
        return None
    first, second = (np.array([scores[seed] for seed in seeds]) for scores in (one, other))
    difference = first - second
    interval: list[float] | None = None
    if len(seeds) > 1 and np.ptp(difference) > 0:
        found = ttest_rel(first, second).confidence_interval(0.95)
        interval = [float(found.low), float(found.high)]
    elif len(seeds) > 1:
        interval = [float(difference[0])] * 2
    return {"mean": float(difference.mean()), "interval": interval, "seeds": len(seeds)}


def differences(records: Records) -> list[dict[str, Any]]:
    """The main score of each network's objectives minus that of its ERM, and of its ERM minus the best boosting."""
    entries = []
    for data in data_sets(records):
        of_data = [record for record in records if record["data"] == data]
        name = score_names(of_data)[0]
        known = methods(of_data)
        boosting = [m for m in known if m in BOOSTING]
        best = max(
            boosting,
            key=lambda m: better_is_larger(name, mean_score(of_data, m, name)),
            default=None,
        )
        for method in known:
            network, _, objective = method.partition("/")
            against = best if objective == "erm" else f"{network}/erm" if objective else None
            if against is None or against not in known:
                continue
            found = paired_difference(by_seed(of_data, method, name), by_seed(of_data, against, name))
            if found:
                entries.append({"data": data, "method": method, "against": against, "score": name} | found)
    return entries


def ranks(records: Records) -> dict[str, dict[str, float]]:
    """Rank of each method by its mean main score on each data set (1 is best, ties share), and the mean rank.

    Only methods that ran on all data sets are ranked.
    """
    sets = data_sets(records)
    common = [
        m
        for m in methods(records)
        if all(any(r["data"] == d and r["method"] == m for r in records) for d in sets)
    ]
    table: dict[str, dict[str, float]] = {method: {} for method in common}
    for data in sets:
        of_data = [record for record in records if record["data"] == data]
        name = score_names(of_data)[0]
        means = [better_is_larger(name, mean_score(of_data, m, name)) for m in common]
        for method, rank in zip(common, rankdata(-np.array(means))):
            table[method][data] = float(rank)
    for of_method in table.values():
        of_method["mean"] = float(np.mean(list(of_method.values())))
    return dict(sorted(table.items(), key=lambda item: item[1]["mean"]))


def print_report(records: Records) -> None:
    """Print the three tables on the console."""
    for data in data_sets(records):
        _print_scores(data, [entry for entry in summarize(records) if entry["data"] == data])
    found = differences(records)
    if found:
        _print_differences(found)
    if len(data_sets(records)) > 1:
        _print_ranks(ranks(records))


def _print_scores(data: str, entries: Sequence[Mapping[str, Any]]) -> None:
    names = REGRESSION_SCORES if "rmse" in entries[0] else CLASSIFICATION_SCORES
    table = Table(title=f"{data}: test scores, mean ± std over the seeds", title_justify="left")
    table.add_column("method", no_wrap=True)
    table.add_column("seeds", justify="right")
    for name in (*names, "seconds"):
        arrow = "" if name == "seconds" else " ↓" if name in LOWER_IS_BETTER else " ↑"
        table.add_column(name + arrow, justify="right")
    for entry in entries:
        cells = [shown(entry[name], percent=name in PERCENT) for name in names]
        table.add_row(entry["method"], str(entry["seeds"]), *cells, f"{entry['seconds']['mean']:.1f}")
    console.print(table)


def shown(value: Mapping[str, Any], percent: bool) -> str:
    """`mean ± std`, in per cent where asked."""
    scale, digits = (100, 2) if percent else (1, 4)
    text = f"{scale * value['mean']:.{digits}f}"
    return text if value["std"] is None else f"{text} ± {scale * value['std']:.{digits}f}"


def _print_differences(entries: Sequence[Mapping[str, Any]]) -> None:
    units = [
        "accuracy in points" if in_points else "RMSE in the target's unit"
        for in_points in sorted({entry["score"] in PERCENT for entry in entries}, reverse=True)
    ]
    title = f"Paired differences over seeds, with 95 % interval ({'; '.join(units)})"
    table = Table(title=title, title_justify="left")
    for name in ("data", "method", "minus", "difference", "95 % interval", ""):
        table.add_column(name, justify="right" if name in ("difference", "95 % interval") else "left")
    for entry in entries:
        interval, verdict = entry["interval"], ""
        low, high = (None, None) if interval is None else (_signed(end, entry["score"]) for end in interval)
        between = "one seed" if interval is None else f"{low} … {high}"
        if interval is not None and interval[0] * interval[1] > 0:
            verdict = "better" if better_is_larger(entry["score"], entry["mean"]) > 0 else "worse"
        mean = _signed(entry["mean"], entry["score"])
        table.add_row(entry["data"], entry["method"], entry["against"], mean, between, verdict)
    console.print(table)


def _signed(value: float, score: str) -> str:
    """A difference in points, or with four digits: who knows the size of a target."""
    return f"{100 * value:+.2f}" if score in PERCENT else f"{value:+.4g}"


def _print_ranks(found: Mapping[str, Mapping[str, float]]) -> None:
    table = Table(title="Ranks by the mean main score (1 is best)", title_justify="left")
    table.add_column("method", no_wrap=True)
    names = list(next(iter(found.values()), {}))
    for name in names:
        table.add_column(name, justify="right")
    for method, of_method in found.items():
        table.add_row(
            method,
            *(f"{of_method[name]:g}" if name != "mean" else f"{of_method[name]:.2f}" for name in names),
        )
    console.print(table)
