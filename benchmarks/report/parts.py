"""Where a method differs from ERM: on easy or hard samples, on frequent or rare classes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.report.lines import BASELINE, Record, Records
from benchmarks.report.summary import POINTS
from rgd_hf.comparison.statistics import Estimate, mean_interval

TENTHS = 10
HARDEST_TENTH = "hardest_tenth_accuracy"
# Below this ratio of the largest to the smallest class, a set counts as balanced: there is nothing to order by.
UNBALANCED = 1.5
# Fewer of them would stand for the others badly, and be too few a tenth.
SMALLEST_RANKED_SHARE = 0.5

# Which rows a run is judged by: how many, and their numbers where seeds have rows of their own.
Rows = tuple[int, tuple[int, ...] | None]


@dataclass(frozen=True)
class Breakdown:
    """Accuracy on parts of the evaluation samples.

    Attributes:
        names: names of the parts, in order.
        accuracy: by method: per cent in each part, mean over seeds; NaN for an empty part.
        difference: by method: paired difference to ERM in points in each part.
    """

    names: Sequence[str]
    accuracy: Mapping[str, Sequence[float]]
    difference: Mapping[str, Sequence[Estimate]]


def correctness(record: Record) -> np.ndarray | None:
    """Which held-out rows were right: bool [n]; None where the run does not say so."""
    samples = record.get("samples") or {}
    if "correct" not in samples or "n" not in samples:
        return None
    packed = np.frombuffer(bytes.fromhex(samples["correct"]), dtype=np.uint8)
    return np.unpackbits(packed, count=samples["n"]).astype(bool)


def row_numbers(record: Record) -> tuple[int, ...] | None:
    """Which samples of the data set the held-out rows are, where runs with other seeds have others; else None."""
    numbers = (record.get("samples") or {}).get("rows")
    return None if numbers is None else tuple(numbers)


def erm_losses(records: Records, dataset: str) -> dict[int, np.ndarray]:
    """ERM's loss of every held-out row, float [n] in the loss's own unit, by seed."""
    losses = {}
    for seed, record in records.runs(dataset, BASELINE).items():
        values = (record.get("samples") or {}).get("losses")
        if values:
            losses[seed] = np.array([np.inf if v is None else v / 100 for v in values], dtype=float)
    return losses


def by_difficulty(records: Records, dataset: str, methods: Sequence[str]) -> Breakdown | None:
    """Accuracy in tenths of the held-out rows, from easy to hard.

    In the comparison of a seed, a row's difficulty is its mean ERM loss over the other seeds: ERM's own luck with this
    seed must not decide which rows count as hard. Where seeds have rows of their own, the mean is over the seeds that
    have this one, and rows that no other seed has are left out.

    Returns:
        The breakdown, or None where no seed has ERM's losses of another seed for half of its rows, and for ten.
    """
    parts, evaluated = _tenths(records, dataset)
    if not parts:
        return None
    names = [str(number + 1) for number in range(TENTHS)]
    return _break_down(records, dataset, methods, names, parts, evaluated)


def with_hardest_tenth(records: Records) -> Records:
    """`records` whose final runs have the accuracy of the hardest tenth of `by_difficulty` among their metrics."""
    final = dict(records.final)
    for dataset in records.datasets:
        parts, evaluated = _tenths(records, dataset)
        for key, record in records.final.items():
            right = correctness(record)
            if key[0] != dataset or key[2] not in parts or right is None:
                continue
            if (len(right), row_numbers(record)) == evaluated[key[2]]:
                accuracy = float(right[parts[key[2]][-1]].mean())
                final[key] = {**record, "metrics": {**record.get("metrics", {}), HARDEST_TENTH: accuracy}}
    return replace(records, final=final)


def _tenths(records: Records, dataset: str) -> tuple[dict[int, list[np.ndarray]], dict[int, Rows]]:
    """By seed: the numbers of the rows in each tenth, from easy to hard, and which rows the seed is judged by."""
    runs, losses = records.runs(dataset, BASELINE), erm_losses(records, dataset)
    numbers = {seed: row_numbers(runs[seed]) for seed in losses}
    if any(found is not None for found in numbers.values()):
        losses = {seed: found for seed, found in losses.items() if numbers[seed] is not None}
    else:
        losses = _of_one_length(losses)
    parts = {}
    for seed, others in _losses_of_others(losses, numbers).items():
        known = np.flatnonzero(~np.isnan(others))
        if len(known) >= max(TENTHS, SMALLEST_RANKED_SHARE * len(others)):
            parts[seed] = np.array_split(known[np.argsort(others[known], kind="stable")], TENTHS)
    return parts, {seed: (len(losses[seed]), numbers[seed]) for seed in parts}


def by_frequency(records: Records, dataset: str, methods: Sequence[str]) -> Breakdown | None:
    """Accuracy by class, from the most frequent class of the training rows to the rarest; at most ten groups.

    Returns:
        The breakdown, or None for balanced classes or where classes are not recorded.
    """
    for record in records.runs(dataset, BASELINE).values():
        counts, labels = record.get("train_class_counts"), np.array(record.get("labels") or [], dtype=int)
        if counts and len(labels):
            break
    else:
        return None
    if len(counts) < 2 or max(counts) < UNBALANCED * max(1, min(counts)):
        return None
    ranked = sorted(range(len(counts)), key=lambda number: (-counts[number], number))
    groups = np.array_split(np.array(ranked), min(TENTHS, len(ranked)))
    names = [_class_range([counts[number] for number in group]) for group in groups]
    rows = [np.flatnonzero(np.isin(labels, group)) for group in groups]
    parts = {seed: rows for seed in records.seeds(dataset)}
    return _break_down(records, dataset, methods, names, parts, dict.fromkeys(parts, (len(labels), None)))


def _class_range(counts: Sequence[int]) -> str:
    first, last = max(counts), min(counts)
    return str(first) if first == last else f"{first}–{last}"


def _losses_of_others(
    losses: Mapping[int, np.ndarray], numbers: Mapping[int, Sequence[int] | None]
) -> dict[int, np.ndarray]:
    """For every row of a seed the mean loss over the other seeds that have it, NaN for none; by seed.

    Args:
        losses: float [n] by seed.
        numbers: numbers of the rows by seed, or None where the rows of all seeds are the same.
    """
    of_seed = {
        seed: np.arange(len(found)) if (rows := numbers[seed]) is None else np.array(rows)
        for seed, found in losses.items()
    }
    every = np.unique(np.concatenate([[], *of_seed.values()]))
    places = {seed: np.searchsorted(every, rows) for seed, rows in of_seed.items()}
    table = np.full((len(losses), len(every)), np.nan)
    for line, seed in zip(table, losses):
        line[places[seed]] = losses[seed]
    found = {}
    for number, seed in enumerate(losses):
        others = np.delete(table, number, axis=0)
        seen = ~np.isnan(others)
        sums, counts = np.where(seen, others, 0).sum(axis=0), seen.sum(axis=0)
        means = np.divide(sums, counts, out=np.full(len(every), np.nan), where=counts > 0)
        found[seed] = means[places[seed]]
    return found


def _of_one_length(losses: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Those with as many rows as the first: seeds with other rows cannot be ranked together."""
    length = len(next(iter(losses.values()))) if losses else 0
    return {seed: found for seed, found in losses.items() if len(found) == length}


