"""Metrics of text classification as a local `evaluate.Metric`: the official ones of GLUE, and those for own files.

They are scikit-learn's and scipy's; `evaluate.load` would fetch its scripts from the Hub.
"""

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error
from transformers import EvalPrediction

CORRELATIONS = ("pearson", "spearmanr")


def _accuracy(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    return {"accuracy": accuracy_score(references, predictions)}


def _accuracy_and_f1(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    return {"accuracy": accuracy_score(references, predictions), "f1": f1_score(references, predictions)}


def _accuracy_and_macro_f1(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    return {
        "accuracy": accuracy_score(references, predictions),
        "f1_macro": f1_score(references, predictions, average="macro"),
    }


def _matthews(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    return {"matthews_correlation": matthews_corrcoef(references, predictions)}


def _correlations(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    if len(references) < 2:
        return dict.fromkeys(CORRELATIONS, float("nan"))
    return {
        "pearson": pearsonr(predictions, references)[0],
        "spearmanr": spearmanr(predictions, references)[0],
    }


def _regression(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    return {"mse": mean_squared_error(references, predictions), **_correlations(predictions, references)}


def _multi_label(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    return {
        "exact_match": accuracy_score(references, predictions),
        "f1_micro": f1_score(references, predictions, average="micro", zero_division=0),
        "f1_macro": f1_score(references, predictions, average="macro", zero_division=0),
    }


FUNCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {
    "accuracy": _accuracy,
    "accuracy_and_f1": _accuracy_and_f1,
    "accuracy_and_macro_f1": _accuracy_and_macro_f1,
    "matthews": _matthews,
    "correlations": _correlations,
    "regression": _regression,
    "multi_label": _multi_label,
}
REAL_VALUED = ("correlations", "regression")


class TextClassificationMetric(evaluate.Metric):
    """The metric named by `config_name`, one of `FUNCTIONS`.

    `compute(predictions=..., references=...)` takes class indices, real numbers (`correlations`, `regression`) or
    rows of 0 and 1 (`multi_label`), and returns a dict of floats. Correlations of one sample, or of equal ones, are NaN.
    """

    def _info(self) -> evaluate.MetricInfo:
        value: Any = datasets.Value("float64" if self.config_name in REAL_VALUED else "int64")
        if self.config_name == "multi_label":
            value = datasets.Sequence(value)
        return evaluate.MetricInfo(
            description="Metrics of text classification, computed by scikit-learn and scipy.",
            citation="",
            inputs_description=self.__class__.__doc__ or "",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, *, predictions: Any, references: Any) -> dict[str, float]:
        scores = FUNCTIONS[str(self.config_name)](np.asarray(predictions), np.asarray(references))
        return {name: float(value) for name, value in scores.items()}


def metric_names(name: str, references: Sequence[Any] | None = None) -> list[str]:
    """The keys of what the metric `name` of `FUNCTIONS` computes; without correlations where `references`, float `[samples]`, are equal."""
    samples = np.array([[0], [1]] if name == "multi_label" else [0, 1])
    names = list(FUNCTIONS[name](samples, samples))
    constant = references is not None and name in REAL_VALUED and len(set(references)) < 2
    return [key for key in names if not (constant and key in CORRELATIONS)]


def predicted_labels(logits: Any, problem_type: str) -> np.ndarray:
    """What logits predict.

    Args:
        logits: `[samples, classes]`, or a tuple that begins with them.
        problem_type: as in a model's configuration.

    Returns:
        Class numbers int64 `[samples]`; for `"multi_label_classification"` 0 and 1 `[samples, classes]`; for
        `"regression"` float64 `[samples]`.
    """
    logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits, dtype=np.float64)
    if problem_type == "regression":
        return logits.reshape(-1)
    if problem_type == "multi_label_classification":
        return (logits > 0).astype(np.int64)
    return logits.argmax(axis=-1)


def make_compute_metrics(name: str) -> Callable[[EvalPrediction], dict[str, float]]:
    """A Trainer's `compute_metrics` for the metric `name` of `FUNCTIONS`: logits `[samples, classes]` to scores."""
    metric = TextClassificationMetric(config_name=name, keep_in_memory=True)
    problem_type = "single_label_classification"
    if name in REAL_VALUED:
        problem_type = "regression"
    elif name == "multi_label":
        problem_type = "multi_label_classification"

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        predictions = predicted_labels(prediction.predictions, problem_type)
        references = np.asarray(prediction.label_ids)
        if name == "multi_label":
            references = references.astype(int)
        return metric.compute(predictions=predictions, references=references) or {}

    return compute_metrics
