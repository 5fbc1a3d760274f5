"""What each column of a table is, what is wrong with it, and what the target means."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from rgd_hf.batches.columns import SAMPLE_WEIGHT
from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.files.column_types import MISSING_NUMBERS
from rgd_hf.scripts.tabular.preprocessing import (
    MAX_CATEGORIES,
    ambiguous_date,
    as_dates,
    as_numbers,
    is_day_first,
)

KINDS = ("numeric", "categorical", "date")
TASKS = ("classification", "regression")
MAX_INTEGER_CLASSES = 20
# A column is what at least this share of its values is; the rest are taken as missing, with a warning.
_SHARE = 0.95
_LEADING_ZERO = r"^\s*[+-]?0\d"
_LOOKS_LIKE_DATE = re.compile(r"^\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T]\d{1,2}:\d{2}.*)?\s*$")


@dataclass(frozen=True)
class ColumnArguments:
    """Columns: their types are inferred; these options overrule that."""

    numeric_columns: list[str] | None = field(default=None, metadata={"help": "Columns to treat as numbers."})
    categorical_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Columns to treat as categories, e.g. numeric codes. Beyond {MAX_CATEGORIES} in a column the rare "
            "ones share a code."
        },
    )
    date_columns: list[str] | None = field(default=None, metadata={"help": "Columns to treat as dates."})
    drop_columns: list[str] | None = field(default=None, metadata={"help": "Columns to ignore."})
    task: str | None = field(
        default=None,
        metadata={
            "help": "'classification' or 'regression'. By default, a target of strings, booleans or at most "
            f"{MAX_INTEGER_CLASSES} different integers is a classification.",
            "choices": list(TASKS),
        },
    )
    drop_rare_classes: bool = field(
        default=False,
        metadata={
            "help": "Drop the rows of classes that are too rare to split, after --max_rows has drawn its own."
        },
    )

    def __post_init__(self):
        lists = (self.numeric_columns, self.categorical_columns, self.date_columns, self.drop_columns)
        counts = Counter(name for names in lists for name in set(names or []))
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise UserError(
                f"the column(s) {listed(twice)} are in more than one of --numeric_columns, --categorical_columns, "
                "--date_columns and --drop_columns: name each in one."
            )

    def chosen_kinds(self) -> dict[str, str]:
        """The columns whose kind the user gave."""
        lists = (self.numeric_columns, self.categorical_columns, self.date_columns)
        return {name: kind for kind, names in zip(KINDS, lists) for name in names or []}


def choose_columns(
    frame: pd.DataFrame, target: str, args: ColumnArguments, warn: Callable[[str], Any]
) -> list[dict[str, str]]:
    """The columns to predict from, as `TablePreprocessor` takes them.

    Args:
        frame: the table.
        target: name of the target column, which is excluded.
        args: the user's choices.
        warn: called with a sentence for every column that is dropped or doubtful.

    Raises:
        UserError: a column named in `args` does not exist or is the target, or no usable column is left.
    """
    kinds, dropped = args.chosen_kinds(), args.drop_columns or []
    unknown = [name for name in (*kinds, *dropped) if name not in frame.columns]
    if unknown:
        raise UserError(f"there are no columns {listed(unknown)}; columns: {listed(frame.columns)}.")
    if target in (*kinds, *dropped):
        raise UserError(
            f"{target!r} is the target: leave it out of --drop_columns and of the lists of columns of one kind. --task "
            "says what kind of target it is."
        )
    columns: list[dict[str, str]] = []
    unusable: dict[str, list[str]] = {}
    for name in frame.columns:
        if name == target or name in dropped:
            continue
        problem = _unusable(frame[name])
        if problem:
            unusable.setdefault(problem, []).append(name)
            continue
        if name == SAMPLE_WEIGHT:
            warn(
                f"the column {name!r} is predicted from like any other: this recipe takes no weights of samples. "
                f"--drop_columns {name} leaves it out."
            )
        kind = kinds.get(name) or infer_kind(frame[name], warn)
        _warn_of_lost_values(frame[name], kind, warn)
        if kind == "date":
            _warn_of_ambiguous_dates(frame[name], warn)
        else:
            _warn_of_identifier(frame[name], kind, warn)
        if kind == "categorical":
            _warn_of_many_categories(frame[name], warn)
        columns.append({"name": name, "kind": kind})
    for problem, names in unusable.items():
        shown = listed(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        warn(f"dropped {len(names)} column(s) that are {problem}: {shown}.")
    if not columns:
        raise UserError(
            f"there is no column to predict {target!r} from: columns found are {listed(frame.columns[:20])}{' and others' if len(frame.columns) > 20 else ''}; constant and "
            "empty ones and those in --drop_columns are left out."
        )
    return columns


def shown_columns(frame: pd.DataFrame, columns: list[dict[str, str]], args: ColumnArguments) -> list[str]:
    """The columns that tell a person about a row, in the table's order.

    They are those that are predicted from and, since they may name the row, those of `--drop_columns`.

    Args:
        frame: the table.
        columns: columns of `choose_columns`.
        args: the user's choices.
    """
    used, dropped = {column["name"] for column in columns}, args.drop_columns or []
    return [n for n in frame.columns if n in used or (n in dropped and _unusable(frame[n]) is None)]


def _unusable(values: pd.Series) -> str | None:
    present = values.dropna()
    if not len(present):
        return "all missing"
    if pd.api.types.is_numeric_dtype(present) and not np.isfinite(present.to_numpy(dtype="float64")).any():
        return "all missing"
    if isinstance(present.iloc[0], dict | list | np.ndarray | bytes):
        return "lists, dicts or bytes"
    if len(present) == len(values) and (values == values.iloc[0]).all():
        return "constant"
    return None


def infer_kind(values: pd.Series, warn: Callable[[str], Any]) -> str:
    """`"numeric"`, `"categorical"` or `"date"`; mixed types are warned of."""
    name = values.name
    if pd.api.types.is_bool_dtype(values):
        return "categorical"
    if pd.api.types.is_numeric_dtype(values) or pd.api.types.is_timedelta64_dtype(values):
        return "numeric"
    if pd.api.types.is_datetime64_any_dtype(values):
        return "date"
    present = values.dropna()
    if isinstance(values.dtype, pd.CategoricalDtype) or all(isinstance(value, bool) for value in present):
        return "categorical"
    texts = present.astype(str)
    mixed = len({type(value) for value in present}) > 1
    share = 1 - np.isnan(as_numbers(present)).mean()
    if share >= _SHARE:
        codes = int(texts.str.match(_LEADING_ZERO).sum())
        if not codes:
            return "numeric"
        warn(
            f"column {name!r} has {codes:,} number(s) with leading zeros, as codes have; its values are taken as "
            f"categories. --numeric_columns {name!r} takes them as numbers."
        )
        return "categorical"
    if texts.str.match(_LOOKS_LIKE_DATE).mean() >= _SHARE and as_dates(present).notna().mean() >= _SHARE:
        return "date"
    if mixed or share >= 0.05:
        warn(f"column {name!r} mixes numbers and text; its values are taken as categories.")
    return "categorical"


def _warn_of_lost_values(values: pd.Series, kind: str, warn: Callable[[str], Any]) -> None:
    """Warn of values that are no numbers or no dates in a column of them, and of those that float64 takes for one."""
    present = values.dropna()
    if kind == "categorical" or pd.api.types.is_datetime64_any_dtype(values):
        return
    if kind == "date":
        day_first = is_day_first(values)
        lost = as_dates(present, day_first).isna().to_numpy()
    else:
        numbers = as_numbers(present)
        lost = np.isnan(numbers)
    if lost.any():
        counts = present[lost].astype(str).value_counts()
        named = ", ".join(f"{value!r} ({count:,})" for value, count in list(counts.items())[:5])
        more = f" and {len(counts) - 5:,} more" if len(counts) > 5 else ""
        infinite = bool(set(counts.index.str.lower().str.lstrip("+-")) <= {"inf", "infinity"})
        problem = (
            "infinite value(s)"
            if infinite
            else f"value(s) that are no {'dates' if kind == 'date' else 'numbers'}"
        )
        warn(f"column {values.name!r} has {int(lost.sum()):,} {problem}, taken as missing: {named}{more}.")
    if kind == "numeric" and not pd.api.types.is_float_dtype(present):
        same = present.nunique() - len(np.unique(numbers[~lost])) - int(present[lost].nunique())
        if same > 0 and np.nanmax(np.abs(numbers)) >= 2**53:
            warn(
                f"column {values.name!r} has numbers beyond 2**53, of which {same:,} cannot be told from another in "
                f"float64. If they are names, not amounts: --categorical_columns {values.name!r}."
            )


def _warn_of_identifier(values: pd.Series, kind: str, warn: Callable[[str], Any]) -> None:
    """Warn of a column that seems to name its row: all values differ, and they are texts or numbers in a row."""
    present = values.dropna()
    if len(present) < 20 or not present.is_unique:
        return
    if kind == "categorical":
        looks_like = True
    else:
        numbers = as_numbers(present)
        whole = np.all(numbers == np.round(numbers))
        looks_like = bool(whole and numbers.max() - numbers.min() < 2 * len(numbers))
    if looks_like:
        warn(
            f"column {values.name!r} looks like an identifier (a different value in every row). It cannot help with "
            f"new rows; --drop_columns {values.name!r} leaves it out."
        )


def _warn_of_ambiguous_dates(values: pd.Series, warn: Callable[[str], Any]) -> None:
    example = ambiguous_date(values)
    if example is not None:
        warn(
            f"column {values.name!r} has dates such as {example!r} and no number above 12 that tells the day from the "
            "month: they are read month first. If the day comes first, write them as YYYY-MM-DD."
        )


def _warn_of_many_categories(values: pd.Series, warn: Callable[[str], Any]) -> None:
    """Warn where categories share a code; of a column of identifiers another warning tells."""
    count = values.nunique() + int(values.isna().any())
    if count > MAX_CATEGORIES and values.nunique() < values.count():
        kept = MAX_CATEGORIES - 1
        warn(
            f"column {values.name!r} has {count:,} categories: the {kept} that are most frequent in the training rows "
            f"have a code of their own, the other {count - kept:,} share one."
        )


@dataclass(frozen=True)
class Target:
    """What is predicted.

    Attributes:
        name: the column.
        classes: its values in the order of the class indices; empty for regression.
    """

    name: str
    classes: tuple = ()

    @property
    def is_regression(self) -> bool:
        """Whether the target is a number."""
        return not self.classes

    def encode(self, values: pd.Series) -> np.ndarray:
        """Class indices int64, or float64."""
        if self.is_regression:
            return as_numbers(values)
        index = {str(value): i for i, value in enumerate(self.classes)}
        return np.array([index[str(_plain(value))] for value in values], dtype=np.int64)


def find_target(
    frame: pd.DataFrame, name: str, args: ColumnArguments, warn: Callable[[str], Any]
) -> tuple[pd.DataFrame, Target]:
    """What the target column means, and the rows that have a usable target.

    Raises:
        UserError: no target value, lists or dicts, one class only, or a regression on values that are no numbers.
    """
    infinite = (
        frame[name].map(lambda value: isinstance(value, float) and np.isinf(value)).to_numpy(dtype=bool)
    )
    missing = frame[name].isna().to_numpy(dtype=bool)
    if infinite.any():
        warn(f"{int(infinite.sum()):,} row(s) with an infinite target are skipped.")
    if missing.any():
        warn(f"{int(missing.sum()):,} row(s) without a target are skipped.")
    frame = frame[~(missing | infinite)]
    values = frame[name]
    if not len(values):
        raise UserError(f"the target column {name!r} has no values.")
    nested = values[
        values.map(lambda value: isinstance(value, dict | list | np.ndarray | bytes)).astype(bool)
    ]
    if len(nested):
        raise UserError(
            f"the target column {name!r} holds lists, dicts or bytes ({str(nested.iloc[0])[:60]}), but a target is one "
            "class or one number per row: write a column of it, and name that as --target."
        )
    if _is_regression(values, args.task):
        if isinstance(values.iloc[0], pd.Timestamp | pd.Timedelta):
            raise UserError(
                f"the target column {name!r} holds dates or durations ({values.iloc[0]}), but a regression predicts numbers: "
                "write a column of days or seconds, and name that as --target."
            )
        numbers = as_numbers(values)
        if np.isnan(numbers).any():
            bad = values[np.isnan(numbers)].iloc[0]
            raise UserError(f"--task regression needs numbers, but the target column {name!r} has {bad!r}.")
        if numbers.min() == numbers.max():
            raise UserError(f"the target column {name!r} has one value only: {numbers[0]:g}.")
        return frame, Target(name)
    plain = values.map(_plain).astype(object)
    kinds = Counter("number" if type(value) in (int, float) else type(value).__name__ for value in plain)
    if len(kinds) > 1:
        found = " and ".join(f"{count:,} {kind}" for kind, count in kinds.items())
        warn(f"the target column {name!r} mixes types ({found}); the values are compared as texts.")
        plain = plain.map(str)
    words = [word for word, count in plain.value_counts().items() if re.match(MISSING_NUMBERS, str(word))]
    if words:
        warn(
            f"the target column {name!r} has the class(es) {listed(words)}; leave the cells empty if they are missing."
        )
    classes = _in_order(plain.unique())
    if len(classes) < 2:
        raise UserError(
            f"the target column {name!r} has one class only: {listed(classes)}. Two at least are needed."
        )
    return frame, Target(name, tuple(classes))


def _in_order(values: Any) -> list:
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=str)


def _plain(value: Any) -> Any:
    """A class as JSON can hold it: 1.0 and numpy's 1 are 1."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | float | np.number):
        return int(value) if float(value).is_integer() else float(value)
    return str(value)


def _is_regression(values: pd.Series, task: str | None) -> bool:
    if task is not None:
        return task == "regression"
    if pd.api.types.is_bool_dtype(values) or isinstance(values.dtype, pd.CategoricalDtype):
        return False
    numbers = as_numbers(values)
    if np.isnan(numbers).any():
        return False
    return bool(np.any(numbers != np.round(numbers)) or len(np.unique(numbers)) > MAX_INTEGER_CLASSES)
