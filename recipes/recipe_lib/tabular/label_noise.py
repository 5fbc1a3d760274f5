"""Training labels that are wrong, to see what a method makes of them."""

from dataclasses import replace

import numpy as np

from recipe_lib.errors import UserError
from recipe_lib.tabular.splits import Splits


def with_label_noise(splits: Splits, share: float) -> Splits:
    """Replace the label of `share` of the training rows by one of the other classes (symmetric noise).

    The draw depends on the splits' seed alone, so that all methods of a seed see the same labels.

    Args:
        splits: of a classification.
        share: from 0, which changes nothing, to below 1.

    Raises:
        UserError: the share is not allowed, or the table is a regression.
    """
    if not 0 <= share < 1:
        raise UserError(f"--label_noise must lie between 0 and 1, not {share:g}.")
    if not share:
        return splits
    if splits.target.is_regression:
        raise UserError("--label_noise exchanges classes, but this is a regression.")
    train, generator = splits.train, np.random.default_rng(splits.seed)
    wrong = generator.permutation(len(train))[: round(share * len(train))]
    labels, classes = train.y.copy(), len(splits.target.classes)
    labels[wrong] = (labels[wrong] + generator.integers(1, classes, size=len(wrong))) % classes
    return replace(splits, train=replace(train, y=labels))
