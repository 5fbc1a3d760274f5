"""Which files of a folder are images: those with a suffix of a format that the installed Pillow opens."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from PIL import Image

from rgd_hf.scripts.errors import listed
from rgd_hf.scripts.messages import say_warning

# What often lies beside images and is none: nothing is said of it.
_OBVIOUS = (
    *(".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".log"),
    *(".ini", ".db", ".py", ".sh"),
)


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes in lower case, of images alone: Pillow also knows formats of films, documents and measurements."""
    formats = Image.registered_extensions()
    opened = {*Image.OPEN, "MPO"}  # which is opened as JPEG
    images = {name for name, kind in Image.MIME.items() if kind.startswith("image/") and name in opened}
    return frozenset(suffix for suffix, name in formats.items() if name in images)


def is_image(name: str) -> bool:
    """Whether a filename is that of an image, and not of the attributes (`._x.jpg`) that macOS writes beside one."""
    return os.path.splitext(name)[1].lower() in image_suffixes() and not name.startswith("._")


def images_below(folder: Path) -> tuple[list[str], Counter[str]]:
    """The images in a folder and all below it, folder by folder, and how many other files there are of each suffix."""
    images, others = [], []
    for root, _, names in sorted(os.walk(folder, followlinks=True)):
        for name in sorted(names):
            if is_image(name):
                images.append(os.path.join(root, name))
            else:
                others.append(name)
    return images, _by_suffix(others)


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def counted(suffixes: Mapping[str, int]) -> str:
    """`3 '.heic', 1 '.mov'`."""
    most_first = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(
        f"{count:,} {suffix!r}" if suffix else f"{count:,} without one" for suffix, count in most_first
    )


def say_left_out(where: str | Path, suffixes: Mapping[str, int]) -> None:
    """Warn of files among the images whose suffix is not that of one."""
    if suffixes:
        say_warning(
            f"{where}: {sum(suffixes.values()):,} file(s) are left out, whose suffix is none of the image formats "
            f"that are read: {counted(suffixes)}. Convert those that are images, to png say."
        )


def say_beside(folder: Path, of: str) -> None:
    """Warn of files beside the folders of a folder, each of which is `of` something."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    strays = [name for name in names if is_image(name) or _by_suffix([name])]
    if strays:
        say_warning(
            f"{folder}: {len(strays):,} file(s) are left out, which lie beside the folders of the {of} and not in one: "
            f"{listed(strays[:5])}. Move each into the folder where it belongs."
        )


def _by_suffix(names: Iterable[str]) -> Counter[str]:
    suffixes = (os.path.splitext(name)[1].lower() for name in names if not name.startswith("."))
    return Counter(suffix for suffix in suffixes if suffix not in _OBVIOUS)
