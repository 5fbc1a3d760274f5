"""Labelled images of which any one can be read by its number: from folders, data set rows, or scikit-learn's digits."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.files.data_files import require_columns, require_directory
from rgd_hf.scripts.vision.image_files import counted, folders_in, images_below, say_beside, say_left_out


@dataclass(frozen=True)
class ImageSet:
    """Images with one class each.

    Attributes:
        images: encoded images by row, as `decoding.open_image` takes them.
        rows: which of `images` belong to the set, in order; int64 `[n]`.
        labels: class numbers, int64 `[n]`.
        classes: names of all classes, in the order of their numbers.
        origin: where the images come from, for messages.
        split: the split of the Hub's data set that they are of.
    """

    images: Sequence[Any]
    rows: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    origin: str
    split: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def source(self, index: int) -> Any:
        """The encoded image number `index` of the set."""
        return self.images[int(self.rows[index])]

    def where(self, index: int) -> str:
        """How messages call the image number `index`."""
        source, row = self.source(index), int(self.rows[index])
        if isinstance(source, str):
            return source
        path = source.get("path") if isinstance(source, dict) else None
        return f"row {row} of {self.origin}" + (f" ({path})" if path else "")

    def counts(self) -> np.ndarray:
        """Images of every class, `[classes]`."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def select(self, indices: np.ndarray) -> "ImageSet":
        """The images with these numbers."""
        return replace(self, rows=self.rows[indices], labels=self.labels[indices])

    def with_labels(self, labels: np.ndarray) -> "ImageSet":
        """The same images with other labels."""
        return replace(self, labels=labels)

    def in_order_of(self, classes: Sequence[str]) -> "ImageSet":
        """The same images with labels that count in the order of `classes`, those of the training set.

        Raises:
            UserError: a class has images here but is not among `classes`.
        """
        unknown = [name for name, n in zip(self.classes, self.counts()) if n and name not in classes]
        if unknown:
            raise UserError(
                f"{self.origin} has classes that the training data lacks: {listed(unknown[:10])} ({len(unknown)} in "
                f"all). Classes to train on: {listed(list(classes)[:10])} ({len(classes)} in all)."
            )
        positions = {name: number for number, name in enumerate(classes)}
        table = np.array([positions.get(name, -1) for name in self.classes], dtype=np.int64)
        return replace(self, labels=table[self.labels], classes=tuple(classes))


def sample_rows(images: ImageSet, count: int | None, seed: int, option: str) -> ImageSet:
    """`count` images drawn with the shares of their classes kept; all where None or more than there are."""
    if count is None or count >= len(images):
        return images
    if count < len(images.classes):
        raise UserError(f"--{option} must be at least the number of classes, {len(images.classes)}: {count}.")
    every = np.arange(len(images))
    stratify = (
        images.labels if images.counts().min() >= 2 and len(images) - count >= len(images.classes) else None
    )
    chosen, _ = train_test_split(every, train_size=count, random_state=seed, stratify=stratify)
    return images.select(np.sort(chosen))


_SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")


def read_folder(directory: str | Path) -> ImageSet:
    """The images of `<directory>/<class>/*.JPEG` (of every format that Pillow opens; also below the class).

    Raises:
        UserError: no such directory, no class folders, folders of splits in their place, or a class folder without images.
    """
    folder = Path(directory)
    require_directory(folder, "a folder with a folder of images for each class is needed")
    found = {path.name: images_below(path) for path in folders_in(folder)}
    if not found:
        raise UserError(f"{folder} has no folders of images, one per class.")
    if len(found) > 1 and set(found) <= set(_SPLITS):
        first, second, *_ = sorted(found, key=_SPLITS.index)
        raise UserError(
            f"{folder} has the folders {listed(found)}, which are called like splits and not like classes. Give the two in "
            f"which the class folders are: --data_dir {folder / first} {folder / second}."
        )
    others = sum((suffixes for _, suffixes in found.values()), Counter())
    empty = [name for name, (images, _) in found.items() if not images]
    if empty:
        held = sum((found[name][1] for name in empty), Counter())
        there = f" (other files there, by suffix: {counted(held)})" if held else ""
        raise UserError(
            f"{folder} has {len(empty)} class folder(s) without images: {listed(empty[:10])}{there}. Remove them, or "
            "add images of a format that Pillow opens (png, jpeg, webp, tiff, ...)."
        )
    say_left_out(folder, others)
    say_beside(folder, "classes")
    paths = [path for images, _ in found.values() for path in images]
    labels = np.repeat(np.arange(len(found)), [len(images) for images, _ in found.values()])
    return ImageSet(paths, np.arange(len(paths)), labels, tuple(found), str(folder))


