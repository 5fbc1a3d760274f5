"""Accuracy of an image classifier: top-1, top-5, of the worst class, and of many-, medium- and few-shot classes."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from transformers import EvalPrediction

TOP = 5
IGNORED = -100
MANY, FEW = 100, 20


def keep_best_classes(logits: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable classes, and how probable the first is: a Trainer's `preprocess_logits_for_metrics`.

    50,000 rows of 1,000 logits would be gathered and kept otherwise.

    Returns:
        Class numbers int64 `[batch, min(5, classes)]` and probabilities float32 `[batch]`.
    """
    logits = (logits[0] if isinstance(logits, tuple) else logits).float()
    best = logits.topk(min(TOP, logits.shape[-1]), dim=-1)
    return best.indices, (best.values[:, 0] - logits.logsumexp(dim=-1)).exp()


def image_metric_names(classes: int, groups: Mapping[str, np.ndarray]) -> list[str]:
    """The keys of what `make_image_metrics(groups)` computes for so many classes."""
    top = ["top5_accuracy"] if classes >= TOP else []
    return ["accuracy", *top, "worst_class_accuracy", *(f"{name}_shot_accuracy" for name in groups)]


def make_image_metrics(
    groups: Mapping[str, np.ndarray],
) -> Callable[[EvalPrediction], dict[str, float]]:
    """A Trainer's `compute_metrics` on what `keep_best_classes` keeps; NaN where no image was readable.

    Args:
        groups: class numbers by the group's name; each adds `<name>_shot_accuracy`, the mean over its classes.
    """

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        best, labels = np.asarray(prediction.predictions[0]), np.asarray(prediction.label_ids)
        readable = labels != IGNORED
        if not readable.any():  # the model is worth keeping all the same
            return {"accuracy": float("nan"), "worst_class_accuracy": float("nan")}
        best, labels = best[readable], labels[readable]
        right = best[:, 0] == labels
        scores = {"accuracy": float(right.mean())}
        if best.shape[1] == TOP:
            scores["top5_accuracy"] = float((best == labels[:, None]).any(axis=1).mean())
        present, number = np.unique(labels, return_inverse=True)
        by_class = np.bincount(number, weights=right) / np.bincount(number)
        scores["worst_class_accuracy"] = float(by_class.min())
        for name, classes in groups.items():
            members = np.isin(present, classes)
            if members.any():
                scores[f"{name}_shot_accuracy"] = float(by_class[members].mean())
        return scores

    return compute_metrics


def shot_groups(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Class numbers of the `many` (over 100 training images), `medium` (20 to 100) and `few` (under 20) shot groups.

    Source: Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019 (arXiv 1904.05160).

    Args:
        counts: training images of every class, `[classes]`.

    Returns:
        The groups that have classes; nothing where all classes are in one group.
    """
    groups = {
        "many": np.flatnonzero(counts > MANY),
        "medium": np.flatnonzero((counts >= FEW) & (counts <= MANY)),
        "few": np.flatnonzero(counts < FEW),
    }
    groups = {name: classes for name, classes in groups.items() if len(classes)}
    return groups if len(groups) > 1 else {}
