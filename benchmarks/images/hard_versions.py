"""Train as `recipes/imagenet.py` does, on a hard version of its images: classes of falling size, labels that are wrong.

    python benchmarks/images/hard_versions.py recipes/configs/digits_vit.yaml --imbalance_factor 10 --label_noise 0.2

Every option of the recipe works as there. Evaluation stays as it is: on all classes, with their labels.
"""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # called by its path: what it imports lies in the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.study.scripts import load_module
from rgd_hf.scripts.cli import parse_args, run_recipe
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.files.label_noise import with_wrong_labels
from rgd_hf.scripts.training.results import settings_of
from rgd_hf.scripts.vision.data import SUBSET_SEED, ImageDataArguments, load_image_sets
from rgd_hf.scripts.vision.metrics import shot_groups
from rgd_hf.scripts.vision.sets import ImageSet

imagenet = load_module("recipes/imagenet.py")
DEFAULTS, MOVED = imagenet.DEFAULTS, imagenet.MOVED


@dataclass
class HardVersionArguments:
    """Hard version of the training images."""

    imbalance_factor: float = field(
        default=1.0,
        metadata={"help": "Ratio of the largest to the smallest class: class sizes decrease exponentially."},
    )
    label_noise: float = field(
        default=0.0,
        metadata={
            "help": "Fraction of the training labels that are replaced by a wrong one; held-out labels are not changed."
        },
    )
    subset_seed: int = field(
        default=SUBSET_SEED,
        metadata={
            "help": "Seed of --max_train_samples, --imbalance_factor, --holdout_fraction and --label_noise; apart from "
            "--seed, so that runs with several seeds see the same data."
        },
    )

    def __post_init__(self):
        if self.imbalance_factor < 1:
            raise UserError(
                f"--imbalance_factor must be at least 1 (no imbalance), not {self.imbalance_factor:g}."
            )
        if not 0 <= self.label_noise < 1:
            raise UserError(f"--label_noise must be at least 0 and below 1, not {self.label_noise:g}.")


ARGUMENTS = (HardVersionArguments, *imagenet.ARGUMENTS)


def main(argv: list[str] | None = None) -> dict:
    """Train once; what `all_results.json` holds."""
    description = (__doc__ or "").split("\n\n")[0]
    hard, *others = parse_args(ARGUMENTS, argv, description=description, defaults=DEFAULTS, moved=MOVED)
    return imagenet.train(*others, load=partial(load_images, hard), settings=settings_of(hard))


def load_images(hard: HardVersionArguments, args: ImageDataArguments, training_args: Any) -> Any:
    """The recipe's images, in the hard version; `groups` go by the true classes."""
    if args.streaming:
        raise UserError(
            "--imbalance_factor and --label_noise need all labels beforehand: leave out --streaming."
        )
    thin = partial(with_imbalance, factor=hard.imbalance_factor, seed=hard.subset_seed)
    train, validation = load_image_sets(args, hard.subset_seed, thin)
    noisy = with_label_noise(train, hard.label_noise, hard.subset_seed)
    return imagenet.Images(noisy, validation, shot_groups(train.counts()))


def with_imbalance(images: ImageSet, factor: float, seed: int) -> ImageSet:
    """Keep `n_max * factor**(-c / (classes - 1))` images of class c, drawn at random.

    Source: the long-tailed CIFAR of Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR
    2019 (arXiv 1901.05555). The first class keeps all its images, the last `1 / factor` as many.

    Args:
        images: `n_max` is the size of its largest class.
        factor: images of the first class over those of the last; 1 keeps all images.
        seed: random seed of the draw.
    """
    if factor == 1:
        return images
    classes, largest = len(images.classes), images.counts().max()
    generator = np.random.default_rng(seed)
    kept = []
    for number in range(classes):
        size = max(1, round(largest * factor ** (-number / max(1, classes - 1))))
        members = np.flatnonzero(images.labels == number)
        kept.append(generator.permutation(members)[:size])
    return images.select(np.sort(np.concatenate(kept)))


def with_label_noise(images: ImageSet, share: float, seed: int) -> ImageSet:
    """Replace the label of `share` of the images, drawn at random, by one of the other classes (symmetric noise)."""
    return images.with_labels(with_wrong_labels(images.labels, len(images.classes), share, seed))


if __name__ == "__main__":
    run_recipe(main)
