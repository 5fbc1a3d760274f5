"""Where environments come from: folders, parquet files, any data set with a column that names the domain."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image, Value
from PIL import Image as PILImage

from rgd_hf.scripts.domains.environments import DomainData, Environment, check_environments
from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.files.data_files import (
    concatenated,
    read_file,
    require_columns,
    require_directory,
    require_file,
)
from rgd_hf.scripts.files.hub import load_hub_dataset
from rgd_hf.scripts.messages import say_warning
from rgd_hf.scripts.text.text_classification import encode_labels, find_labels, find_text_columns
from rgd_hf.scripts.vision.decoding import UnreadableImageError, open_image
from rgd_hf.scripts.vision.image_files import folders_in, images_below, say_beside, say_left_out

LOCAL_HINT = "--dataset_dir DIR (one folder or one parquet file a domain) or --data_file FILE"


class Images:
    """Images decoded when they are read.

    Args:
        sources: one source per image, as `decoding.open_image` takes them.
        where: name of an image in messages, given its number.
    """

    def __init__(self, sources: Sequence[Any], where: Callable[[int], str]):
        self.sources, self.where = sources, where

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, number: int) -> PILImage.Image:
        try:
            return open_image(self.sources[int(number)])
        except UnreadableImageError as error:
            raise UserError(f"{self.where(int(number))} cannot be read as an image: {error}") from error


def image_column(rows: Dataset, where: str) -> Images:
    """The images of the column `image`; `where` names the rows in messages.

    Raises:
        UserError: there is no such column, or it holds no images.
    """
    require_columns(rows, ["image"], where)
    feature = rows.features["image"]
    if isinstance(feature, Image) or feature in (
        Value("string"),
        Value("large_string"),
    ):  # encoded, or filenames
        rows = rows.cast_column("image", Image(decode=False))
    elif "bytes" not in str(feature):
        raise UserError(f"the column 'image' of {where} holds {feature}, not images.")
    return Images(rows["image"], lambda number: f"the image in row {number} of {where}")


def read_directory(directory: str | Path, label_column: str, text_column: str | None = None) -> DomainData:
    """Environments from `<directory>/<domain>/<class>/*.jpg` or `<directory>/<domain>.parquet`.

    Raises:
        UserError: there is no such directory, it has neither layout, or the domains do not fit together.
    """
    root = Path(directory)
    require_directory(root, "give a file as --data_file")
    files, folders = sorted(root.glob("*.parquet")), folders_in(root)
    if files:
        if folders:
            say_warning(
                f"{root}: the domains are the {len(files)} parquet file(s); the folders are left out: "
                f"{listed(path.name for path in folders)}."
            )
        return _from_rows({path.stem: read_file(path) for path in files}, label_column, text_column)
    if not folders:
        raise UserError(
            f"{root} holds neither folders (<domain>/<class>/*.jpg) nor files (<domain>.parquet); found: "
            f"{listed(sorted(path.name for path in root.iterdir())[:10])}."
        )
    say_beside(root, "domains")
    return _from_folders(folders)


def _from_folders(folders: Sequence[Path]) -> DomainData:
    found = {folder.name: _images_by_class(folder) for folder in folders}
    classes = sorted({name for images in found.values() for name in images})
    filled = {name for images in found.values() for name in images if images[name]}
    empty = [name for name in classes if filled and name not in filled]
    if empty:
        raise UserError(
            f"{folders[0].parent} has no image of the class(es) {listed(empty[:10])} in any domain: add images to "
            "each, or remove these folders."
        )
    environments = []
    for domain, images in found.items():
        paths = [path for name in classes for path in images.get(name, [])]
        labels = [number for number, name in enumerate(classes) for _ in images.get(name, [])]
        files = [str(path) for path in paths]
        inputs = Images(files, files.__getitem__)
        environments.append(Environment(domain, inputs, np.array(labels, dtype=np.int64)))
    return check_environments(DomainData(tuple(environments), tuple(classes), "image"))


def _images_by_class(folder: Path) -> dict[str, list[Path]]:
    found = {path.name: images_below(path) for path in folders_in(folder)}
    say_left_out(folder, sum((suffixes for _, suffixes in found.values()), Counter()))
    say_beside(folder, "classes")
    return {name: sorted(map(Path, images)) for name, (images, _) in found.items()}


def read_table(
    domain_column: str,
    label_column: str,
    *,
    data_file: str | None = None,
    dataset_name: str | None = None,
    text_column: str | None = None,
) -> DomainData:
    """Environments from one data set whose `domain_column` says where each row belongs.

    Args:
        domain_column: name of the column with the domains, strings or numbers.
        label_column: name of the label column.
        data_file: a csv, tsv, json, jsonl or parquet file.
        dataset_name: data set on the Hub, all of its splits together. Used if `data_file` is None.
        text_column: name of the text column, inferred if not given. Not needed if there is an `image` column.

    Raises:
        UserError: a column is missing, or the domains do not fit together.
    """
    if data_file is not None:
        require_file(data_file, "give a directory as --dataset_dir")
        rows, where = read_file(data_file), str(data_file)
    else:
        splits = load_hub_dataset(str(dataset_name), local_hint=LOCAL_HINT)
        rows, where = concatenated(splits), str(dataset_name)
    return from_table(rows, domain_column, label_column, where, text_column)


def from_table(
    rows: Dataset, domain_column: str, label_column: str, where: str, text_column: str | None = None
) -> DomainData:
    """Environments from rows; see `read_table`. `where` names the data in messages."""
    require_columns(rows, [domain_column], f"{where} (domain column, see --domain_column)")
    values = rows[domain_column][:]
    names = getattr(rows.features[domain_column], "names", None)
    if any(value is None for value in values):
        raise UserError(f"the domain column {domain_column!r} of {where} has empty cells.")
    numbers = np.array([str(names[value] if names else value) for value in values])
    parts = {
        str(name): rows.select(np.flatnonzero(numbers == name)).remove_columns(domain_column)
        for name in sorted(set(numbers))
    }
    return _from_rows(parts, label_column, text_column)


def _from_rows(parts: dict[str, Dataset], label_column: str, text_column: str | None = None) -> DomainData:
    for domain, rows in parts.items():
        require_columns(rows, [label_column], f"the domain {domain!r} (label column, see --label_column)")
    first = next(iter(parts.values()))
    if "image" in first.column_names and text_column is None:
        column, kind = "image", "image"
    else:
        asked = [text_column] if text_column else None
        (column,) = find_text_columns(first, asked, label_column, "the data", option="--text_column", most=1)
        kind = "text"
    for domain, rows in parts.items():
        require_columns(rows, [column], f"the domain {domain!r}")
    together = concatenated(
        {f"the domain {name!r}": rows.select_columns([label_column]) for name, rows in parts.items()}
    )
    labels = find_labels(together, label_column, "the data")
    if labels.kind != "single_label_classification":
        raise UserError(
            f"the label column {label_column!r} holds {labels.kind.replace('_', ' ')} targets: domains need one class "
            "per sample (a string or an integer)."
        )
    environments = tuple(
        Environment(
            name,
            image_column(rows, f"the domain {name!r}") if kind == "image" else list(rows[column][:]),
            np.array(encode_labels(rows, label_column, labels, f"the domain {name!r}"), dtype=np.int64),
        )
        for name, rows in parts.items()
    )
    return check_environments(DomainData(environments, labels.names, kind))
