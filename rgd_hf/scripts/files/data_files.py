"""Data sets and tables from the user's own files: delimited text, json, jsonl, parquet."""

import glob
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError

from rgd_hf.batches.columns import SAMPLE_WEIGHT
from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.files.column_types import column_names, typed_tables
from rgd_hf.scripts.files.delimited import read_delimited
from rgd_hf.scripts.files.json_rows import read_json
from rgd_hf.scripts.messages import say_warning

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".data", ".csv.gz", ".tsv.gz")
SUFFIXES = (*TEXT_SUFFIXES, ".json", ".jsonl", ".parquet")


def suffix_of(path: str | Path) -> str:
    """The suffix in lower case, with the one before `.gz`."""
    suffixes = Path(path).suffixes
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:]).lower()


def read_arrow(
    files: Mapping[str, str | Path], target: str | None = None, warn: Callable[[str], Any] = say_warning
) -> dict[str, pa.Table]:
    """Read files into Arrow tables with at least one row each, their text columns typed alike.

    Args:
        files: by split; the suffix of each is one of `SUFFIXES`.
        target: the column of classes or of numbers to predict, see `typed_tables`.
        warn: called with a sentence for everything that is skipped, renamed or could have been read differently.

    Raises:
        UserError: no such file, another suffix, a content that is not what the suffix says, or no rows.
    """
    tables = {split: _read_one(Path(filename), warn) for split, filename in files.items()}
    texts = [split for split, filename in files.items() if suffix_of(filename) in TEXT_SUFFIXES]
    if texts:
        where = " and ".join(str(files[split]) for split in texts)
        typed = typed_tables([tables[split] for split in texts], where, target, warn)
        tables |= dict(zip(texts, typed))
    return tables


def _read_one(path: Path, warn: Callable[[str], Any]) -> pa.Table:
    suffix = _checked_suffix(path)
    if suffix in TEXT_SUFFIXES:
        table = read_delimited(path, warn)
    elif suffix == ".parquet":
        table = _read_parquet(path)
    else:
        table = read_json(path, suffix == ".jsonl", warn)
    if not table.num_rows:
        raise UserError(
            f"{path} has no rows, and at least one is needed; columns: {listed(table.column_names)}."
        )
    nameless = [
        position
        for position, name in enumerate(table.column_names)
        if not name.strip() and _is_empty(table.column(position))
    ]
    if nameless:
        warn(f"{path}: {len(nameless)} column(s) without a name and without values are skipped.")
        table = table.select([i for i in range(table.num_columns) if i not in nameless])
    named = table.rename_columns(column_names(table.column_names, str(path), warn))
    return named.replace_schema_metadata(table.schema.metadata)


def _is_empty(column: pa.ChunkedArray) -> bool:
    if pa.types.is_string(column.type):
        return bool(pc.all(pc.equal(pc.utf8_trim_whitespace(column), ""), min_count=0).as_py())
    return column.null_count == len(column)


def require_file(path: str | Path, otherwise: str) -> None:
    """Raise `UserError` unless there is a file `path`; `otherwise` says what to do with a directory."""
    if Path(path).is_dir():
        raise UserError(f"{str(path)!r} is a directory, not a file: {otherwise}.")
    if not Path(path).is_file():
        raise UserError(f"there is no file {str(path)!r} (looked in {Path.cwd()}).")


def require_directory(path: str | Path, otherwise: str) -> None:
    """Raise `UserError` unless there is a directory `path`; `otherwise` says what to do with a file."""
    if Path(path).is_file():
        raise UserError(f"{str(path)!r} is a file, not a directory: {otherwise}.")
    if not Path(path).is_dir():
        raise UserError(f"there is no directory {str(path)!r} (looked in {Path.cwd()}).")


def _checked_suffix(path: Path) -> str:
    require_file(path, f"give one file, {', '.join(SUFFIXES)}")
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: the suffix must be one of {listed(SUFFIXES)}, not {suffix!r}.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: at least one row is needed.")
    return suffix


def _read_parquet(path: Path) -> pa.Table:
    try:
        return _plain_values(pq.ParquetFile(path).read())
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path} could not be read as parquet: {' '.join(str(error).split())[:300]}"
        ) from error


def _plain_values(table: pa.Table) -> pa.Table:
    """Categories (dictionary columns) as the values that they stand for, decimal numbers as float64."""
    for position, column_field in enumerate(table.schema):
        kind = column_field.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_decimal(kind):
            kind = pa.float64()
        if kind != column_field.type:
            table = table.set_column(
                position, column_field.with_type(kind), table.column(position).cast(kind)
            )
    return table


def read_file(filename: str | Path, warn: Callable[[str], Any] = say_warning) -> Dataset:
    """Read one file into a data set with at least one row.

    Args:
        filename: a file whose suffix is one of `SUFFIXES`.
        warn: called with a sentence for everything that is skipped, renamed or could have been read differently.

    Raises:
        UserError: no such file, another suffix, a content that is not what the suffix says, or no rows.
    """
    return read_splits({"train": filename}, warn=warn)["train"]


