"""Which files of a folder are images: one list for all recipes, and a count of what is left out."""

import numpy as np
import pytest
from PIL import Image

from rgd_hf.scripts.domains.sources import read_directory
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.vision.decoding import open_image
from rgd_hf.scripts.vision.image_files import image_suffixes
from rgd_hf.scripts.vision.sets import read_folder

SUFFIXES = ("png", "JPEG", "gif", "bmp", "tif", "TIFF", "webp", "pgm", "ppm", "jfif", "jp2", "tga")


def write(path, level=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 6), level, np.uint8)).save(path)


@pytest.fixture
def tree(tmp_path):
    """Two domains of two classes, or two splits: one image in each format that the recipes document, and five more."""
    for domain in ("art", "photo"):
        for number, suffix in enumerate(SUFFIXES):
            write(tmp_path / domain / "cat" / f"{number:02}.{suffix}")
        for number in range(5):
            write(tmp_path / domain / "dog" / f"{number}.png")
    return tmp_path


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_both_recipes_read_every_format_of_pillow(tree, capsys):
    images = read_folder(tree / "art")
    assert images.counts().tolist() == [len(SUFFIXES), 5] and images.labels.dtype == np.int64
    assert all(open_image(images.source(i)).size == (6, 6) for i in range(len(images)))
    for environment in read_directory(tree, "label").environments:
        assert np.bincount(environment.labels).tolist() == [len(SUFFIXES), 5]
    assert "warning" not in said(capsys)
    assert not {".pdf", ".mpg", ".h5", ".eps", ".txt"} & image_suffixes()


def test_images_are_read_folder_by_folder_as_torchvision_does(tree):
    from torchvision.datasets import ImageFolder

    write(tree / "art" / "cat" / "deep" / "a.png"), write(tree / "art" / "cat" / "00" / "b.png")
    for path in (tree / "art" / "cat").iterdir():
        if path.suffix in (".gif", ".jfif", ".jp2", ".tga"):
            path.unlink()
    theirs, ours = ImageFolder(str(tree / "art")), read_folder(tree / "art")
    assert (
        list(ours.images) == [path for path, _ in theirs.samples] and ours.labels.tolist() == theirs.targets
    )


def test_what_is_left_out_is_counted_by_suffix(tree, capsys):
    for name in ("a.heic", "b.HEIC", "c.mov", "d", ".DS_Store", "Thumbs.db", "notes.txt", "._00.png"):
        (tree / "art" / "cat" / name).write_bytes(b"x")
    write(tree / "art" / "stray.png"), write(tree / "stray.jpg")
    (tree / "art" / "README.md").write_text("x"), (tree / ".ipynb_checkpoints").mkdir()
    (tree / "art" / ".ipynb_checkpoints").mkdir()
    assert len(read_folder(tree / "art")) == len(SUFFIXES) + 5
    counts = (
        "4 file(s) are left out, whose suffix is none of the image formats that are read: 2 '.heic', 1 without one, "
        "1 '.mov'"
    )
    beside = "1 file(s) are left out, which lie beside the folders of the classes and not in one: 'stray.png'"
    text = said(capsys)
    assert counts in text and beside in text and text.count("warning") == 2
    read_directory(tree, "label")
    text = said(capsys)
    assert counts in text and beside in text and text.count("warning") == 3
    assert "beside the folders of the domains and not in one: 'stray.jpg'" in text


def test_a_class_of_unreadable_files_says_what_they_are(tree):
    (tree / "art" / "cow").mkdir(), (tree / "art" / "cow" / "a.heic").write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"without images: 'cow' \(other files there, by suffix: 1 '\.heic'\)"
    ):
        read_folder(tree / "art")


def test_folders_beside_parquet_files_of_domains_are_named(tree, capsys):
    from datasets import Dataset

    for domain in ("x", "y"):
        rows = {"text": ["a", "b"] * 5, "label": [0, 1] * 5}
        Dataset.from_dict(rows).to_parquet(tree / f"{domain}.parquet")
    assert read_directory(tree, "label").names == ["x", "y"]
    assert "the 2 parquet file(s); the folders are left out: 'art', 'photo'" in said(capsys)
