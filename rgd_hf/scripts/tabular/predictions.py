"""What a network predicts for every test row, as a file."""

from pathlib import Path

import numpy as np

from rgd_hf.scripts.tabular.splits import Splits
from rgd_hf.scripts.training.predictions import PREDICTIONS, predictions_table


def write_predictions(splits: Splits, predicted: np.ndarray, directory: Path) -> None:
    """Write `predictions.parquet`, as `predictions_table` describes it, with one row per test row, in order.

    The loss is the cross-entropy, or the squared error in the target's own units.

    Args:
        splits: whose test rows were predicted.
        predicted: probabilities `[rows, classes]`, or values `[rows]`.
        directory: made where it is missing.
    """
    y = splits.test.y
    if splits.target.is_regression:
        table = predictions_table(y, predicted, (predicted - y) ** 2)
    else:
        of_label = predicted[np.arange(len(y)), y]
        losses = -np.log(np.maximum(of_label, np.finfo(np.float64).tiny))
        table = predictions_table(y, predicted.argmax(axis=1), losses, predicted.max(axis=1))
    directory.mkdir(parents=True, exist_ok=True)
    table.to_parquet(directory / f"{PREDICTIONS}.parquet", index=False)
