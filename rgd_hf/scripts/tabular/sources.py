"""Tables from files, from the Hub, and from scikit-learn's embedded data sets."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from sklearn import datasets as embedded

from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.files.column_types import column_names, say_what_looks_alike
from rgd_hf.scripts.files.data_files import SUFFIXES, TEXT_SUFFIXES, read_arrow, require_file, suffix_of
from rgd_hf.scripts.files.hub import load_hub_dataset
from rgd_hf.scripts.messages import say_warning
from rgd_hf.scripts.vision.decoding import UnreadableImageError, open_image

EMBEDDED: dict[str, Callable[..., Any]] = {
    "breast_cancer": embedded.load_breast_cancer,
    "wine": embedded.load_wine,
    "digits": embedded.load_digits,
    "iris": embedded.load_iris,
    "diabetes": embedded.load_diabetes,
    "covtype": lambda **options: embedded.fetch_covtype(download_if_missing=False, **options),
}
MAX_PIXELS = 64 * 64
MANY_VALUES = 1000
"""Columns with more different texts are names or sentences, of which it is no surprise that some look alike."""


@dataclass(frozen=True)
class Table:
    """A table with its target.

    Attributes:
        name: short, for tables of results and file names.
        frame: all rows and columns, the target among them; its index counts the rows from 0, in their order.
        target: name of the target column.
        max_rows: number of rows of a random subset to use, None for all.
        marks: arguments of `pandas.read_csv` for a file of delimited text: those of `delimited.read_delimited`, and its marks in
            numbers, `decimal` and `thousands` (if any); empty elsewhere.
    """

    name: str
    frame: pd.DataFrame
    target: str
    max_rows: int | None = None
    marks: Mapping[str, str] = field(default_factory=dict)


def load_table(name: str, target: str | None, warn: Callable[[str], Any] = say_warning) -> Table:
    """Load a table by what `name` is: a file, one of `EMBEDDED`, or a data set of the Hub.

    Args:
        name: as the user gave it.
        target: the target column; may be omitted for a scikit-learn table.
        warn: called with a sentence for everything that is skipped, renamed or could have been read differently.

    Raises:
        UserError: there is no such data, it cannot be read, it has no rows, or the target is missing.
    """
    marks: dict[str, str] = {}
    if name in EMBEDDED and not Path(name).exists():
        return _load_embedded(name, target)
    if suffix_of(name) in SUFFIXES or Path(name).exists():
        require_file(name, f"give one file ({', '.join(SUFFIXES)}) as --data")
        table = read_arrow({name: name}, target, warn)[name]
        frame, short = to_frame(table), _short_name(Path(name))
        if suffix_of(name) in TEXT_SUFFIXES:
            marks = {key.decode(): mark.decode() for key, mark in (table.schema.metadata or {}).items()}
    elif name.count("/") == 1:
        hint = "--data FILE.csv or FILE.parquet, and --target COLUMN"
        data = load_hub_dataset(name, local_hint=hint, splits=[["train"]])
        split = "train" if "train" in data else next(iter(data))
        frame, short = data[split].to_pandas(), name.split("/")[1]
    else:
        raise UserError(
            f"--data {name!r} is no file (looked in {Path.cwd()}), none of scikit-learn's data sets "
            f"({', '.join(EMBEDDED)}), and no owner/name of the Hub."
        )
    frame.index = pd.RangeIndex(len(frame))
    frame.columns = column_names(list(frame.columns), name, warn)
    for column in frame.columns:
        before = frame[column]
        values = stripped(before, f"{name}: column {column!r}", warn)
        if values is not before:
            frame[column] = values
        if not pd.api.types.is_numeric_dtype(values):
            counts = texts_of(values).value_counts()
            if len(counts) <= MANY_VALUES:
                say_what_looks_alike(counts.to_dict(), f"{name}: column {column!r}", warn)
    if target is None:
        raise UserError(
            f"which column of {name} is to be predicted? Give --target COLUMN; columns: {listed(frame)}."
        )
    if target not in frame.columns:
        raise UserError(f"{name} has no column {target!r} (--target); columns: {listed(frame)}.")
    if f"{target}.1" in frame.columns:
        warn(
            f"{name}: the column {target + '.1'!r} would help to predict {target!r}; --drop_columns leaves it out."
        )
    if not len(frame):
        raise UserError(f"{name} has columns {listed(frame)} but no rows.")
    return Table(short, flatten_images(frame, name), target, marks=marks)


def _load_embedded(name: str, asked: str | None) -> Table:
    try:
        bunch = EMBEDDED[name](as_frame=True)
    except OSError as error:
        raise UserError(
            f"{name} is not in scikit-learn's cache ({embedded.get_data_home()}), and this recipe does not download "
            "it: run sklearn.datasets.fetch_covtype() once where there is a network."
        ) from error
    frame, target = bunch.frame, bunch.target.name
    if asked not in (None, target):
        raise UserError(
            f"the target of scikit-learn's {name} is {target!r}, not {asked!r}: leave out --target, or write the table "
            "to a file and give that as --data."
        )
    names = getattr(bunch, "target_names", None)
    if names is not None and len(names) and name not in ("digits", "covtype"):
        frame = frame.assign(**{target: np.asarray(names, dtype=object)[bunch.target]})
    return Table(name, frame, target)


def _short_name(path: Path) -> str:
    """The file's name, or its folder's where the file is but `train` or `data`."""
    stem = path.name.split(".")[0]
    return path.resolve().parent.name if stem.lower() in ("train", "data", "test", "validation") else stem


def to_frame(table: pa.Table) -> pd.DataFrame:
    """A table for pandas; integers with missing values stay exact beyond 2**53 as `Int64`."""
    frame = table.to_pandas(split_blocks=True, ignore_metadata=True)
    for position, column in enumerate(table.columns):
        if pa.types.is_integer(column.type) and column.null_count:
            smallest, largest = pc.min_max(column).as_py().values()
            if smallest is not None and max(-smallest, largest) > 2**53:
                kind = "UInt64" if pa.types.is_unsigned_integer(column.type) else "Int64"
                frame.isetitem(position, pd.Series(column.to_pylist(), dtype=kind))
    return frame


def texts_of(values: pd.Series) -> pd.Series:
    """Those of a column's values that are texts."""
    return values[np.array([isinstance(value, str) for value in values], dtype=bool)].astype(object)


