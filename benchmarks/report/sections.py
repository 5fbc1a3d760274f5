"""The section of one data set in a report: its table, what the weights did, and its plots."""

from collections.abc import Callable, Collection, Mapping
from functools import partial

import numpy as np

from benchmarks.report.choice import in_order
from benchmarks.report.formats import (
    NOTHING,
    OWN_UNIT_DECIMALS,
    SAME_RUNS,
    VERDICTS,
    counted,
    detectable,
    marked,
    mean_and_spread,
    metric_kind,
    number,
    probability,
    ranges,
    rate_of,
    settings_title,
    signed,
    table,
    verdict,
)
from benchmarks.report.lines import BASELINE, Records
from benchmarks.report.method import different
from benchmarks.report.methods import difference_title, method_title
from benchmarks.report.parts import Breakdown, by_difficulty, by_frequency
from benchmarks.report.plots import plot_breakdowns, plot_methods
from benchmarks.report.plots_training import curve, logged_curves, plot_training
from benchmarks.report.progress import family, interim, unfinished
from benchmarks.report.selection import by_rule
from benchmarks.report.summary import (
    Row,
    Tuning,
    decimals_of,
    difference,
    difference_values,
    final_gap,
    first_settings,
    headline,
    in_points,
    logged_mean,
    looked_at,
    metrics_of,
    no_run_has,
    rows,
    same_runs,
    tuning,
    tuning_metric,
    twin,
    value_of,
)
from rgd_hf.comparison.directions import is_lower_better
from rgd_hf.comparison.statistics import smallest_detectable

WEIGHT_KEYS = {
    "mean weight": "weight_mean",
    "largest": "weight_max",
    "ESS": "effective_sample_size",
    "clipped": "clipped_fraction",
}
# Where its data lie and how a run is written down say nothing about a comparison.
HIDDEN_SETTINGS = (
    "output_dir",
    "report_to",
    "save_",
    "disable_tqdm",
    "overwrite",
    "logging_",
    "log_",
    "run_name",
)
SCORES_SHOWN = 8
NEARLY_ALL = 0.9
WORST, RAREST = "worst_class_accuracy", "rarest_class_recall"
PARTS = {
    "difficulty": "tenth of the held-out rows, 1 = easiest",
    "frequency": "training rows of the class",
}


Pictures = dict[str, Callable[[], bytes]]


def section(records: Records, dataset: str) -> tuple[list[str], Pictures]:
    """Markdown lines of a data set, and what draws its PNG files, by name."""
    found = rows(records, dataset)
    runs = records.runs(dataset, BASELINE) or records.runs(dataset, found[0].method)
    first = next(iter(runs.values()))
    lines = [
        f"## {dataset}",
        "",
        _description(records, dataset, first),
        "",
        *([f"**Not finished:** {left}.", ""] if (left := unfinished(records, dataset)) else []),
        *_table_of_methods(records, dataset, found),
        "",
        _chance(records, dataset, found),
        "",
    ]
    lines += [*_beyond(records, dataset, found), *by_rule(records, dataset)]
    pictures: Pictures = {}
    others = [row for row in found if row.method != BASELINE and row.difference.n]
    if others:
        pictures[f"{dataset}_methods.png"] = partial(
            plot_methods, others, f"{dataset}: {first.get('score_name', 'score')}"
        )
        lines += [f"![Difference of every method to ERM on {dataset}](plots/{dataset}_methods.png)", ""]
    lines += _weights(records, dataset, found)
    logged = logged_curves(records, dataset, [BASELINE, *headline(records)])
    if logged is not None:
        pictures[f"{dataset}_training.png"] = partial(plot_training, logged)
        lines += [f"![Losses and weights over training on {dataset}](plots/{dataset}_training.png)", ""]
    compared = headline(records)[:2]
    breakdowns = {
        "difficulty": by_difficulty(records, dataset, compared),
        "frequency": by_frequency(records, dataset, compared),
    }
    present = {PARTS[name]: parts for name, parts in breakdowns.items() if parts is not None}
    if present:
        lines += _parts(present)
        pictures[f"{dataset}_parts.png"] = partial(plot_breakdowns, present, dataset)
        lines += [f"![Accuracy by difficulty and by class on {dataset}](plots/{dataset}_parts.png)", ""]
    lines += [*_tuning(records, dataset), *_score_over_training(records, dataset)]
    settings = {
        name: value
        for name, value in sorted(first_settings(records, dataset).items())
        if not name.startswith(HIDDEN_SETTINGS)
    }
    if settings:
        each = "; ".join(f"`{name}: {value}`" for name, value in settings.items())
        lines += [f"Settings of ERM (seed {min(runs)}): {each}", ""]
    return lines, pictures


