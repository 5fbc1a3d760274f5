"""How far the confidence of predictions is from their accuracy."""

import numpy as np
from scipy.special import softmax


def confidence_of(logits: np.ndarray) -> np.ndarray:
    """Probability of the predicted class: logits float `[samples, classes]` to float64 `[samples]`."""
    return softmax(np.asarray(logits, dtype=np.float64), axis=1).max(axis=1)


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Gap between confidence and accuracy, averaged over bins of equal width and weighted by their size.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (arXiv 1706.04599), equation 3.

    Args:
        confidence: probability of the predicted class, float `[samples]`.
        correct: whether it is the right one, bool `[samples]`.
        bins: number of bins of the confidence; a bin holds its upper edge.

    Returns:
        Sum over the bins of `|accuracy - mean confidence| * samples of the bin / samples`, from 0 to 1.
    """
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(correct))
