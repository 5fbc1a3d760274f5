"""Images in memory and in parquet files."""

import io
from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image

from rgd_hf.scripts.vision.sets import ImageSet


def encoded(image: Image.Image, kind: str = "PNG") -> dict:
    file = io.BytesIO()
    image.save(file, kind)
    return {"bytes": file.getvalue(), "path": None}


def parquet(path: Path, labels: list, column: str = "label") -> str:
    rows = [{"image": encoded(Image.new("L", (6, 6), i)), column: label} for i, label in enumerate(labels)]
    Dataset.from_list(rows).to_parquet(path)
    return str(path)


def in_memory(count: int, classes: int = 4, seed: int = 0) -> ImageSet:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
    labels = np.arange(count) % classes
    return ImageSet(list(pixels), np.arange(count), labels, tuple("abcdefgh"[:classes]), "memory")
