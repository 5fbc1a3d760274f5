"""Hard versions of a labelled set: classes of exponentially falling size, and labels that are wrong."""

import numpy as np

from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.label_noise import with_wrong_labels
from rgd_hf.scripts.vision.sets import ImageSet

MANY, FEW = 100, 20


def with_imbalance(images: ImageSet, factor: float, seed: int) -> ImageSet:
    """Keep `n_max * factor**(-c / (classes - 1))` images of class c, drawn at random.

    Source: the long-tailed CIFAR of Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR
    2019 (arXiv 1901.05555). The first class keeps all its images, the last `1 / factor` as many.

    Args:
        images: `n_max` is the size of its largest class.
        factor: images of the first class over those of the last; at least 1.
        seed: of the draw.
    """
    if factor < 1:
        raise UserError(f"--imbalance_factor must be at least 1 (no imbalance), not {factor:g}.")
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
