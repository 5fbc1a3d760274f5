"""Rows from json and jsonl files: every key of every row, whichever row it first occurs in."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.files.surrogates import refuse_surrogates, surrogate_error

_KINDS = {
    bool: "true or false",
    int: "numbers",
    float: "numbers",
    str: "texts",
    list: "lists",
    dict: "objects",
}
_EXACT_IN_FLOAT64 = 2**53


def read_json(path: Path, lines: bool, warn: Callable[[str], Any]) -> pa.Table:
    """Read rows; a key that a row lacks is missing there.

    Args:
        path: the file. A `.json` file holds a list of objects, or one object of columns (lists, or objects by row).
        lines: whether every line is an object of its own.
        warn: called with a sentence where the rows of a column differ in type.

    Raises:
        UserError: no JSON, other than rows, a key twice in one object, a column of values that do not go together, or
            half a character (a lone surrogate).
    """
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refuse_surrogates(raw, "utf-8-sig", path)
        raise UserError(
            f"{path} could not be read as json, which is UTF-8: {error.reason} at byte {error.start}. Convert it: "
            "iconv -f ENCODING -t UTF-8 FILE > UTF8_FILE."
        ) from error
    content = _objects_by_line(text, path) if lines or _has_objects_by_line(text) else _parse(text, path, "")
    columns = _columns(content, path)
    try:
        arrays = {name: _array(values, f"{path}: column {name!r}", warn) for name, values in columns.items()}
        return pa.table(arrays)
    except UnicodeEncodeError as error:
        raise surrogate_error(columns, path) from error


def _parse(text: str, path: Path, where: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            raise UserError(f"{path}: an object{where} has the key(s) {listed(twice)} more than once.")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} could not be read as json{where}: {error}") from error


def _has_objects_by_line(text: str) -> bool:
    first, _, rest = text.strip().partition("\n")
    return first.startswith("{") and first.rstrip().endswith("}") and rest.lstrip().startswith("{")


def _objects_by_line(text: str, path: Path) -> list[Any]:
    numbered = enumerate(text.split("\n"), 1)
    return [_parse(line, path, f" in line {number}") for number, line in numbered if line.strip()]


def _columns(content: Any, path: Path) -> dict[str, list[Any]]:
    inside = [
        key
        for key, value in (content.items() if isinstance(content, dict) else ())
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
    ]
    # A single column of objects has nothing to predict from; it is how many programs wrap their rows.
    if isinstance(content, dict) and content and list(content) != inside[:1]:
        values = list(content.values())
        if all(isinstance(value, dict) for value in values) and len({tuple(value) for value in values}) == 1:
            return {name: list(value.values()) for name, value in content.items()}
        if all(isinstance(value, list) for value in values) and len({len(value) for value in values}) == 1:
            return content
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        hint = f" The key {inside[0]!r} holds a list of objects: write it alone to a file." if inside else ""
        raise UserError(
            f"{path} holds no rows: a list of objects, one object a line, or an object of columns of one length is "
            f"needed.{hint}"
        )
    names = dict.fromkeys(name for row in content for name in row)
    return {name: [row.get(name) for row in content] for name in names}


def _array(values: list[Any], where: str, warn: Callable[[str], Any]) -> pa.Array:
    present = [value for value in values if value is not None]
    kinds = Counter(_KINDS[type(value)] for value in present)
    found = " and ".join(f"{count:,} {kind}" for kind, count in kinds.items())
    if len(kinds) > 1:
        if {"lists", "objects"} & set(kinds):
            raise UserError(f"{where} has {found}: a column needs values of one kind.")
        warn(f"{where} has {found}, and is read as text.")
        return pa.array([None if value is None else _text(value) for value in values], pa.string())
    if {type(value) for value in present} == {int, float}:
        large = sum(isinstance(value, int) and abs(value) > _EXACT_IN_FLOAT64 for value in present)
        if large:
            warn(f"{where} has fractions, and {large:,} integer(s) beyond 2**53, which float64 rounds.")
        values = [None if value is None else float(value) for value in values]
    try:
        return pa.array(values)
    except OverflowError:
        warn(f"{where} has integers beyond 64 bits, and is read as text.")
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    except pa.ArrowException as error:
        raise UserError(f"{where} has values that do not go together: {error}.") from error


def _text(value: Any) -> str:
    """A value in a column of mixed types, where 1 and 1.0 are one value."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
