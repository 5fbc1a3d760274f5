"""Training labels that are wrong, to see what a method makes of them."""

import numpy as np

from rgd_hf.scripts.errors import UserError


def with_wrong_labels(labels: np.ndarray, classes: int, share: float, seed: int) -> np.ndarray:
    """A copy of `labels` in which a share of them, drawn at random, is one of the other classes (symmetric noise).

    Args:
        labels: class numbers `[samples]`.
        classes: how many there are.
        share: from 0 to below 1.
        seed: random seed of the draw.

    Raises:
        UserError: the share is not allowed.
    """
    if not 0 <= share < 1:
        raise UserError(f"--label_noise must lie between 0 and 1, not {share:g}.")
    generator, noisy = np.random.default_rng(seed), labels.copy()
    wrong = generator.permutation(len(labels))[: round(share * len(labels))]
    noisy[wrong] = (noisy[wrong] + generator.integers(1, classes, size=len(wrong))) % classes
    return noisy