def stripped(values: pd.Series, where: str, warn: Callable[[str], Any]) -> pd.Series:
    """A column whose strings have no spaces around them; a string of nothing else is missing.

    Args:
        values: values of any type.
        where: the column, for messages.
        warn: called where different values become one, or missing.
    """
    if pd.api.types.is_numeric_dtype(values):
        return values
    is_text = np.array([isinstance(value, str) for value in values], dtype=bool)
    texts = values[is_text].astype(object)
    plain = texts.map(str.strip)
    if (plain == texts).all() and (plain != "").all():
        return values
    counts, sizes = texts.value_counts(), plain[plain != ""].value_counts()
    twins = [
        text for text in counts.index if text != text.strip() and sizes.get(text.strip(), 0) > counts[text]
    ]
    if twins:
        named = ", ".join(
            f"{text!r} ({counts[text]:,} row{'s' if counts[text] > 1 else ''})" for text in twins[:5]
        )
        more = f" and {len(twins) - 5:,} more" if len(twins) > 5 else ""
        warn(
            f"{where} has values that differ from others in spaces around them alone, taken as the same: {named}{more}."
        )
    empty = int((plain == "").sum())
    if empty:
        warn(f"{where} has {empty:,} empty text(s), taken as missing.")
    result = values.astype(object)
    result[is_text] = plain.where(plain != "", None)
    return result


def flatten_images(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Replace a column of small images (as `datasets` writes them to parquet) by one column a pixel.

    Raises:
        UserError: the images differ in size or have more than `MAX_PIXELS` values.
    """
    for column in list(frame.columns):
        first = frame[column].iloc[0]
        if not (isinstance(first, dict) and first.get("bytes")):
            continue
        pixels = [
            _pixels(image, f"{name}: row {row} of {column!r}") for row, image in enumerate(frame[column])
        ]
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


def _pixels(image: Any, where: str) -> np.ndarray:
    """The values of an image: gray `[height, width]`, or colours `[height, width, 3]`."""
    try:
        opened = open_image(image)
        gray = Image.open(io.BytesIO(image["bytes"])).mode in ("1", "L")
    except (UnreadableImageError, TypeError, KeyError) as error:
        raise UserError(f"{where} is no image that can be used: {error}.") from error
    return np.asarray(opened.convert("L") if gray else opened)
