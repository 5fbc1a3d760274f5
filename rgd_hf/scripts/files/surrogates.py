"""Halves of characters (lone surrogates), which text that was cut between UTF-16 units has and UTF-8 cannot hold."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rgd_hf.scripts.errors import UserError

_SURROGATE = re.compile("[\ud800-\udfff]")
REMEDY = (
    "Text was cut in the middle of a character, an emoji say. In Python, text.encode('utf-16', 'surrogatepass')."
    "decode('utf-16', 'replace') joins halves that belong together and puts a replacement character for others"
)


def surrogate_error(columns: Mapping[str, Iterable[Any]], path: Path) -> UserError:
    """The error for columns of a file that hold half a character: in a name, a text, or a text within lists and objects."""
    for name, values in columns.items():
        if _SURROGATE.search(name):
            return UserError(f"{path}: the name of the column {name!a} has half a character. {REMEDY}.")
        found = [(row, text) for row, text in enumerate(map(_text_with_half, values)) if text is not None]
        if found:
            row, text = found[0]
            return UserError(
                f"{path}: column {name!r} has half a character in {len(found):,} row(s), first in row {row} (counted from "
                f"0): {text!a}. {REMEDY}."
            )
    return UserError(f"{path} has half a character. {REMEDY}.")


def _text_with_half(value: Any) -> str | None:
    """The first half character of a value with what is around it."""
    if isinstance(value, str):
        match = _SURROGATE.search(value)
        return match and value[max(0, match.start() - 20) : match.end() + 20]
    parts: Iterable[Any] = ()
    if isinstance(value, list):
        parts = value
    elif isinstance(value, dict):
        parts = [*value, *value.values()]
    return next((text for text in map(_text_with_half, parts) if text is not None), None)


def refuse_surrogates(raw: bytes, encoding: str, path: Path) -> None:
    """Raise `UserError` where half characters are all that keeps bytes from being text of `encoding`."""
    try:
        text = raw.decode(encoding, "surrogatepass")
    except UnicodeDecodeError:
        return
    match = _SURROGATE.search(text)
    if match:
        line = text.count("\n", 0, match.start()) + 1
        raise UserError(
            f"{path} has {len(_SURROGATE.findall(text)):,} half character(s), first in line {line}: "
            f"{_text_with_half(text)!a}. {REMEDY}; open(FILE, encoding={encoding!r}, errors='surrogatepass') reads the file."
        )
