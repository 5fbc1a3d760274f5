"""Wrong training labels in a table."""

from dataclasses import replace

from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.files.label_noise import with_wrong_labels
from rgd_hf.scripts.tabular.splits import Splits


def with_label_noise(splits: Splits, share: float) -> Splits:
    """Replace the label of `share` of the training rows by one of the other classes (symmetric noise).

    The draw depends on the splits' seed alone, so that all methods of a seed see the same labels.

    Args:
        splits: the splits of a classification.
        share: from 0, which changes nothing, to below 1.

    Raises:
        UserError: the share is not allowed, or the table is a regression.
    """
    if not share:
        return splits
    if splits.target.is_regression:
        raise UserError("--label_noise exchanges classes, but this is a regression.")
    labels = with_wrong_labels(splits.train.y, len(splits.target.classes), share, splits.seed)
    return replace(splits, train=replace(splits.train, y=labels))
