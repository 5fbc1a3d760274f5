"""What the finished runs say: paired differences by data set, over data sets, and the questions behind a gain."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.report.formats import OWN_UNIT_DECIMALS, SHOWN_DECIMALS
from benchmarks.report.formats import verdict as verdict_of
from benchmarks.report.lines import BASELINE, Record, Records, candidate_of
from benchmarks.report.methods import in_order
from rgd_hf.comparison.statistics import Estimate, holm, mean_interval, paired_p, smallest_detectable

POINTS = 100.0
SCORE = "score"


@dataclass(frozen=True)
class Row:
    """One method on one data set.

    Attributes:
        method: its name.
        chosen: settings of its final runs.
        scale: mean over seeds of what the learning rate is multiplied by beside it; 1 but for scaled ERM.
        scores: final scores by seed, as fractions.
        difference: paired difference to ERM in points (hundredths of the score), over common seeds.
        own: the same to the method that this one adds something to.
        p: p value of the paired t test; NaN for ERM and below two common seeds.
        holm: the same, corrected for the methods of this data set, each training once.
        detectable: the smallest true difference, in points, that so many seeds would show in four of five cases.
    """

    method: str
    chosen: str
    scale: float
    scores: Mapping[int, float]
    difference: Estimate
    own: Estimate
    p: float
    holm: float
    detectable: float


def value_of(record: Record, metric: str = SCORE) -> float | None:
    """A run's score (larger is better), or one of its metrics; None where it has none of that name."""
    return record["score"] if metric == SCORE else record.get("metrics", {}).get(metric)


def in_points(metric: str) -> bool:
    """Whether a metric is a fraction, whose differences are told in hundredths."""
    return not metric.endswith(("loss", "mse", "mae", "perplexity"))


def decimals_of(metric: str) -> int:
    """Decimals of differences of a metric."""
    return SHOWN_DECIMALS if in_points(metric) else OWN_UNIT_DECIMALS


def tuning_metric(records: Records, dataset: str) -> str:
    """The metric that tuning went by; `""` where neither the study's file nor a line tells it."""
    data = records.plan.datasets.get(dataset)
    if data is not None:
        return data["tuning_score"] or data["score"]
    lines = (record for (name, *_), record in records.tuning.items() if name == dataset)
    return next((str(record["score_name"]) for record in lines if "score_name" in record), "")


def differences_by_seed(
    records: Records, dataset: str, method: str, baseline: str = BASELINE, metric: str = SCORE
) -> dict[int, float]:
    """Score of `method` minus that of `baseline`, in points, for every seed that both have, trained on the same device.

    Another metric than the score takes its place where it is named; losses and errors are in their own unit. Runs of mixed
    settings have none.
    """
    if not records.comparable(dataset, method, baseline):
        return {}
    scale, found = POINTS if in_points(metric) else 1.0, {}
    for seed, pair in records.pairs(dataset, method, baseline).items():
        one, other = (value_of(run, metric) for run in pair)
        if one is not None and other is not None:
            found[seed] = scale * (one - other)
    return found


def difference_values(
    records: Records, dataset: str, method: str, baseline: str = BASELINE, metric: str = SCORE
) -> list[float]:
    """The values of `differences_by_seed`, in the order of the seeds."""
    return list(differences_by_seed(records, dataset, method, baseline, metric).values())


def difference(
    records: Records, dataset: str, method: str, baseline: str = BASELINE, metric: str = SCORE
) -> Estimate:
    """Mean of `difference_values` with its interval."""
    return mean_interval(difference_values(records, dataset, method, baseline, metric))


def same_runs(records: Records, dataset: str, method: str, baseline: str) -> bool:
    """Whether all pairs of two methods are the same training twice: what one may choose is what the other has."""
    same = {s for s, pair in records.pairs(dataset, method, baseline).items() if _is_same_run(*pair)}
    return bool(same) and same >= set(differences_by_seed(records, dataset, method, baseline))


def _is_same_run(one: Record, other: Record) -> bool:
    same_settings = bool(one.get("settings")) and one["settings"] == other.get("settings")
    return same_settings and one["score"] == other["score"]


