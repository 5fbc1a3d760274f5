"""Which settings tuning chose: the one rule for those who run a study and those who report on it."""

import math
import re
from collections.abc import Collection, Hashable, Mapping
from typing import TypeVar

Run = TypeVar("Run", bound=Hashable)
LAST_DIGIT = 1e-6
"""Scores are kept to six decimals: two that are equal before that may differ by one of the last."""


def best_candidate(scores: Mapping[str, Mapping[Run, float]], needed: Collection[Run]) -> str | None:
    """The candidate with the best mean tuning score, the first (`in_order`) between equals.

    None where none has all scores. The arguments are those of `best_candidates`.
    """
    return next(iter(best_candidates(scores, needed)), None)


def best_candidates(scores: Mapping[str, Mapping[Run, float]], needed: Collection[Run]) -> list[str]:
    """All candidates whose mean tuning score is the best, as far as rounded scores tell, `in_order`.

    Args:
        scores: scores of the tuning runs that finished, by candidate and run; larger is better.
        needed: runs that a candidate needs a score of: one of which a run failed is out.
    """
    sums = {
        candidate: math.fsum(scores[candidate][run] for run in needed)
        for candidate in in_order(scores)
        if needed and set(needed) <= set(scores[candidate])
    }
    allowed = len(needed) * LAST_DIGIT * 1.001  # sums of decimals are not exact either
    best = max(sums.values(), default=0.0)
    return [candidate for candidate, total in sums.items() if total >= best - allowed]


def in_order(candidates: Collection[str]) -> list[str]:
    """Candidates by the numbers in their names, small ones first: of equals the smaller learning rate is taken."""

    def key(name: str) -> tuple:
        parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", name)
        return tuple(
            (0, float(part), "") if place % 2 else (1, 0.0, part) for place, part in enumerate(parts)
        )

    return sorted(candidates, key=key)
