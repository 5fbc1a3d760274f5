"""Class weights: from a setting to the weight of each item's class."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

BALANCED = "balanced"


def as_setting(class_weights: str | Sequence[float] | Tensor) -> str:
    """The scalar form of class weights: `"balanced"`, or the weights joined by commas."""
    if isinstance(class_weights, str):
        return class_weights
    return ",".join(str(float(weight)) for weight in class_weights)


def parse(setting: str) -> list[float] | None:
    """The weights a setting lists, or None for `"balanced"`.

    Raises:
        ValueError: the setting is neither.
    """
    if setting == BALANCED:
        return None
    try:
        weights = [float(weight) for weight in setting.split(",")]
    except ValueError:
        weights = []
    if not weights or not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
        raise ValueError(
            f"class_weights must be {BALANCED!r} or non-negative numbers, one per class, joined by commas "
            f"('1,2.5,0.5'), not all 0. Found {setting!r}."
        )
    return weights


def uncounted(setting: str | None, dataset: Any) -> bool:
    """Whether there are no class weights yet, as where a Trainer without a training set only evaluates."""
    return setting == BALANCED and dataset is None


def check_counted(setting: str | None, dataset: Any) -> None:
    """Raise `ValueError` where class weights are `"balanced"` but there is no training set."""
    if uncounted(setting, dataset):
        raise ValueError(
            f"class_weights={BALANCED!r} counts the labels of train_dataset, but the Trainer has none, which is enough for "
            "evaluation alone: give it a train_dataset, or list the weights: class_weights='1,2.5,0.5'."
        )


def class_weights_of(setting: str, num_classes: int, dataset: Any, label_name: str) -> Tensor:
    """The weight of every class.

    Args:
        setting: `"balanced"` or numbers joined by commas.
        num_classes: number of classes of the model.
        dataset: the training set; only read for `"balanced"`. Where it has an attribute named like a label column
            (`labels`, say) with one integer per sample, that attribute is read instead of every sample.
        label_name: the label column of `dataset` (`label` and `label_ids` are looked for too). Labels that are not a
            class (-100, 255) are not counted.

    Returns:
        float32 `[num_classes]`. `"balanced"` gives `items / (classes * items of the class)`, so that classes have the
        same total weight and the mean weight of the items is 1; a class without items gets 0.

    Raises:
        ValueError: the number of weights is not that of the classes, or the labels cannot be counted.
    """
    weights = parse(setting)
    if weights is not None:
        if len(weights) != num_classes:
            raise ValueError(
                f"class_weights lists {len(weights)} weights, but the model has {num_classes} classes."
            )
        return torch.tensor(weights)
    counts = torch.zeros(num_classes, dtype=torch.float64)
    for labels in _label_chunks(dataset, label_name):
        if labels.is_floating_point():
            raise ValueError(
                f"class_weights={BALANCED!r} needs integer labels from 0 to {num_classes - 1} in the training set. "
                "List the weights instead: class_weights='1,2.5,0.5'."
            )
        counts += torch.bincount(labels[(labels >= 0) & (labels < num_classes)], minlength=num_classes)
    present = counts > 0
    return torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1)), 0.0).float()


def _label_chunks(dataset: Any, label_name: str) -> Iterator[Tensor]:
    if dataset is None or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ValueError(
            f"class_weights={BALANCED!r} counts the labels of train_dataset, which needs a length; this is "
            f"{type(dataset).__name__}. List the weights instead: class_weights='1,2.5,0.5'."
        )
    names = (label_name, "label", "label_ids")
    if isinstance(dataset, Dataset):
        name = next((name for name in names if name in dataset.column_names), None)
        if name is None:
            raise ValueError(
                f"train_dataset has no column {label_name!r}, only {', '.join(dataset.column_names)}."
            )
        # One column alone is read, so no image is decoded.
        columns: Iterable[Any] = dataset.select_columns(name).iter(batch_size=4096)
        for batch in columns:
            yield torch.cat([torch.as_tensor(labels).reshape(-1) for labels in batch[name]])
        return
    for name in names:
        every = getattr(dataset, name, None)
        if every is not None and hasattr(every, "__len__") and len(every) == len(dataset):
            yield torch.as_tensor(every).reshape(-1)
            return
    for i in range(len(dataset)):
        example = dataset[i]
        found = next((example[name] for name in names if name in example), None)
        if found is None:
            raise ValueError(
                f"Example {i} of train_dataset has no {label_name!r}, only {', '.join(example)}."
            )
        yield torch.as_tensor(found).reshape(-1)


def weight_of_items(classes: Tensor, class_weights: Tensor) -> Tensor:
    """The weight of each item's class.

    Args:
        classes: integer class of each item, any shape (negative or out of range where ignored); or probabilities
            `[batch, classes]`, whose item gets the expected weight.
        class_weights: float32 `[classes]`.

    Returns:
        float32, one element per item.
    """
    class_weights = class_weights.to(classes.device)
    if classes.is_floating_point():
        return classes.float() @ class_weights
    return class_weights[classes.clamp(0, len(class_weights) - 1)]
