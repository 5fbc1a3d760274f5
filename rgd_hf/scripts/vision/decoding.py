"""From a file, encoded bytes or an array to an RGB image; unreadable ones are named and counted, or stop the run."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from rgd_hf.scripts.errors import UserError

SHOWN = 10


class UnreadableImageError(Exception):
    """An image cannot be decoded; the message says why."""


def open_image(source: Any) -> Image.Image:
    """Decode an image to RGB, turned upright as its EXIF data asks.

    Args:
        source: a filename; a dict with `bytes` or `path`, as `datasets` stores images; or a uint8 array
            `[height, width]` or `[height, width, 3]`.

    Returns:
        An image of mode RGB, as `pipeline("image-classification")` gives it to the model: the first frame or page; grayscale
        repeated, CMYK, LAB and YCbCr converted; of transparent parts the colour beneath, with a warning. Only 16-bit gray
        is not as there, where all but the darkest becomes white, but scaled down to 8 bits.

    Raises:
        UnreadableImageError: no such file, not a whole image of a format that Pillow reads, or pixels without a known
            range (32-bit integers and floats).
    """
    if isinstance(source, np.ndarray):
        return _to_rgb(Image.fromarray(source))
    if isinstance(source, dict):
        source = io.BytesIO(source["bytes"]) if source.get("bytes") is not None else source.get("path")
    if source is None:
        raise UnreadableImageError("there is none")
    try:
        with Image.open(source) as opened:
            image = ImageOps.exif_transpose(opened)
            return _to_rgb(image)
    except (OSError, ValueError, SyntaxError, EOFError, AttributeError, struct.error, zlib.error) as error:
        raise UnreadableImageError(" ".join(str(error).split()) or type(error).__name__) from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(str(error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    # Pillow gives 16-bit gray the mode I in some formats, all with the range of 16 bits.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # Pillow's own conversion clips 16 bits at 255: nearly all white.
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "integers" if image.mode == "I" else "floats"
        raise UnreadableImageError(
            f"its pixels are 32-bit {kind} (mode {image.mode}), of which no one says which is white: convert it to 8 or "
            "16 bits"
        )
    if image.has_transparency_data:
        # What a model is given after the training has to look as what it was trained on.
        warnings.warn(
            "Some images have transparent parts, of which the colour beneath is seen, in training and by the pipelines of "
            "transformers alike. Where that hides what they show, paste them on a background first.",
            stacklevel=2,
        )
        if image.mode == "P":
            image = image.convert("RGBA")  # straight to RGB, Pillow warns
    return image.convert("RGB")


class BadImages:
    """What happens to unreadable images; workers and processes share one record in a file.

    Args:
        action: `"skip"` records them, `"stop"` raises.
        record: a text file, one line per image; created when the first one is found.
    """

    ACTIONS = ("skip", "stop")

    def __init__(self, action: str, record: Path):
        if action not in self.ACTIONS:
            raise UserError(f"--bad_images must be one of {', '.join(self.ACTIONS)}, not {action!r}.")
        self.action = action
        self.record = record
        self._warned = False

    def found(self, name: str, error: UnreadableImageError) -> None:
        """Record an unreadable image, or stop.

        Raises:
            UserError: the action is `"stop"`.
        """
        if self.action == "stop":
            raise UserError(f"unreadable image {name}: {error}. --bad_images skip leaves such images out.")
        self.record.parent.mkdir(parents=True, exist_ok=True)
        with self.record.open("a", encoding="utf-8") as file:  # one short line a write: processes do not mix
            file.write(f"{name}\t{error}\n")
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"unreadable image {name}: {error}. It is skipped; all are listed in {self.record}.",
                stacklevel=2,
            )

    def forget(self) -> None:
        """Start the record again."""
        self.record.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """The unreadable images met so far, each once."""
        if not self.record.is_file():
            return []
        return sorted({line.split("\t")[0] for line in self.record.read_text(encoding="utf-8").splitlines()})


class _Readable(Dataset):
    def __init__(self, images: Any):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> str:
        try:
            open_image(self.images.source(index))
        except UnreadableImageError as error:
            return f"{self.images.where(index)} ({error})"
        return ""


def check_all_images(sets: Iterable[Any], workers: int) -> None:
    """Decode every image of some `ImageSet`s once, so that a bad one stops the run before it starts.

    Args:
        sets: the image sets.
        workers: processes that decode.

    Raises:
        UserError: some are unreadable; names up to 10 and counts all.
    """
    bad = []
    for images in sets:
        loader = DataLoader(_Readable(images), batch_size=64, num_workers=workers, collate_fn=list)
        bad += [problem for batch in loader for problem in batch if problem]
    if bad:
        more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise UserError(
            f"{len(bad)} unreadable image(s): {'; '.join(bad[:SHOWN])}{more}. Repair or remove them, or give "
            "--bad_images skip."
        )
