"""Model inputs of a sample: a normalized image, augmented in training, or token ids."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from transformers import PreTrainedTokenizerBase

from rgd_hf.scripts.domains.environments import Environment

MAX_BYTES_IN_MEMORY = 4 * 2**30


class View(Protocol):
    """The samples of an environment as a model's inputs."""

    def sample(self, number: int, seed: int | None) -> dict[str, Any]:
        """Inputs and `labels` of one sample; augmented at random if a seed is given."""
        ...


class ImageView:
    """Images of an environment at the model's size.

    They are decoded once and kept as uint8 where that takes less than 4 GiB; otherwise whenever they are read.

    Args:
        environment: an environment of images.
        size: height and width for the model.
        mean: mean of the normalization, one number per channel.
        std: standard deviation of the normalization, one number per channel.
        augment: whether to augment samples that have a seed: random crops of 70 to 100 %, flips, colour jitter and grey images,
            as DomainBed does.
    """

    def __init__(
        self,
        environment: Environment,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: bool = True,
    ):
        self.environment, self.size = environment, size
        self.normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
        self.augmentation = _augmentation(size) if augment else None
        self.decoded: Tensor | None = None
        if len(environment.labels) * size * size * 3 < MAX_BYTES_IN_MEMORY:
            decoded = torch.empty(len(environment.labels), 3, size, size, dtype=torch.uint8)
            for number, image in enumerate(decoded):
                image.copy_(self._decode(number))
            self.decoded = decoded

    def sample(self, number: int, seed: int | None) -> dict[str, Any]:
        """`pixel_values` float32 `[3, size, size]` and `labels`."""
        image = self._decode(number) if self.decoded is None else self.decoded[number]
        if self.augmentation is not None and seed is not None:
            # The same crop for every algorithm, and for any number of worker processes.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                image = self.augmentation(image)
        return {"pixel_values": self.normalize(image), "labels": int(self.environment.labels[number])}

    def _decode(self, number: int) -> Tensor:
        image = v2.functional.to_image(self.environment.inputs[number])
        return v2.functional.resize(image, [self.size, self.size], antialias=True).as_subclass(Tensor)


def _augmentation(size: int) -> v2.Transform:
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.7, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.3, 0.3, 0.3, 0.3),
            v2.RandomGrayscale(0.1),
        ]
    )


class TextView:
    """Texts of an environment as token ids.

    Args:
        environment: an environment of texts.
        tokenizer: tokenizer of the model.
        max_length: maximum number of tokens, at most the tokenizer's own; longer texts are truncated.
    """

    def __init__(self, environment: Environment, tokenizer: PreTrainedTokenizerBase, max_length: int):
        self.environment = environment
        texts = [text or "" for text in environment.inputs]
        self.encoded: Any = tokenizer(
            texts, truncation=True, max_length=min(max_length, tokenizer.model_max_length)
        )

    def sample(self, number: int, seed: int | None) -> dict[str, Any]:
        """The output of the tokenizer, and `labels`; texts are not augmented."""
        tokens = {name: column[number] for name, column in self.encoded.items()}
        return {**tokens, "labels": int(self.environment.labels[number])}


class Subset(Dataset):
    """A subset of an environment's samples, without augmentation.

    Args:
        view: the view of the environment.
        numbers: indices of the samples.
    """

    def __init__(self, view: View, numbers: np.ndarray):
        self.view, self.numbers = view, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.view.sample(int(self.numbers[position]), None)
