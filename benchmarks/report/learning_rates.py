"""Which learning rate tuning chose: the one rule for those who run a study and those who report on it."""

import math
from collections.abc import Collection, Mapping


def best_factor(scores: Mapping[float, Mapping[int, float]], tuning_seeds: Collection[int]) -> float | None:
    """The learning-rate factor with the best mean tuning score, the smaller one between equals.

    Args:
        scores: of the tuning runs that finished, by factor and tuning seed; larger is better.
        tuning_seeds: those that a factor needs a score of: one of which a run failed is out.

    Returns:
        The factor; None where none has all scores.
    """
    sums = {
        factor: math.fsum(by_seed[seed] for seed in tuning_seeds)
        for factor, by_seed in sorted(scores.items())
        if tuning_seeds and set(tuning_seeds) <= set(by_seed)
    }
    return max(sums, key=lambda factor: sums[factor], default=None)