def _description(records: Records, dataset: str, first: Mapping) -> str:
    score, chosen_by = first.get("score_name", "score"), tuning_metric(records, dataset)
    parts = [f"{first.get('kind', 'data')}, score: {score}"]
    if chosen_by and metric_kind(chosen_by) != metric_kind(score):
        parts[0] += f", but tuned by {chosen_by}"
    counts, samples = first.get("train_class_counts"), first.get("samples") or {}
    if counts:
        parts.append(f"{counted(sum(counts), 'training row')} in {counted(len(counts), 'class')}")
    if samples.get("n"):
        parts.append(counted(samples["n"], "held-out row"))
    seeds = records.seeds(dataset)
    parts.append(f"{counted(len(seeds), 'seed')} ({ranges(seeds)})")
    return "; ".join(parts) + "."


def _table_of_methods(records: Records, dataset: str, found: list[Row]) -> list[str]:
    on_top = any(records.compared_with(row.method) != BASELINE for row in found)
    body = []
    for row in found:
        plain = row.method == BASELINE
        body.append(
            [
                method_title(row.method),
                str(len(row.scores)),
                settings_title(row.chosen) + (f" × {row.scale:.2f}" if row.scale != 1 else ""),
                mean_and_spread(list(row.scores.values())),
                "" if plain else signed(row.difference),
                *([_on_top(records, dataset, row)] if on_top else []),
                "" if plain else detectable(row.detectable),
                "" if plain else probability(row.p),
                "" if plain else probability(row.holm),
                "" if plain or not row.difference.n else _verdict(records, dataset, row),
            ]
        )
    header = [
        "method",
        "seeds",
        "settings",
        "score (× 100, ± sd)",
        "− ERM (points)",
        *(["− what it is on top of"] if on_top else []),
        "detectable",
        "p",
        "p (Holm)",
        "",
    ]
    return table(header, body)


def _verdict(records: Records, dataset: str, row: Row) -> str:
    other = twin(records, dataset, row.method)
    same = f", {SAME_RUNS} as {method_title(other)}" if other else ""
    return VERDICTS[verdict(row.difference)] + same + interim(records, dataset, row.difference, row.method)


def _on_top(records: Records, dataset: str, row: Row) -> str:
    other = records.compared_with(row.method)
    if other == BASELINE:
        return ""
    own = SAME_RUNS if same_runs(records, dataset, row.method, other) else marked(row.own)
    return f"{own}{interim(records, dataset, row.own, row.method, other)} ({method_title(other)})"


