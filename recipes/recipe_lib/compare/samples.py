"""Where a method differs from ERM: on easy or hard samples, on frequent or rare classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipe_lib.compare.records import BASELINE, Record, Records
from recipe_lib.compare.statistics import Estimate, mean_interval
from recipe_lib.compare.summary import POINTS

TENTHS = 10
# Below this ratio of the largest to the smallest class, a set counts as balanced: there is nothing to order by.
UNBALANCED = 1.5


@dataclass(frozen=True)
class Breakdown:
    """Accuracy on parts of the evaluation samples.

    Attributes:
        names: of the parts, in order.
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
    seed must not decide which rows count as hard.

    Returns:
        The breakdown, or None where ERM's losses of two seeds over the same rows are not recorded.
    """
    losses = _of_one_length(erm_losses(records, dataset))
    if len(losses) < 2:
        return None
    parts = {}
    for seed in losses:
        others = np.mean([found for other, found in losses.items() if other != seed], axis=0)
        parts[seed] = np.array_split(np.argsort(others, kind="stable"), TENTHS)
    names = [str(number + 1) for number in range(TENTHS)]
    return _break_down(records, dataset, methods, names, parts)


def by_frequency(records: Records, dataset: str, methods: Sequence[str]) -> Breakdown | None:
    """Accuracy by class, from the most frequent class of the training rows to the rarest; at most ten groups.

    Returns:
        The breakdown, or None for balanced classes or where classes are not recorded.
    """
    for record in records.runs(dataset, BASELINE).values():
        counts, labels = record.get("train_class_counts"), class_numbers(record.get("labels"))
        if counts and labels is not None:
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
    return _break_down(records, dataset, methods, names, parts, length=len(labels))


def class_numbers(labels: Any) -> np.ndarray | None:
    """Class of every held-out row, int [n], from a list or from hexadecimal bytes; None where there is none."""
    if not labels:
        return None
    if isinstance(labels, str):
        return np.frombuffer(bytes.fromhex(labels), dtype=np.uint8).astype(int)
    return np.array(labels, dtype=int)


def _class_range(counts: Sequence[int]) -> str:
    first, last = max(counts), min(counts)
    return str(first) if first == last else f"{first}–{last}"


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
    length: int | None = None,
) -> Breakdown | None:
    """Per cent right in every part: seed by seed, then over seeds."""
    expected = length or sum(len(part) for part in next(iter(parts.values())))
    shares: dict[str, dict[int, np.ndarray]] = {}
    for method in dict.fromkeys([BASELINE, *methods]):
        for seed, record in records.runs(dataset, method).items():
            right = correctness(record)
            if right is None or len(right) != expected or seed not in parts:
                continue
            each = [POINTS * right[part].mean() if len(part) else np.nan for part in parts[seed]]
            shares.setdefault(method, {})[seed] = np.array(each)
    if not shares.get(BASELINE):
        return None
    accuracy = {method: np.mean(list(found.values()), axis=0).tolist() for method, found in shares.items()}
    difference = {
        method: [_paired(found, shares[BASELINE], number) for number in range(len(names))]
        for method, found in shares.items()
        if method != BASELINE
    }
    return Breakdown(list(names), accuracy, difference)


def _paired(ours: Mapping[int, np.ndarray], theirs: Mapping[int, np.ndarray], number: int) -> Estimate:
    values = [float(ours[seed][number] - theirs[seed][number]) for seed in ours if seed in theirs]
    return mean_interval([value for value in values if not np.isnan(value)])