def twin(records: Records, dataset: str, method: str) -> str | None:
    """The first method of the report's order whose runs on a data set are those of `method`; None where they are its own."""
    others = in_order({name for name in records.methods(dataset) if records.runs(dataset, name)} - {BASELINE})
    before = others[: others.index(method)] if method in others else []
    return next((name for name in before if same_runs(records, dataset, method, name)), None)


def looked_at(records: Records, dataset: str) -> list[str]:
    """Metrics beside the score that the study names, whether runs have them or not."""
    found: dict[str, None] = {}
    for record in records.runs(dataset, BASELINE).values():
        found |= dict.fromkeys(record.get("looked_at", ()))
    return list(found)


def metrics_of(records: Records, dataset: str) -> list[str]:
    """Metrics that any final run of a data set has."""
    runs = (record for (name, _, _), record in records.final.items() if name == dataset)
    return sorted({name for record in runs for name in record.get("metrics", ())})


def no_run_has(records: Records, dataset: str, metrics: Sequence[str]) -> str:
    """A sentence on metrics that were asked for and that no run of a data set has; empty where there are none."""
    known = metrics_of(records, dataset)
    lacking = [f"`{name}`" for name in metrics if name != SCORE and name not in known]
    have = ", ".join(f"`{name}`" for name in known) or "none"
    return f"No run on {dataset} has {' or '.join(lacking)}; they have: {have}." if lacking else ""


def rows(records: Records, dataset: str) -> list[Row]:
    """All methods of a data set that have a final run, ERM first."""
    methods = [name for name in in_order(records.methods(dataset)) if records.runs(dataset, name)]
    values = {name: difference_values(records, dataset, name) for name in methods if name != BASELINE}
    p_values = {name: paired_p(found) for name, found in values.items()}
    twins = {name: other for name in values if (other := twin(records, dataset, name)) is not None}
    tested = [name for name in values if name not in twins]  # the same training twice is one test
    corrected = dict(zip(tested, holm([p_values[name] for name in tested])))
    corrected |= {name: corrected[other] for name, other in twins.items()}
    found = []
    for name in methods:
        runs = records.runs(dataset, name)
        last = runs[max(runs)]
        found.append(
            Row(
                method=name,
                chosen=candidate_of(last),
                scale=float(np.mean([record.get("learning_rate_scale", 1.0) for record in runs.values()])),
                scores={seed: record["score"] for seed, record in runs.items()},
                difference=mean_interval(values.get(name, [])),
                own=difference(records, dataset, name, records.compared_with(name)),
                p=p_values.get(name, float("nan")),
                holm=corrected.get(name, float("nan")),
                detectable=smallest_detectable(values.get(name, [])),
            )
        )
    return found


@dataclass(frozen=True)
class Overall:
    """One method over all data sets.

    Attributes:
        method: its name.
        by_dataset: its difference to ERM on every data set that has one.
        gain: mean of these means, with an interval over data sets.
        p: p value of the paired t test over data sets.
        holm: the same, corrected for the methods.
        counted: data sets whose verdict counts: not those where the method is another model, or the same runs as another one.
        is_same_model: whether the recipe that trains ERM trains it, on all data sets.
    """

    method: str
    by_dataset: Mapping[str, Estimate]
    gain: Estimate
    p: float
    holm: float
    counted: Collection[str]
    is_same_model: bool

    def count(self, verdict: str) -> int:
        """On how many data sets the interval says `"gain"`, `"tie"` or `"loss"`, the same runs as another's left out."""
        names = self.counted if self.is_same_model else self.by_dataset
        return sum(verdict_of(self.by_dataset[name]) == verdict for name in names)


def overall(records: Records) -> list[Overall]:
    """Every method but ERM, over the data sets on which it and ERM share a seed."""
    found = []
    for method in in_order(all_methods(records)):
        each = {name: difference(records, name, method) for name in records.datasets}
        each = {name: estimate for name, estimate in each.items() if estimate.n}
        if each:
            means = [estimate.mean for estimate in each.values()]
            same_model = [name for name in each if records.is_same_model(name, method)]
            own = [name for name in same_model if twin(records, name, method) is None]
            p, is_same_model = paired_p(means), len(same_model) == len(each)
            found.append(Overall(method, each, mean_interval(means), p, p, own, is_same_model))
    corrected = holm([entry.p for entry in found])
    return [replace(entry, holm=adjusted) for entry, adjusted in zip(found, corrected)]


