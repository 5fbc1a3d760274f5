"""Digits as domains: rotated by 0 to 75 degrees, or with a colour that tells the label more or less reliably.

After RotatedMNIST (Ghifary et al., ICCV 2015) and ColoredMNIST (Arjovsky et al., 2019), on any set of small grey
images: scikit-learn's 1,797 handwritten digits, which come with the package, or a file of the user's.
"""

import numpy as np
from PIL import Image as PILImage
from sklearn.datasets import load_digits

from rgd_hf.scripts.domains.environments import DomainData, Environment, check_environments
from rgd_hf.scripts.domains.sources import image_column
from rgd_hf.scripts.files.data_files import read_file, require_columns
from rgd_hf.scripts.vision.sets import class_numbers

ANGLES = (0, 15, 30, 45, 60, 75)
COLOUR_FLIPS = {"plus_90": 0.1, "plus_80": 0.2, "minus_90": 0.9}
LABEL_NOISE = 0.25
SIZE = 28


def grey_images(filename: str | None = None, label_column: str = "label") -> tuple[np.ndarray, np.ndarray]:
    """Grey images and their labels, in a fixed random order.

    Args:
        filename: file with a column `image`, e.g. a parquet file of MNIST; scikit-learn's digits where None.
        label_column: name of its label column.

    Returns:
        uint8 `[samples, 28, 28]` and int64 `[samples]`.

    Raises:
        UserError: the file cannot be read, lacks a column, or its rows are no labelled images.
    """
    if filename is None:
        digits = load_digits()
        pictures = [PILImage.fromarray((image * 255 / 16).astype(np.uint8)) for image in digits.images]
        labels = digits.target
    else:
        rows = read_file(filename)
        require_columns(rows, ["image", label_column], filename)
        images = image_column(rows, filename)
        pictures = [images[number].convert("L") for number in range(len(images))]
        labels, _ = class_numbers(np.array(rows[label_column][:]), None, filename, label_column)
    pixels = np.stack(
        [np.asarray(picture.resize((SIZE, SIZE), PILImage.Resampling.BILINEAR)) for picture in pictures]
    )
    order = np.random.RandomState(0).permutation(len(pixels))
    return pixels[order], labels[order].astype(np.int64)


def rotated_digits(images: np.ndarray, labels: np.ndarray) -> DomainData:
    """Six environments of different images, each rotated by one of `ANGLES` degrees.

    Args:
        images: uint8 `[samples, height, width]`.
        labels: int64 `[samples]`.
    """
    environments = []
    for position, angle in enumerate(ANGLES):
        chosen = slice(position, None, len(ANGLES))
        rotated = [
            np.asarray(PILImage.fromarray(image).rotate(angle, PILImage.Resampling.BILINEAR))
            for image in images[chosen]
        ]
        environments.append(Environment(str(angle), _three_channels(np.stack(rotated)), labels[chosen]))
    return check_environments(DomainData(tuple(environments), _names(labels), "image"))


def coloured_digits(images: np.ndarray, labels: np.ndarray) -> DomainData:
    """Three environments: is the label in the upper half of the classes? A quarter of the labels is wrong.

    Images are red or green: the colour is that of the (noisy) label but for 10 %, 20 % and 90 % of the images.

    Args:
        images: uint8 `[samples, height, width]`.
        labels: int64 `[samples]`.
    """
    random = np.random.RandomState(0)
    upper = labels >= (labels.max() + 1) / 2
    environments = []
    for position, (name, flips) in enumerate(COLOUR_FLIPS.items()):
        chosen = slice(position, None, len(COLOUR_FLIPS))
        target = upper[chosen] ^ (random.rand(len(upper[chosen])) < LABEL_NOISE)
        red = target ^ (random.rand(len(target)) < flips)
        coloured = _three_channels(images[chosen])
        coloured[red] *= np.array([1, 0, 0], dtype=np.uint8)
        coloured[~red] *= np.array([0, 1, 0], dtype=np.uint8)
        environments.append(Environment(name, coloured, target.astype(np.int64)))
    return check_environments(DomainData(tuple(environments), ("lower half", "upper half"), "image"))


def _three_channels(images: np.ndarray) -> np.ndarray:
    return np.repeat(images[..., None], 3, axis=-1)


def _names(labels: np.ndarray) -> tuple[str, ...]:
    return tuple(str(number) for number in range(int(labels.max()) + 1))
