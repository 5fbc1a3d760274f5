"""Scores of predictions: classification and regression."""

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)

from rgd_hf.scores import is_greater_better
from rgd_hf.scripts.calibration import expected_calibration_error


def macro_auroc(y: np.ndarray, probabilities: np.ndarray) -> float:
    """Area under the ROC curve, one class against the rest, averaged over the classes that occur; NaN if one does."""
    if probabilities.shape[1] == 2:
        present = [1] if 0 < y.sum() < len(y) else []
    else:
        present = [c for c in range(probabilities.shape[1]) if 0 < (y == c).sum() < len(y)]
    areas = [roc_auc_score(y == c, probabilities[:, c]) for c in present]
    return float(np.mean(areas)) if areas else float("nan")


def classification_scores(y: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy, macro F1, macro AUROC, log loss and expected calibration error.

    Args:
        y: class indices `[rows]`.
        probabilities: `[rows, classes]`.
    """
    predicted = probabilities.argmax(axis=1)
    classes = np.arange(probabilities.shape[1])
    normalized = probabilities / probabilities.sum(axis=1, keepdims=True)
    return {
        "accuracy": float(accuracy_score(y, predicted)),
        "balanced_accuracy": float(balanced_accuracy_score(y, predicted)),
        "f1_macro": float(f1_score(y, predicted, average="macro", labels=np.unique(y), zero_division=0)),
        "auroc": macro_auroc(y, probabilities),
        "log_loss": float(log_loss(y, normalized, labels=classes)),
        "ece": expected_calibration_error(normalized.max(axis=1), predicted == y),
    }


def regression_scores(y: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Root mean squared error, mean absolute error and R2; both arguments float `[rows]`."""
    return {
        "rmse": float(root_mean_squared_error(y, predicted)),
        "mae": float(mean_absolute_error(y, predicted)),
        "r2": float(r2_score(y, predicted)),
    }


def scores(y: np.ndarray, predicted: np.ndarray, is_regression: bool) -> dict[str, float]:
    """Scores of predicted values `[rows]`, or of probabilities `[rows, classes]`."""
    return regression_scores(y, predicted) if is_regression else classification_scores(y, predicted)


def main_score(is_regression: bool) -> str:
    """The score that methods are selected and ranked by."""
    return "rmse" if is_regression else "accuracy"


def better_is_larger(name: str, value: float) -> float:
    """`value` with the sign that makes larger better."""
    return value if is_greater_better(name) else -value
