"""Images that arrive one after the other, from the Hub or large local files, without being stored first."""

from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from rgd_hf.batches.datasets import seeded
from rgd_hf.hub.errors import HubError, find_failure
from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.vision.decoding import BadImages, UnreadableImageError, open_image
from rgd_hf.scripts.vision.metrics import IGNORED

SHUFFLE_BUFFER = 10_000


class StreamedImages(torch.utils.data.IterableDataset):
    """Images of a streamed data set; order and augmentations depend on seed and epoch alone.

    Args:
        rows: streamed rows with an image column and a label column of class numbers.
        image_column: name of the image column.
        label_column: name of the label column.
        size: number of rows; None if it is not known (training then needs `max_steps`).
        classes: number of classes.
        transform: maps an RGB image to a float tensor `[3, height, width]`.
        bad: handling of unreadable images: in training they are skipped, in evaluation their label is -100.
        seed: random seed of order and augmentations; None for evaluation, in the stream's own order.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        image_column: str,
        label_column: str,
        size: int | None,
        classes: int,
        transform: Callable[[Any], Tensor],
        bad: BadImages,
        seed: int | None,
    ):
        rows = rows.select_columns([image_column, label_column])
        features = rows.features or {}
        if isinstance(features.get(image_column), datasets.Image):
            rows = rows.cast_column(image_column, datasets.Image(decode=False))
        self.rows = rows if seed is None else rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
        self.split = rows.split  # of the Hub's data set, for the model card
        self.columns = image_column, label_column
        self.size = size
        self.classes = classes
        self.transform = transform
        self.bad = bad
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        if self.size is None:
            raise TypeError("the number of images in this stream is not known")
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentations of an epoch, from 0."""
        self.epoch = epoch
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        for number, row in enumerate(self._read()):
            example = self._prepare(row, (self.seed or 0, self.epoch, worker.id if worker else 0, number))
            if example is not None:
                yield example

    def _read(self) -> Iterator[dict[str, Any]]:
        number = 0
        try:
            for row in self.rows:
                yield row
                number += 1
        except Exception as error:
            failure = find_failure(error)
            if failure is None:
                raise
            raise HubError(
                f"the images could not be read any further, after {number:,} of epoch {self.epoch + 1}. {failure} "
                "Checkpoints are kept: the same command resumes from the last."
            ) from error

    def _prepare(self, row: dict[str, Any], key: tuple[int, ...]) -> dict[str, Any] | None:
        source, label = row[self.columns[0]], row[self.columns[1]]
        if not isinstance(label, int) or not 0 <= label < self.classes:
            raise UserError(
                f"image {key[-1]} of the stream has the label {label!r}: numbers from 0 to {self.classes - 1} are allowed."
            )
        try:
            image = open_image(source)
        except UnreadableImageError as error:
            path = source.get("path") if isinstance(source, dict) else None
            self.bad.found(path or f"image {key[-1]} of the stream (epoch {key[1]}, worker {key[2]})", error)
            if self.seed is not None:
                return None
            image, label = open_image(np.zeros((8, 8), dtype=np.uint8)), IGNORED
        if self.seed is None:
            return {"pixel_values": self.transform(image), "labels": label}
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        with seeded(seed):
            return {"pixel_values": self.transform(image), "labels": label, "seed": seed}


def stream_classes(
    rows: datasets.IterableDataset, label_column: str, names: list[str] | None
) -> tuple[str, ...]:
    """Names of the classes of a stream: the user's, or those that its label column carries.

    Raises:
        UserError: neither, or no such column.
    """
    features = rows.features or {}
    if features and label_column not in features:
        raise UserError(f"the stream lacks the column {label_column!r}; found: {listed(features)}.")
    feature = features.get(label_column)
    if names:
        return tuple(names)
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    raise UserError(
        "the classes of this stream are not known before it is read: give them with --class_names, in the order of "
        "their numbers."
    )
