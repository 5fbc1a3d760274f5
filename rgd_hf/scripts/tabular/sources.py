"""Tables from files, from the Hub, and from scikit-learn's embedded data sets."""

import csv
import gzip
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from sklearn import datasets as embedded

from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.hub import load_hub_dataset

CSV_SUFFIXES = (".csv", ".tsv", ".txt", ".data", ".csv.gz", ".tsv.gz")
READERS: dict[str, Callable[..., pd.DataFrame]] = {
    ".parquet": pd.read_parquet,
    ".json": pd.read_json,
    ".jsonl": lambda path: pd.read_json(path, lines=True),
}
EMBEDDED: dict[str, Callable[..., Any]] = {
    "breast_cancer": embedded.load_breast_cancer,
    "wine": embedded.load_wine,
    "digits": embedded.load_digits,
    "iris": embedded.load_iris,
    "diabetes": embedded.load_diabetes,
    "covtype": lambda **options: embedded.fetch_covtype(download_if_missing=False, **options),
}
MAX_PIXELS = 64 * 64
_DECIMAL_COMMA = r"[-+]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?([eE][-+]?\d+)?"


@dataclass(frozen=True)
class Table:
    """A table with its target.

    Attributes:
        name: short, for tables of results and file names.
        frame: all rows and columns, the target among them; its index counts the rows from 0, in their order.
        target: name of the target column.
        max_rows: of a random subset to use, None for all.
    """

    name: str
    frame: pd.DataFrame
    target: str
    max_rows: int | None = None


def load_table(name: str, target: str | None) -> Table:
    """Load a table by what `name` is: a file, one of `EMBEDDED`, or a data set of the Hub.

    Args:
        name: as the user gave it.
        target: the target column; may be left out for an embedded data set.

    Raises:
        UserError: there is no such data, it cannot be read, it has no rows, or the target is missing.
    """
    if name in EMBEDDED and not Path(name).exists():
        return _load_embedded(name)
    if _suffix(name) in (*CSV_SUFFIXES, *READERS) or Path(name).exists():
        frame, short = read_table(name), _short_name(Path(name))
    elif name.count("/") == 1:
        data = load_hub_dataset(name, local_hint="--data FILE.csv or FILE.parquet, and --target COLUMN")
        split = "train" if "train" in data else next(iter(data))
        frame, short = data[split].to_pandas(), name.split("/")[1]
    else:
        raise UserError(
            f"--data {name!r} is no file (looked in {Path.cwd()}), none of scikit-learn's data sets "
            f"({', '.join(EMBEDDED)}), and no owner/name of the Hub."
        )
    frame.index = pd.RangeIndex(len(frame))
    frame.columns = [str(column).strip() for column in frame.columns]
    duplicates = sorted(set(frame.columns[frame.columns.duplicated()]))
    if duplicates:
        raise UserError(f"{name}: several columns are called {listed(duplicates)}; names must be unique.")
    if target is None:
        raise UserError(
            f"which column of {name} is to be predicted? Give --target COLUMN; columns: {listed(frame)}."
        )
    if target not in frame.columns:
        raise UserError(f"{name} has no column {target!r} (--target); columns: {listed(frame)}.")
    if not len(frame):
        raise UserError(f"{name} has columns {listed(frame)} but no rows.")
    return Table(short, flatten_images(frame, name), target)


def _load_embedded(name: str) -> Table:
    try:
        bunch = EMBEDDED[name](as_frame=True)
    except OSError as error:
        raise UserError(
            f"{name} is not in scikit-learn's cache ({embedded.get_data_home()}), and this recipe does not download "
            "it: run sklearn.datasets.fetch_covtype() once where there is a network."
        ) from error
    frame, target = bunch.frame, bunch.target.name
    names = getattr(bunch, "target_names", None)
    if names is not None and len(names) and name not in ("digits", "covtype"):
        frame = frame.assign(**{target: np.asarray(names, dtype=object)[bunch.target]})
    return Table(name, frame, target)


def _short_name(path: Path) -> str:
    """The file's name, or its folder's where the file is but `train` or `data`."""
    stem = path.name.split(".")[0]
    return path.resolve().parent.name if stem.lower() in ("train", "data", "test", "validation") else stem


def _suffix(name: str) -> str:
    suffixes = Path(name).suffixes
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:]).lower()


def read_table(filename: str) -> pd.DataFrame:
    """Read a csv, tsv, parquet, json or jsonl file.

    The separator of text files is found by itself (comma, semicolon, tab or bar), and decimal commas where it is no
    comma; `?` counts as missing too, as in the tables of the UCI repository.

    Raises:
        UserError: no such file, another suffix, or a content that is not what the suffix says.
    """
    path, suffix = Path(filename), _suffix(filename)
    if not path.is_file():
        raise UserError(f"there is no file {filename!r} (looked in {Path.cwd()}).")
    if suffix not in (*CSV_SUFFIXES, *READERS):
        raise UserError(
            f"{path}: the suffix must be one of {listed([*CSV_SUFFIXES, *READERS])}, not {suffix!r}."
        )
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: a header and at least one row are needed.")
    try:
        return READERS[suffix](path) if suffix in READERS else _read_text(path)
    except (ValueError, OSError, UnicodeError, csv.Error) as error:  # parser and arrow errors are ValueErrors
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} could not be read as {suffix}: {reason}") from error


def _read_text(path: Path) -> pd.DataFrame:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    header = text.split("\n", 1)[0]
    separator = max(",;\t|", key=header.count)
    frame = pd.read_csv(
        io.StringIO(text), sep=separator, na_values=["?"], skipinitialspace=True, low_memory=False
    )
    names = next(csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True))
    named = [name.strip() for name in names if name.strip()]
    if len(set(named)) < len(named) and len(names) == frame.shape[1]:
        frame.columns = names  # pandas has renamed all but the first of equal ones
    if separator != ",":
        for position, dtype in enumerate(frame.dtypes):
            if not pd.api.types.is_numeric_dtype(dtype):
                frame.isetitem(position, _with_decimal_points(frame.iloc[:, position]))
    return frame


def _with_decimal_points(values: pd.Series) -> pd.Series:
    """A column of texts; one of numbers with decimal commas (1,5 or 1.234,5) as float64."""
    texts = values.dropna().astype(str).str.strip()
    if not texts.str.fullmatch(_DECIMAL_COMMA).all() or not texts.str.contains(",").any():
        return values
    plain = texts.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
    return pd.to_numeric(plain).astype("float64").reindex(values.index)


def flatten_images(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Replace a column of small images (as `datasets` writes them to parquet) by one column a pixel.

    Raises:
        UserError: the images differ in size or have more than `MAX_PIXELS` values.
    """
    for column in list(frame.columns):
        first = frame[column].iloc[0]
        if not (isinstance(first, dict) and first.get("bytes")):
            continue
        pixels = [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in frame[column]]
        shape = pixels[0].shape
        if any(p.shape != shape for p in pixels) or pixels[0].size > MAX_PIXELS:
            raise UserError(
                f"{name}: the images in {column!r} differ in size or are larger than {MAX_PIXELS} values; only small "
                "images of one size can be used as a table."
            )
        flat = pd.DataFrame(np.stack(pixels).reshape(len(pixels), -1), index=frame.index).add_prefix(
            f"{column}_"
        )
        frame = pd.concat([frame.drop(columns=column), flat], axis=1)
    return frame
