"""Training rows that are held out, so that settings can be chosen without a look at the validation data."""

from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

from rgd_hf.scripts.errors import UserError

HELP = (
    "Evaluate on this fraction of the training rows (above 0, below 1) instead of the validation data, and train on the "
    "rest: for choosing settings. "
)


def hold_out(
    count: int, fraction: float, seed: int, labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into those to train on and those held out.

    Args:
        count: number of rows.
        fraction: fraction of the rows that is held out, above 0 and below 1.
        seed: random seed of the split.
        labels: class indices `[count]` for a stratified split, in which a class with a single row stays in the training
            part. None splits at random.

    Returns:
        The row numbers of both, int64, ascending.

    Raises:
        UserError: the fraction is not allowed, or leaves either part fewer rows than there are classes.
    """
    if not 0 < fraction < 1:
        raise UserError(f"--holdout_fraction must lie above 0 and below 1, not {fraction:g}.")
    rows = np.arange(count)
    stratify: Any = None
    needed = 1
    if labels is not None:
        rows = np.flatnonzero(np.bincount(labels)[labels] > 1)
        stratify = labels[rows]
        needed = max(1, len(np.unique(stratify)))
    held = round(fraction * len(rows))
    if min(held, len(rows) - held) < needed:
        classes = "" if labels is None else f" of {needed} class(es) with two rows or more"
        raise UserError(
            f"--holdout_fraction {fraction:g} of {len(rows)} row(s){classes} would hold out {held} and train on "
            f"{len(rows) - held}: each part needs {needed} or more. Choose another fraction, or give more training rows."
        )
    _, held_out = train_test_split(rows, test_size=held, random_state=seed, stratify=stratify)
    held_out = np.sort(held_out)
    return np.setdiff1d(np.arange(count), held_out), held_out
