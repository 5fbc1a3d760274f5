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
from transformers import TrainingArguments

from rgd_hf.comparison.directions import is_lower_better
from rgd_hf.scripts.training.best_metric import asked_metric, check_metric
from rgd_hf.scripts.training.calibration import expected_calibration_error


def macro_auroc(y: np.ndarray, probabilities: np.ndarray) -> float:
    """Area under the ROC curve, one class against the rest, averaged over the classes that occur; NaN if one does."""
    if probabilities.shape[1] == 2:
        present = [1] if 0 < y.sum() < len(y) else []
    else:
        present = [c for c in range(probabilities.shape[1]) if 0 < (y == c).sum() < len(y)]
    areas = [roc_auc_score(y == c, probabilities[:, c]) for c in present]
    return float(np.mean(areas)) if areas else float("nan")


def _f1_macro(y: np.ndarray, probabilities: np.ndarray) -> float:
    predicted = probabilities.argmax(axis=1)
    return f1_score(y, predicted, average="macro", labels=np.unique(y), zero_division=0)


def _log_loss(y: np.ndarray, probabilities: np.ndarray) -> float:
    return log_loss(y, _normalized(probabilities), labels=np.arange(probabilities.shape[1]))


def _ece(y: np.ndarray, probabilities: np.ndarray) -> float:
    return expected_calibration_error(
        _normalized(probabilities).max(axis=1), probabilities.argmax(axis=1) == y
    )


def _normalized(probabilities: np.ndarray) -> np.ndarray:
    return probabilities / probabilities.sum(axis=1, keepdims=True)


CLASSIFICATION = {
    "accuracy": lambda y, probabilities: accuracy_score(y, probabilities.argmax(axis=1)),
    "balanced_accuracy": lambda y, probabilities: balanced_accuracy_score(y, probabilities.argmax(axis=1)),
    "f1_macro": _f1_macro,
    "auroc": macro_auroc,
    "log_loss": _log_loss,
    "ece": _ece,
}
"""Scores of probabilities `[rows, classes]` for class indices `[rows]`, by name; the first chooses unless another is asked for."""

REGRESSION = {"rmse": root_mean_squared_error, "mae": mean_absolute_error, "r2": r2_score}
"""Scores of predicted values `[rows]`, by name; the first chooses unless another is asked for."""


def scores(y: np.ndarray, predicted: np.ndarray, is_regression: bool) -> dict[str, float]:
    """All scores of predicted values `[rows]`, or of probabilities `[rows, classes]`."""
    table = REGRESSION if is_regression else CLASSIFICATION
    return {name: float(score(y, predicted)) for name, score in table.items()}


def validation_score(name: str, y: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """The score of this name as `compute_metrics` returns it: without the loss, which the Trainer computes itself."""
    return {} if name == "loss" else {name: float({**REGRESSION, **CLASSIFICATION}[name](y, predicted))}


def selecting_score(is_regression: bool, args: TrainingArguments) -> str:
    """The score that the best epoch is chosen by: `args.metric_for_best_model`, else accuracy or RMSE.

    Raises:
        UserError: the target has no such score.
    """
    names = list(REGRESSION if is_regression else CLASSIFICATION)
    check_metric(args, [*names, "loss"])
    return asked_metric(args) or names[0]


def better_is_larger(name: str, value: float) -> float:
    """`value` with the sign that makes larger better."""
    return -value if is_lower_better(name) else value
