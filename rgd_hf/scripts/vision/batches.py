"""Augmented batches that depend on seed, epoch and position alone, not on workers, processes or interruptions."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.data import Mixup
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from rgd_hf.batches.columns import SAMPLE_INDEX
from rgd_hf.batches.datasets import seeded
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.vision.decoding import BadImages, UnreadableImageError, open_image
from rgd_hf.scripts.vision.metrics import IGNORED
from rgd_hf.scripts.vision.sets import ImageSet

MAX_BAD_IN_A_ROW = 100


class Draw(NamedTuple):
    """One look at an image.

    Attributes:
        image: its number.
        seed: random seed of its augmentation.
    """

    image: int
    seed: int


class SeededDraws(Sampler[Draw]):
    """Every image once per epoch, or with repeated augmentation a third of them three times, in random order.

    Repeated augmentation: Hoffer et al., "Augment your batch", 2020 (arXiv 1901.09335), as DeiT uses it: looks at
    the same image stand side by side, and an epoch keeps its length.

    Args:
        size: images.
        repeats: looks at each drawn image; 1 is plain shuffling.
        seed: random seed of order and augmentations.
        epoch: tells the current epoch, from 0. It is asked when an epoch begins, so that a resumed one is the same.
    """

    def __init__(self, size: int, repeats: int, seed: int, epoch: Callable[[], int]):
        self.order = RepeatAugSampler(
            range(size), num_replicas=1, rank=0, num_repeats=repeats, selected_round=0
        )
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Draw]:
        order_seed, *seeds = (
            np.random.SeedSequence((self.seed, self.epoch())).generate_state(len(self) + 1).tolist()
        )
        self.order.set_epoch(order_seed)
        return (Draw(index, seed) for index, seed in zip(self.order, seeds))


class _TransformedImages(Dataset):
    """What training and evaluation images share.

    Args:
        images: the set of images.
        transform: maps an RGB image to a float tensor `[3, height, width]`.
        bad: handling of unreadable images.
    """

    def __init__(self, images: ImageSet, transform: Callable[[Any], Tensor], bad: BadImages):
        self.images = images
        self.transform = transform
        self.bad = bad

    def __len__(self) -> int:
        return len(self.images)

    @property
    def split(self) -> str | None:
        """The split of the Hub's data set that the images are of, for the model card."""
        return self.images.split


class AugmentedImages(_TransformedImages):
    """Training images; an unreadable one is replaced by the next readable one and counted.

    The transform draws from the global random states, which are those of the draw's seed.
    """

    @property
    def labels(self) -> np.ndarray:
        """Class of every image, int64 `[images]`: what balanced class weights count."""
        return self.images.labels

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        for step in range(min(MAX_BAD_IN_A_ROW, len(self))):
            index = (draw.image + step) % len(self)
            try:
                image = open_image(self.images.source(index))
            except UnreadableImageError as error:
                self.bad.found(self.images.where(index), error)
                continue
            with seeded(draw.seed):
                pixels = self.transform(image)
            label = int(self.images.labels[index])
            return {"pixel_values": pixels, "labels": label, "seed": draw.seed, SAMPLE_INDEX: index}
        raise UserError(
            f"{step + 1} unreadable images in a row in {self.images.origin}: see {self.bad.record}."
        )


class PreparedImages(_TransformedImages):
    """Evaluation images; an unreadable one is black, and its label of -100 keeps it out of loss and metrics."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            image, label = open_image(self.images.source(index)), int(self.images.labels[index])
        except UnreadableImageError as error:
            self.bad.found(self.images.where(index), error)
            image, label = open_image(np.zeros((8, 8), dtype=np.uint8)), IGNORED
        return {"pixel_values": self.transform(image), "labels": label}


class ImageCollator:
    """Stack images, and mix those that carry a seed (training images) with timm's Mixup and CutMix.

    Mixing comes before weighting: a sample of the loss is one mixed image with its soft label, and its weight comes
    from the cross-entropy with that soft label. (Weighting the two images behind it apart would need a loss for
    each, which the mixed forward pass does not have.)

    Pixels come with the channels last in memory, where convolutions are fastest; values and shape are the same.

    Args:
        mixup: None for no mixing. Its own label smoothing is to be 0: the Trainer smooths.
    """

    def __init__(self, mixup: Mixup | None):
        self.mixup = mixup

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """`pixel_values` `[batch, 3, height, width]`; `labels` int64 `[batch]` or, mixed, float `[batch, classes]`."""
        pixels = torch.stack([example["pixel_values"] for example in examples])
        # Of the batch rather than of the model, whose filters FSDP wants in their usual order.
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        labels = torch.tensor([example["labels"] for example in examples])
        if self.mixup is None or "seed" not in examples[0]:
            return {"pixel_values": pixels, "labels": labels}
        count = len(examples)
        if count % 2:  # timm mixes even batches only
            pixels, labels = torch.cat([pixels, pixels[:1]]), torch.cat([labels, labels[:1]])
        with seeded((examples[0]["seed"] + 1) % 2**32):
            pixels, labels = self.mixup(pixels, labels)
        return {"pixel_values": pixels[:count], "labels": labels[:count]}
