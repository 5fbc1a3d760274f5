"""Accuracy and calibration of one split."""

import numpy as np
from scipy.special import softmax
from transformers import EvalPrediction

ECE_BINS = 15


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = ECE_BINS) -> float:
    """How far confidence and accuracy are apart, on average over bins of equal width (Guo et al., ICML 2017).

    Args:
        probabilities: `[samples, classes]`, rows sum to one.
        labels: class numbers `[samples]`.
        bins: number of bins of the confidence; a bin holds its upper edge.

    Returns:
        Sum over the bins of `|accuracy - mean confidence| * samples of the bin / samples`.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def accuracy_and_ece(prediction: EvalPrediction) -> dict[str, float]:
    """A Trainer's `compute_metrics`: `accuracy` and `ece` from logits `[samples, classes]`."""
    logits = (
        prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    )
    probabilities = softmax(np.asarray(logits, dtype=np.float64), axis=1)
    labels = np.asarray(prediction.label_ids)
    return {
        "accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
        "ece": expected_calibration_error(probabilities, labels),
    }