def from_dataset(
    dataset: Dataset, image_column: str, label_column: str, class_names: Sequence[str] | None, origin: str
) -> ImageSet:
    """The rows of a data set with an image column and a label column.

    Args:
        dataset: images as `datasets.Image`, or as a struct of `bytes` and `path`.
        image_column: its name.
        label_column: class numbers (a `ClassLabel` knows their names) or class names.
        class_names: names of the classes in the order of their numbers; those of the column where None.
        origin: for messages.

    Raises:
        UserError: a column is missing or empty, labels are no classes, or `class_names` do not fit them.
    """
    require_columns(dataset, [image_column, label_column], origin)
    feature = dataset.features[label_column]
    values = np.asarray(dataset.with_format("numpy")[label_column][:])
    labels, names = class_numbers(values, label_names(feature, class_names), origin, label_column)
    images = dataset.select_columns([image_column])
    if isinstance(images.features[image_column], Image):
        images = images.cast_column(image_column, Image(decode=False))
    elif "bytes" not in str(images.features[image_column]):
        raise UserError(
            f"the column {image_column!r} of {origin} holds {images.features[image_column]}, not images. Columns: "
            f"{listed(dataset.column_names)}; choose with --columns."
        )
    return ImageSet(images[image_column], np.arange(len(labels)), labels, names, origin)


def label_names(feature: Any, class_names: Sequence[str] | None) -> tuple[str, ...] | None:
    """The user's class names, or those that a label column carries; None where neither names them."""
    if class_names:
        return tuple(class_names)
    return tuple(feature.names) if isinstance(feature, ClassLabel) else None


def class_numbers(
    values: np.ndarray, names: tuple[str, ...] | None, origin: str, column: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers `[n]` and class names of a label column that holds numbers or names."""
    if values.dtype.kind in "OUS":
        if any(value is None for value in values):
            raise UserError(f"the label column {column!r} of {origin} has empty rows.")
        names = names or tuple(sorted(set(values.tolist())))
        positions = {name: number for number, name in enumerate(names)}
        unknown = sorted(set(values.tolist()) - set(names))
        if unknown:
            raise UserError(f"{origin} has labels that --class_names lacks: {listed(unknown[:10])}.")
        return np.array([positions[value] for value in values.tolist()], dtype=np.int64), names
    if values.dtype.kind not in "iub" or values.ndim != 1:
        raise UserError(
            f"the label column {column!r} of {origin} holds {values.dtype} of {values.ndim} dimension(s): class "
            "numbers (from 0) or class names are needed, one per image."
        )
    labels = values.astype(np.int64)
    names = names or tuple(str(number) for number in range(int(labels.max()) + 1))
    if labels.min() < 0 or labels.max() >= len(names):
        raise UserError(
            f"the labels of {origin} run from {labels.min()} to {labels.max()}, but there are {len(names)} classes: "
            f"numbers from 0 to {len(names) - 1} are allowed."
        )
    return labels, names


def digits() -> tuple[ImageSet, ImageSet]:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels: 1,437 to train on and 360 to validate."""
    data: Any = load_digits()
    images = list((data.images * (255 / 16)).round().astype(np.uint8))
    labels = data.target.astype(np.int64)
    every = ImageSet(
        images, np.arange(len(images)), labels, tuple(str(n) for n in range(10)), "scikit-learn's digits"
    )
    train, validation = train_test_split(every.rows, test_size=0.2, random_state=0, stratify=labels)
    return every.select(np.sort(train)), every.select(np.sort(validation))