def _beyond(records: Records, dataset: str, found: list[Row]) -> list[str]:
    """The metrics beside the score that the study names: differences to ERM, and which no run has."""
    known, named = metrics_of(records, dataset), looked_at(records, dataset)
    metrics = [name for name in named if name in known]
    doubled = _doubled(records, dataset, metrics)
    metrics = [name for name in metrics if not doubled or name != WORST]
    lacking = no_run_has(records, dataset, named)
    remark = [lacking, ""] if lacking else []
    if not metrics:
        return remark
    others = [row for row in found if row.method != BASELINE]
    body = [["ERM", *(_of_erm(records, dataset, name) for name in metrics)]]
    verdicts: list[str | None] = []
    for row in others:
        cells, is_own = [], twin(records, dataset, row.method) is None
        for name in metrics:
            estimate, decimals = difference(records, dataset, row.method, metric=name), decimals_of(name)
            if is_own:
                verdicts.append(verdict(estimate, decimals))
            early = interim(records, dataset, estimate, row.method)
            cells.append(marked(estimate, is_lower_better(name), decimals) + early)
        body.append([method_title(row.method), *cells])
    if len(others) > 1:
        body.append(["detectable, median", *(_power(records, dataset, others, name) for name in metrics)])
    arrows = (f"{name} ↓" if is_lower_better(name) else name for name in metrics)
    lines = [*table(["beside the score, − ERM", *arrows], body), ""]
    whole = [one for one in verdicts if one is not None]
    if whole:
        outside = len(whole) - whole.count("tie")
        lines += [
            f"{counted(outside, 'interval')} of these {len(whole)} {'excludes' if outside == 1 else 'exclude'} 0, not corrected "
            f"for their number; about {0.05 * len(whole):.1f} would by chance if no method differed from ERM.",
            "",
        ]
    return [*lines, *([doubled, ""] if doubled else []), *remark]


def _doubled(records: Records, dataset: str, metrics: Collection[str]) -> str:
    """Why the worst class is left out: of two classes it may hardly ever be another one than the rarest. Empty where it stays."""
    counts = next(
        (c for r in records.runs(dataset, BASELINE).values() if (c := r.get("train_class_counts"))), ()
    )
    if len(counts) != 2 or not {WORST, RAREST} <= set(metrics):
        return ""
    each = [
        (value_of(record, WORST), value_of(record, RAREST))
        for (name, *_), record in records.final.items()
        if name == dataset
    ]
    same = sum(worst == rarest for worst, rarest in each)
    if same < NEARLY_ALL * len(each):
        return ""
    return f"Of two classes: {WORST} is {RAREST} in {same} of {len(each)} runs, and left out."


def _of_erm(records: Records, dataset: str, metric: str) -> str:
    runs = records.runs(dataset, BASELINE).values()
    values = [value for run in runs if (value := value_of(run, metric)) is not None]
    if not values or in_points(metric):
        return mean_and_spread(values) if values else NOTHING
    return number(sum(values) / len(values), OWN_UNIT_DECIMALS)


def _power(records: Records, dataset: str, others: list[Row], metric: str) -> str:
    each = [
        smallest_detectable(difference_values(records, dataset, row.method, metric=metric)) for row in others
    ]
    known = [value for value in each if not np.isnan(value)]
    return detectable(float(np.median(known)) if known else np.nan, decimals_of(metric))


def _chance(records: Records, dataset: str, found: list[Row]) -> str:
    """What the tests say on this data set, and of how many of its methods."""
    compared = [row for row in found if row.method != BASELINE and row.difference.n]
    if not compared:
        return "No method shares a seed with ERM on the same device yet."
    own = [row for row in compared if twin(records, dataset, row.method) is None]
    below, names = sum(row.holm < 0.05 for row in own), [row.method for row in compared]
    return (
        f"p below 0.05 after Holm's correction for {counted(len(own), 'method')}: {below or 'none'}."
        f"{family(records.plan.seeds(dataset), names)}"
        f"{different(records, dataset, names, 'processor')}{different(records, dataset, names, 'commit')}"
    )


def _weights(records: Records, dataset: str, found: list[Row]) -> list[str]:
    body = []
    for row in found:
        runs = records.runs(dataset, row.method)
        values = [logged_mean(runs, key) for key in WEIGHT_KEYS.values()]
        gap = final_gap(runs)
        if any(value is not None for value in (*values, gap)):
            body.append([method_title(row.method), *(number(value, 3) for value in values), number(gap, 3)])
    if not body:
        return []
    header = ["over training", *WEIGHT_KEYS, "validation − training loss, at the end"]
    return [*table(header, body), ""]


def _parts(present: Mapping[str, Breakdown]) -> list[str]:
    lines: list[str] = []
    for label, breakdown in present.items():
        others = list(breakdown.difference)
        header = [label, "ERM (%)", *(difference_title(name) for name in others)]
        body = [
            [name, number(breakdown.accuracy[BASELINE][place], 1)]
            + [signed(breakdown.difference[other][place]) for other in others]
            for place, name in enumerate(breakdown.names)
        ]
        lines += [*table(header, body), ""]
    return lines


