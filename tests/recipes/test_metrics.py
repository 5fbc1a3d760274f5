"""Metrics against their definitions, written out with numpy."""

import numpy as np
import pytest
from evaluate import Metric
from transformers import EvalPrediction

from rgd_hf.scripts.text.glue_tasks import GLUE_TASKS
from rgd_hf.scripts.training.metrics import (
    FUNCTIONS,
    TextClassificationMetric,
    make_compute_metrics,
    metric_names,
)

RNG = np.random.default_rng(0)
REFERENCES = RNG.integers(0, 2, 200)
LOGITS = RNG.normal(size=(200, 2)) + np.eye(2)[REFERENCES]
TP, TN = ((LOGITS.argmax(1) == k) & (k == REFERENCES) for k in (1, 0))
TP, TN = TP.sum(), TN.sum()
FP = (LOGITS.argmax(1) == 1).sum() - TP
FN = (LOGITS.argmax(1) == 0).sum() - TN


def score(name: str, logits, references) -> dict[str, float]:
    return make_compute_metrics(name)(EvalPrediction(predictions=logits, label_ids=references))


def test_binary_metrics():
    f1 = 2 * TP / (2 * TP + FP + FN)
    matthews = (TP * TN - FP * FN) / np.sqrt(float((TP + FP) * (TP + FN) * (TN + FP) * (TN + FN)))
    assert score("accuracy", LOGITS, REFERENCES) == pytest.approx({"accuracy": (TP + TN) / 200})
    assert score("accuracy_and_f1", LOGITS, REFERENCES) == pytest.approx(
        {"accuracy": (TP + TN) / 200, "f1": f1}
    )
    assert score("matthews", LOGITS, REFERENCES) == pytest.approx({"matthews_correlation": matthews})
    other_f1 = 2 * TN / (2 * TN + FP + FN)
    assert score("accuracy_and_macro_f1", LOGITS, REFERENCES)["f1_macro"] == pytest.approx(
        (f1 + other_f1) / 2
    )


def test_correlations_take_one_logit_a_sample():
    targets = RNG.normal(size=100)
    logits = (targets + RNG.normal(size=100))[:, None]
    scores = score("regression", logits.astype(np.float32), targets)
    ranks = [np.argsort(np.argsort(values)) for values in (logits[:, 0], targets)]
    assert scores["pearson"] == pytest.approx(np.corrcoef(logits[:, 0], targets)[0, 1], abs=1e-6)
    assert scores["spearmanr"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert scores["mse"] == pytest.approx(np.mean((logits[:, 0] - targets) ** 2), abs=1e-6)
    assert score("correlations", logits, targets) == pytest.approx(
        {k: scores[k] for k in ("pearson", "spearmanr")}
    )


def test_correlations_of_one_sample_are_not_a_number():
    scores = score("regression", np.array([[0.5]]), np.array([2.0]))
    assert scores["mse"] == pytest.approx(2.25)
    assert np.isnan([scores["pearson"], scores["spearmanr"]]).all()
    assert metric_names("regression", [2.0, 2.0]) == ["mse"] and metric_names("correlations", [2.0]) == []
    assert metric_names("regression", [2.0, 1.0]) == metric_names("regression") == list(scores)
    assert metric_names("accuracy", [1]) == ["accuracy"]


def test_multi_label_metrics():
    references = RNG.integers(0, 2, (50, 3)).astype(float)
    logits = RNG.normal(size=(50, 3)) + 2 * references - 1
    hit = (logits > 0) & (references == 1)
    per_class = 2 * hit.sum(0) / ((logits > 0).sum(0) + references.sum(0))
    assert score("multi_label", logits, references) == pytest.approx(
        {
            "exact_match": np.mean(((logits > 0) == references).all(1)),
            "f1_micro": 2 * hit.sum() / ((logits > 0).sum() + references.sum()),
            "f1_macro": per_class.mean(),
        }
    )


def test_every_task_of_glue_has_a_metric_that_is_an_evaluate_metric():
    assert len(GLUE_TASKS) == 9
    for task in GLUE_TASKS.values():
        assert task.metric in FUNCTIONS
        metric = TextClassificationMetric(config_name=task.metric, keep_in_memory=True)
        assert isinstance(metric, Metric)
        metric.add_batch(predictions=[0, 1, 1], references=[0, 1, 0])
        assert all(isinstance(value, float) for value in metric.compute().values())


def test_models_that_return_more_than_logits():
    assert score("accuracy", (LOGITS, np.zeros(3)), REFERENCES) == score("accuracy", LOGITS, REFERENCES)