def read_splits(
    files: Mapping[str, str | Path], target: str | None = None, warn: Callable[[str], Any] = say_warning
) -> DatasetDict:
    """Read one file a split, e.g. `{"train": "a.csv", "validation": "b.csv"}`; for the rest see `read_arrow`.

    Raises:
        UserError: a file cannot be read, or has no rows.
    """
    mapped = {split: name for split, name in files.items() if _is_mappable(Path(name))}
    tables = read_arrow({split: name for split, name in files.items() if split not in mapped}, target, warn)
    return DatasetDict(
        {split: _mapped(Path(files[split])) if split in mapped else Dataset(tables[split]) for split in files}
    )


def _is_mappable(path: Path) -> bool:
    """Whether `datasets` reads the file as it is: parquet without categories, which may be larger than the memory."""
    if _checked_suffix(path) != ".parquet":
        return False
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} could not be read as parquet: {' '.join(str(error).split())[:300]}"
        ) from error
    names = [name.strip() for name in schema.names]
    plain = not any(pa.types.is_dictionary(kind) or pa.types.is_decimal(kind) for kind in schema.types)
    return plain and names == schema.names and len(set(names)) == len(names) and "" not in names


def _mapped(path: Path) -> Dataset:
    try:
        dataset = load_dataset("parquet", data_files={"train": glob.escape(str(path))}, split="train")
    except (DatasetGenerationError, ValueError, OSError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{path} could not be read as parquet: {reason[:300]}") from error
    if not len(dataset):
        raise UserError(
            f"{path} has no rows, and at least one is needed; columns: {listed(dataset.column_names)}."
        )
    return dataset


def concatenated(parts: Mapping[str, Dataset]) -> Dataset:
    """The rows of several data sets, one after the other.

    Args:
        parts: by their name, for messages.

    Raises:
        UserError: a column has not the same type in all.
    """
    try:
        return concatenate_datasets([*parts.values()])
    except ValueError as error:
        types: dict[str, dict[str, str]] = {}
        for part, rows in parts.items():
            for column, feature in rows.features.items():
                types.setdefault(column, {})[part] = str(getattr(feature, "dtype", feature))
        differing = [
            f"column {column!r}: " + ", ".join(f"{kind} in {part}" for part, kind in found.items())
            for column, found in types.items()
            if len({*found.values()}) > 1
        ]
        raise UserError(
            f"{listed(parts)} cannot be put together: {'; '.join(differing) or ' '.join(str(error).split())}. Write the column with one type "
            "in all of them."
        ) from error


def read_directory(directory: str | Path, splits: Iterable[str], target: str | None = None) -> DatasetDict:
    """Read `<split>.<suffix>` of a directory for every one of `splits`.

    Raises:
        UserError: no such directory, or a split without a file (or with several).
    """
    folder = Path(directory)
    require_directory(folder, "give a file as --train_file, with --validation_file or --holdout_fraction")
    present = sorted(path for path in folder.iterdir() if suffix_of(path) in SUFFIXES)
    files: dict[str, str | Path] = {}
    for split in splits:
        candidates = [path for path in present if path.name[: -len(suffix_of(path))] == split]
        if len(candidates) != 1:
            problem = (
                f"several files for the split {split!r}" if candidates else f"no file for the split {split!r}"
            )
            raise UserError(
                f"{folder} has {problem}: one {split}.parquet (or {', '.join(SUFFIXES[:-1])}) is needed; "
                f"data files found: {listed(path.name for path in present)}."
            )
        files[split] = candidates[0]
    return read_splits(files, target)


def require_columns(dataset: Dataset, columns: Iterable[str], where: str) -> None:
    """Raise `UserError`, naming the columns found, unless `dataset` has all `columns`; `where` names it to the user."""
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise UserError(
            f"{where} lacks the column(s) {listed(missing)}; found: {listed(dataset.column_names)}."
        )


def first_rows(dataset: Dataset, count: int | None, option: str) -> Dataset:
    """The first `count` rows (all where None); `option` is the setting's name for the message."""
    if count is None:
        return dataset
    if count < 1:
        raise UserError(f"--{option} must be at least 1, not {count}.")
    return dataset.select(range(min(count, len(dataset))))


def sample_weights(dataset: Dataset, where: str) -> list[float]:
    """The column `sample_weight` as numbers, also where it holds them as text; `where` names the data to the user.

    Raises:
        UserError: a cell is empty, no number, negative or not finite; the message numbers rows from 0.
    """
    weights = []
    for row, value in enumerate(dataset[SAMPLE_WEIGHT]):
        try:
            weights.append(float(value))
        except (TypeError, ValueError):
            weights.append(math.nan)
        if not (math.isfinite(weights[-1]) and weights[-1] >= 0):
            raise UserError(
                f"the column {SAMPLE_WEIGHT!r} of {where} has {value!r} in row {row} (counted from 0): it multiplies each sample's share of "
                "the loss, so it takes finite numbers of at least 0. Correct it, or rename the column to leave it out."
            )
    return weights
