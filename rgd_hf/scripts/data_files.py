"""Data sets from the user's own files: csv, tsv, json, jsonl, parquet."""

from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError

from rgd_hf.scripts.errors import UserError, listed

READERS: dict[str, tuple[str, dict]] = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}


def read_file(filename: str | Path) -> Dataset:
    """Read one file into a data set with at least one row.

    Args:
        filename: a file whose suffix is one of `READERS`.

    Raises:
        UserError: no such file, another suffix, a content that is not what the suffix says, or no rows.
    """
    path = Path(filename)
    if not path.is_file():
        raise UserError(f"there is no file {str(filename)!r} (looked in {Path.cwd()}).")
    if path.suffix.lower() not in READERS:
        raise UserError(f"{path}: the suffix must be one of {listed(READERS)}, not {path.suffix!r}.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: at least one row is needed.")
    reader, options = READERS[path.suffix.lower()]
    try:
        dataset = load_dataset(reader, data_files={"train": str(path)}, split="train", **options)
    except (DatasetGenerationError, ValueError, OSError) as error:
        if "corresponds to no data" in str(error):  # what a header alone gives
            raise UserError(f"{path} has no rows.") from error
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"{path} could not be read as {reader}: {reason[:300]}") from error
    if len(dataset) == 0:
        raise UserError(f"{path} has no rows.")
    return dataset


def read_splits(files: dict[str, str | Path]) -> DatasetDict:
    """Read one file a split, e.g. `{"train": "a.csv", "validation": "b.csv"}`."""
    return DatasetDict({split: read_file(filename) for split, filename in files.items()})


def read_directory(directory: str | Path, splits: Iterable[str]) -> DatasetDict:
    """Read `<split>.<suffix>` of a directory for every one of `splits`.

    Raises:
        UserError: no such directory, or a split without a file (or with several).
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise UserError(f"there is no directory {str(directory)!r} (looked in {Path.cwd()}).")
    present = sorted(path for path in folder.iterdir() if path.suffix.lower() in READERS)
    files: dict[str, str | Path] = {}
    for split in splits:
        candidates = [path for path in present if path.stem == split]
        if len(candidates) != 1:
            problem = (
                f"several files for the split {split!r}" if candidates else f"no file for the split {split!r}"
            )
            raise UserError(
                f"{folder} has {problem}: one {split}.parquet (or {', '.join(list(READERS)[:-1])}) is needed; "
                f"data files found: {listed(path.name for path in present)}."
            )
        files[split] = candidates[0]
    return read_splits(files)


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
