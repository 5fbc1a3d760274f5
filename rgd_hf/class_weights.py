"""Class weights: from a setting to the weight of each item's class."""

import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from rgd_hf.batches.datasets import random_states_kept

BALANCED = "balanced"
LIST_THEM = "List the weights instead: class_weights='1,2.5,0.5'."


ClassWeights = str | Sequence[float] | Mapping[int, float] | Tensor


def as_setting(class_weights: ClassWeights | None) -> str | None:
    """The scalar form of class weights: `"balanced"`, or the weights joined by commas; None of None.

    Args:
        class_weights: such a string, or None; or one number per class in the order of the classes (list, tuple, one-dimensional
            tensor or array); or a dict or pandas Series from the classes 0, 1, ... to their numbers, in any order.

    Raises:
        ValueError: it is none of these.
    """
    if class_weights is None or isinstance(class_weights, str):
        return class_weights
    found: Any = class_weights
    try:
        # A pandas Series iterates over its values, in the order of its index.
        if isinstance(found, Mapping) or (hasattr(found, "items") and hasattr(found, "index")):
            found = _by_class(list(found.items()))
        elif hasattr(found, "tolist"):
            found = found.tolist()
        elif not hasattr(found, "__getitem__") or not hasattr(found, "__len__") or isinstance(found, bytes):
            raise TypeError
        return ",".join(str(float(weight)) for weight in found)
    except (TypeError, ValueError):
        raise ValueError(
            f"class_weights must be {BALANCED!r}, numbers joined by commas ('1,2.5,0.5'), one number per class in the order "
            "of the classes (a list, tuple, or one-dimensional tensor or array), or a dict or pandas Series from the classes "
            f"0, 1, ... to their numbers. Found {type(class_weights).__name__} {class_weights!r}."
        ) from None


def _by_class(weights: list[tuple[Any, Any]]) -> list[Any]:
    if any(not isinstance(number, Integral) or isinstance(number, bool) for number, _ in weights):
        raise TypeError
    ordered = sorted((int(number), float(weight)) for number, weight in weights)
    if [number for number, _ in ordered] != list(range(len(weights))):
        raise ValueError
    return [weight for _, weight in ordered]


def parse(class_weights: ClassWeights) -> list[float] | None:
    """The weights that are listed, in the order of the classes, or None for `"balanced"`.

    Args:
        class_weights: what `as_setting` takes, but None.

    Raises:
        ValueError: it is neither.
    """
    setting = as_setting(class_weights)
    if setting == BALANCED:
        return None
    try:
        weights = [float(weight) for weight in str(setting).split(",")]
    except ValueError:
        weights = []
    if not weights or not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
        raise ValueError(
            f"class_weights must be {BALANCED!r} or non-negative numbers, one per class, joined by commas "
            f"('1,2.5,0.5'), not all 0. Found {setting!r}."
        )
    return weights


def uncounted(setting: ClassWeights | None, dataset: Any) -> bool:
    """Whether there are no class weights yet, as where a Trainer without a training set only evaluates."""
    return isinstance(setting, str) and setting == BALANCED and dataset is None


def check_counted(setting: ClassWeights | None, dataset: Any) -> None:
    """Raise `ValueError` where class weights are `"balanced"` but there is no training set."""
    if uncounted(setting, dataset):
        raise ValueError(
            f"class_weights={BALANCED!r} counts the labels of train_dataset, but the Trainer has none, which is enough for "
            "evaluation alone: give it a train_dataset, or list the weights: class_weights='1,2.5,0.5'."
        )


def class_weights_of(setting: ClassWeights, num_classes: int, dataset: Any, label_name: str) -> Tensor:
    """The weight of every class.

    Args:
        setting: `"balanced"`, numbers joined by commas, or what else `as_setting` takes, but None.
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
                f"{LIST_THEM}"
            )
        counts += torch.bincount(labels[(labels >= 0) & (labels < num_classes)], minlength=num_classes)
    present = counts > 0
    return torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1)), 0.0).float()


def _label_chunks(dataset: Any, label_name: str) -> Iterator[Tensor]:
    if dataset is None or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ValueError(
            f"class_weights={BALANCED!r} counts the labels of train_dataset, which needs a length; this is "
            f"{type(dataset).__name__}. {LIST_THEM}"
        )
    names = (label_name, "label", "label_ids")
    if isinstance(dataset, Dataset):
        name = next((name for name in names if name in dataset.column_names), None)
        transformed = dataset.format["type"] == "custom"
        if name is None:
            why = (
                f" class_weights={BALANCED!r} does not run its transform (with_transform or set_transform), which would have to "
                "make every example, so a label that only the transform makes is not counted. Add the label as a column."
            )
            raise ValueError(
                f"train_dataset has no column {label_name!r}, only {', '.join(dataset.column_names)}."
                f"{why * transformed} {LIST_THEM}"
            )
        if transformed:
            _check_labels_are_kept(dataset, name, names)
        # One column alone is read, so no image is decoded; a transform or format may need, or hide, others.
        for batch in dataset.with_format(None).select_columns(name).iter(batch_size=4096):
            yield torch.cat([_numbers(labels, name) for labels in batch[name]])
        return
    for name in names:
        every = getattr(dataset, name, None)
        if every is not None and hasattr(every, "__len__") and len(every) == len(dataset):
            yield _numbers(every, name)
            return
    for i in range(len(dataset)):
        example = dataset[i]
        if not isinstance(example, Mapping):
            raise ValueError(
                f"class_weights={BALANCED!r} counts the labels of train_dataset, whose examples must be dicts, not "
                f"{type(example).__name__}. {LIST_THEM}"
            )
        name = next((name for name in names if example.get(name) is not None), None)
        if name is None:
            raise ValueError(
                f"Example {i} of train_dataset has no {label_name!r}, only {', '.join(example)}."
            )
        yield _numbers(example[name], name)


def _numbers(labels: Any, name: str) -> Tensor:
    found = labels if isinstance(labels, Tensor) else np.asarray(labels)
    if not isinstance(found, Tensor) and found.dtype.kind not in "biuf":
        some = labels[0] if isinstance(labels, list | tuple) and labels else labels
        raise ValueError(
            f"class_weights={BALANCED!r} needs integer labels in the training set, but its column {name!r} has "
            f"{some!r}. Encode it (train_dataset.class_encode_column({name!r})), "
            "or list the weights instead: class_weights='1,2.5,0.5'."
        )
    numbers = torch.as_tensor(found).reshape(-1)
    return numbers.long() if numbers.dtype == torch.bool else numbers


def _check_labels_are_kept(dataset: Dataset, name: str, names: Sequence[str]) -> None:
    """Raise `ValueError` where the transform of `dataset` gives a few examples other labels than their column has."""
    rows = sorted({len(dataset) * i // 8 for i in range(8)}) if len(dataset) else []
    stored = dataset.with_format(None).select_columns(name)
    for row in rows:
        with random_states_kept():
            example = dataset[row]
        given = next((example[other] for other in names if other in example), None)
        if given is None:
            return  # a collator finds them elsewhere
        kept = _numbers(stored[row][name], name)
        if not torch.equal(_numbers(given, name).to(kept.dtype), kept):
            raise ValueError(
                f"class_weights={BALANCED!r} reads the column {name!r} of train_dataset without its transform (with_transform "
                f"or set_transform), but that changes labels: those of example {row}. {LIST_THEM}"
            )


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
