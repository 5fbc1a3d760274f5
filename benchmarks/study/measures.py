"""More than the mean: what the predictions of a run say about classes, and about how sure they are."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score, recall_score

from rgd_hf.scripts.training.calibration import expected_calibration_error


def from_predictions(
    predictions: pd.DataFrame, train_class_counts: Sequence[int] | None = None
) -> dict[str, float]:
    """Metrics of a classification.

    Args:
        predictions: one row per sample, with class numbers `label` and `prediction`, and with `loss` and `confidence` or without;
            samples that count for nothing (an empty `correct`) are left out.
        train_class_counts: training samples of every class; without them the evaluation's tell which class is the rarest.

    Returns:
        `worst_class_accuracy` (of the classes that the evaluation has), `macro_f1`, `rarest_class_recall`, `mean_loss` and
        `calibration_error`, all from 0 to 1 but for the mean loss; nothing where a sample has several labels.
    """
    counted = predictions[predictions["correct"].notna()]
    if not len(counted) or not np.issubdtype(np.asarray(counted["label"].iloc[0]).dtype, np.integer):
        return {}
    if np.ndim(counted["label"].iloc[0]):
        return {}
    labels, predicted = counted["label"].to_numpy(int), counted["prediction"].to_numpy(int)
    classes = np.unique(labels)
    recalls = recall_score(labels, predicted, labels=classes, average=None, zero_division=0)
    counts = np.bincount(labels) if train_class_counts is None else np.array(train_class_counts)
    rarest = min(range(len(classes)), key=lambda place: counts[classes[place]])
    found = {
        "worst_class_accuracy": float(min(recalls)),
        "macro_f1": float(f1_score(labels, predicted, labels=classes, average="macro", zero_division=0)),
        "rarest_class_recall": float(recalls[rarest]),
    }
    if "loss" in counted:
        found["mean_loss"] = float(counted["loss"].mean())
    if "confidence" in counted:
        confidence = counted["confidence"].to_numpy(float)
        found["calibration_error"] = expected_calibration_error(confidence, labels == predicted)
    return found
