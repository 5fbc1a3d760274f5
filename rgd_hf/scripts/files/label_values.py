"""The values of a label column: names, numbers, or lists of either, and what they are refused for."""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

from datasets import Dataset

from rgd_hf.scripts.errors import UserError, listed

ALLOWED = (
    "classes are texts, whole numbers, dates or true and false; amounts are fractional numbers; several labels per sample "
    "are a list of names or whole numbers, or of a 0 or 1 for every class"
)


def label_values(
    dataset: Dataset, column: str, where: str, warn: Callable[[str], Any] | None = None
) -> list[Any]:
    """The values of a label column: texts without spaces around them, dates and times as texts, decimals as numbers, or lists of such values.

    Args:
        dataset: rows with the column.
        column: its name.
        where: the data, for messages.
        warn: called with a sentence where spaces around them were all that told labels apart.

    Raises:
        UserError: empty cells, empty entries of lists, lists within lists, objects, bytes; the message names the row.
    """
    values = dataset.with_format(None)[column][:]
    missing = [row for row, value in enumerate(values) if value is None or value != value]
    if missing:
        raise UserError(
            f"the label column {column!r} of {where} is empty in {len(missing):,} of {len(values):,} rows, first in row "
            f"{missing[0]} (counted from 0): fill these cells, or take the rows out."
        )
    for row, value in enumerate(values):
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, str | int | float | Decimal | date | time | timedelta) or item != item:
                raise UserError(
                    f"{in_row(column, where, row, value)}, which is no label: {ALLOWED}. {_remedy(item)}"
                )
    plain = [_plain(value) for value in values]
    if warn is not None and plain and isinstance(plain[0], str):
        names = set(map(str, values))
        twins = sorted(name for name in names if name != name.strip() and len(names & {name.strip()}))
        if twins:
            count = sum(value in twins for value in values)
            warn(
                f"the label column {column!r} of {where} has {count:,} label(s) that differ from others in spaces around "
                f"them alone, taken as the same: {listed(twins[:10])}."
            )
    return plain


def in_row(column: str, where: str, row: int, value: Any) -> str:
    """The beginning of a message about one value."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return f"the label column {column!r} of {where} has {shown} in row {row} (counted from 0)"


def _remedy(item: Any) -> str:
    if item is None or item != item:
        return "Take the empty entry out of the list, or write a name in its place."
    if isinstance(item, list):
        return "Write one list of labels per row, without lists in it."
    return "Write the label as a column of texts or whole numbers, and name that with --label_column."


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    if isinstance(value, date | time | timedelta):
        return str(value)
    return value.strip() if isinstance(value, str) else value


def is_multi_hot(rows: Sequence[list]) -> bool:
    """Whether lists hold a 0 or 1 for every class, as numbers or booleans: all of one length above 1."""
    lengths = {len(row) for row in rows}
    return len(lengths) == 1 and max(lengths) > 1 and all(item in (0, 1) for row in rows for item in row)


def require_names(rows: Sequence[list], column: str, where: str) -> None:
    """Raise `UserError` unless lists name the labels of a sample, each once, by texts or whole numbers."""
    hint = (
        "For a 0 or 1 for every class, all lists need the same length, above 1, and no other numbers; found: "
        f"{min(map(len, rows))} to {max(map(len, rows))} entries."
    )
    for row, labels in enumerate(rows):
        repeated = [label for label, count in Counter(labels).items() if count > 1]
        if repeated:
            raise UserError(
                f"{in_row(column, where, row, labels)}, where {listed(repeated)} is repeated: a list names each label of "
                f"its sample once. {hint}"
            )
        if any(isinstance(label, float) and not label.is_integer() for label in labels):
            raise UserError(
                f"{in_row(column, where, row, labels)}: labels in lists are names or whole numbers, not fractions. {hint}"
            )


def encode_multi_hot(rows: Sequence[list], classes: int, column: str, where: str) -> list[list[float]]:
    """Lists of a 0 or 1 for each of `classes` as floats.

    Raises:
        UserError: another length, or other values; the message names the row.
    """
    for row, marks in enumerate(rows):
        if len(marks) != classes or not all(mark in (0, 1) for mark in marks):
            raise UserError(
                f"{in_row(column, where, row, marks)}: the lists of the training data have {classes} entries, a 0 or 1 for "
                "every class, and so must all others."
            )
    return [[float(mark) for mark in marks] for marks in rows]