def _break_down(
    records: Records,
    dataset: str,
    methods: Sequence[str],
    names: Sequence[str],
    parts: Mapping[int, Sequence[np.ndarray]],
    evaluated: Mapping[int, Rows],
) -> Breakdown | None:
    """Per cent right in every part: seed by seed, then over seeds. Runs over other rows are left out."""
    shares: dict[str, dict[int, np.ndarray]] = {}
    for method in dict.fromkeys([BASELINE, *methods]):
        if not records.comparable(dataset, BASELINE, method):
            continue
        for seed, record in records.runs(dataset, method).items():
            right = correctness(record)
            if right is None or seed not in parts:
                continue
            if (len(right), row_numbers(record)) != evaluated[seed]:
                continue
            each = [POINTS * right[part].mean() if len(part) else np.nan for part in parts[seed]]
            shares.setdefault(method, {})[seed] = np.array(each)
    if not shares.get(BASELINE):
        return None
    accuracy = {method: np.mean(list(found.values()), axis=0).tolist() for method, found in shares.items()}
    difference = {
        method: [_paired(found, shares[BASELINE], number, pairs) for number in range(len(names))]
        for method, found in shares.items()
        for pairs in [records.pairs(dataset, method)]
        if method != BASELINE
    }
    return Breakdown(list(names), accuracy, difference)


def _paired(
    ours: Mapping[int, np.ndarray], theirs: Mapping[int, np.ndarray], number: int, pairs: Collection[int]
) -> Estimate:
    both = [seed for seed in ours if seed in theirs and seed in pairs]
    values = [float(ours[seed][number] - theirs[seed][number]) for seed in both]
    return mean_interval([value for value in values if not np.isnan(value)])