def _tuning(records: Records, dataset: str) -> list[str]:
    """Scores by learning rate, one row for each part and each of the other settings that a method tried."""
    found = tuning(records, dataset)
    if not found:
        return []
    rates = in_order({rate_of(candidate)[0] for entry in found.values() for candidate in entry.scores})
    metric, body = tuning_metric(records, dataset), []
    sign = -1 if is_lower_better(metric) else 1
    for (name, part), entry in found.items():
        chosen = rate_of(entry.chosen)[1]
        for other in in_order({rate_of(candidate)[1] for candidate in entry.scores}):
            by_rate = {rate_of(c)[0]: score for c, score in entry.scores.items() if rate_of(c)[1] == other}
            title = "; ".join(filter(None, (method_title(name), part, other)))
            final = settings_title(entry.chosen) + _remark(entry) if other == chosen else ""
            scores = (_in_its_unit(metric, sign * by_rate[r]) if r in by_rate else NOTHING for r in rates)
            body.append([title, *scores, final])
    titles = [settings_title(rate) or "no rate" for rate in rates]
    return [*table([f"tuning score ({_unit(metric)}) by learning rate", *titles, "final runs"], body), ""]


def _unit(metric: str) -> str:
    parts = [
        metric,
        "smaller is better" if is_lower_better(metric) else "",
        "× 100" if in_points(metric) else "",
    ]
    return ", ".join(part for part in parts if part)


def _in_its_unit(metric: str, value: float) -> str:
    return number(100 * value) if in_points(metric) else number(value, 4)


def _score_over_training(records: Records, dataset: str) -> list[str]:
    """Whether a longer training would have scored more: the validation score as the runs went on, mean over seeds."""
    found = {
        name: curve(list(records.runs(dataset, name).values()), ["eval_score"])
        for name in (BASELINE, *headline(records))
    }
    curves = {
        name: (steps, values.mean(axis=0)) for name, pair in found.items() if pair for steps, values in [pair]
    }
    if BASELINE not in curves:
        return []
    # Methods may train for longer than ERM.
    steps = max((steps for steps, _ in curves.values()), key=lambda steps: steps[-1])
    shown = steps if len(steps) <= SCORES_SHOWN else np.linspace(steps[0], steps[-1], SCORES_SHOWN)
    metric = tuning_metric(records, dataset)
    body = []
    for name, pair in curves.items():
        values = np.interp(shown, *pair, left=np.nan, right=np.nan)
        body.append(
            [method_title(name), *(NOTHING if np.isnan(v) else _in_its_unit(metric, v) for v in values)]
        )
    header = [f"validation score ({_unit(metric)}) at step", *(f"{step:.0f}" for step in shown)]
    return [*table(header, body), "", *_best_epochs(records, dataset)]


def _best_epochs(records: Records, dataset: str) -> list[str]:
    """Which epochs early stopping kept: where many are among the first, the score is that of a noisy choice, no plateau's."""
    runs = records.runs(dataset, BASELINE).values()
    epochs = [value for run in runs if (value := value_of(run, "best_epoch")) is not None]
    each = ", ".join(f"{epoch:.0f}" for epoch in epochs)
    return [f"Best epochs of ERM, seed by seed: {each}.", ""] if epochs else []


def _remark(found: Tuning) -> str:
    """What to know of the settings of the final runs: others were better, as good, or a rate beyond those tried might be."""
    if not found.is_best:
        return " (not the best)"
    tied = f"tied with {counted(found.ties, 'other')}" if found.ties else ""
    rates = in_order({rate_of(candidate)[0] for candidate in found.scores})
    ends = {rates[0]: "the smallest tried", rates[-1]: "the largest tried"}
    end = ends.get(rate_of(found.chosen)[0], "") if len(rates) > 1 else ""
    remarks = "; ".join(filter(None, (end, tied)))
    return f" ({remarks})" if remarks else ""