def first_settings(records: Records, dataset: str) -> Mapping[str, Any]:
    """Settings of a data set's first ERM run, or of its first run."""
    runs = records.runs(dataset, BASELINE) or {
        key[2]: record for key, record in records.final.items() if key[0] == dataset
    }
    return runs[min(runs)].get("settings", {})


def mean_weight(runs: Mapping[int, Record]) -> float | None:
    """Mean weight over training and seeds; None where no run logged it."""
    means = [value for r in runs.values() if (value := r.get("metrics", {}).get("weight_mean")) is not None]
    return float(np.mean(means)) if means else logged_mean(runs, "weight_mean")


def logged_mean(runs: Mapping[int, Record], key: str) -> float | None:
    """Mean of what the log entries of all runs say about `key`; every run counts the same."""
    means = []
    for record in runs.values():
        values = [entry[key] for entry in record.get("history", ()) if entry.get(key) is not None]
        if values:
            means.append(float(np.mean(values)))
    return float(np.mean(means)) if means else None


def final_gap(runs: Mapping[int, Record]) -> float | None:
    """Last validation loss minus last training loss without weights, mean over seeds; None where it is not logged.

    A loss with label smoothing or class weights is another one: no gap is made of it.
    """
    gaps = []
    for record in runs.values():
        history = record.get("history", ())
        last = {
            key: next((e[key] for e in reversed(history) if e.get(key) is not None), None)
            for key in ("eval_loss", "unweighted_loss")
        }
        if last["eval_loss"] is not None and last["unweighted_loss"] is not None:
            gaps.append(float(last["eval_loss"] - last["unweighted_loss"]))
    return float(np.mean(gaps)) if gaps else None


@dataclass(frozen=True)
class Tuning:
    """What the tuning of a method's learning rate found.

    Attributes:
        scores: mean tuning score by candidate; larger is better, so a metric that should be small has its sign changed.
        chosen: settings of the final runs.
        is_best: whether that is the one that tuning chose.
        ties: how many other settings had the best score too.
    """

    scores: Mapping[str, float]
    chosen: str
    is_best: bool
    ties: int = 0


def tuning(records: Records, dataset: str) -> dict[tuple[str, str], Tuning]:
    """By method and part (`""` where there is none), for those that were tuned and have a final run."""
    scores: dict[tuple[str, str], dict[str, list[float]]] = {}
    for (name, method, _, candidate, part), record in sorted(
        records.tuning.items(), key=lambda item: item[0]
    ):
        if name == dataset:
            scores.setdefault((method, part), {}).setdefault(candidate, []).append(record["score"])
    found = {}
    for method in in_order({method for method, _ in scores}):
        runs = records.runs(dataset, method)
        for part in sorted(part for name, part in scores if name == method and runs):
            means = {name: float(np.mean(values)) for name, values in scores[method, part].items()}
            last = runs[max(runs)]
            chosen = last.get("candidates", {}).get(part, candidate_of(last))
            best = records.best_candidates(dataset, method, part)
            found[method, part] = Tuning(means, chosen, best[:1] == [chosen], max(0, len(best) - 1))
    return found


def headline(records: Records) -> list[str]:
    """Methods that the study's file shows first; else the first two of the report's order."""
    present = all_methods(records)
    chosen = [name for name in records.study.get("headline", ()) if name in present]
    return chosen or in_order(present)[:2]


def all_methods(records: Records) -> set[str]:
    """Methods but ERM of any data set."""
    return set().union(*(records.methods(name) for name in records.datasets)) - {BASELINE}


def all_verdicts(found: Sequence[Overall]) -> list[str]:
    """The verdict of every comparison of a method with ERM on a data set that has an interval and counts."""
    each = [verdict_of(method.by_dataset[name]) for method in found for name in method.counted]
    return [verdict for verdict in each if verdict is not None]
