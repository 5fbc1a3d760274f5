"""Accuracy and calibration of one split."""

import numpy as np
from transformers import EvalPrediction

from rgd_hf.scripts.training.calibration import confidence_of, expected_calibration_error


def accuracy_and_ece(prediction: EvalPrediction) -> dict[str, float]:
    """A Trainer's `compute_metrics`: `accuracy` and `ece` from logits `[samples, classes]`."""
    outputs = prediction.predictions
    logits = np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs)
    correct = logits.argmax(axis=1) == np.asarray(prediction.label_ids)
    return {
        "accuracy": float(correct.mean()),
        "ece": expected_calibration_error(confidence_of(logits), correct),
    }
