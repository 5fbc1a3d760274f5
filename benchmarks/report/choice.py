"""Which settings tuning chose: the one rule for those who run a study and those who report on it."""

import math
import re
from collections.abc import Collection, Hashable, Mapping
from typing import TypeVar

Run = TypeVar("Run", bound=Hashable)


def best_candidate(scores: Mapping[str, Mapping[Run, float]], needed: Collection[Run]) -> str | None:
    """The candidate with the best mean tuning score, the first (`in_order`) between equals.

    Args:
        scores: scores of the tuning runs that finished, by candidate and run; larger is better.
        needed: runs that a candidate needs a score of: one of which a run failed is out.

    Returns:
        The candidate; None where none has all scores.
    """
    sums = {
        candidate: math.fsum(scores[candidate][run] for run in needed)
        for candidate in in_order(scores)
        if needed and set(needed) <= set(scores[candidate])
    }
    return max(sums, key=lambda candidate: sums[candidate], default=None)


def in_order(candidates: Collection[str]) -> list[str]:
    """Candidates by the numbers in their names, small ones first: of equals the smaller learning rate is taken."""

    def key(name: str) -> tuple:
        parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", name)
        return tuple(
            (0, float(part), "") if place % 2 else (1, 0.0, part) for place, part in enumerate(parts)
        )

    return sorted(candidates, key=key)
