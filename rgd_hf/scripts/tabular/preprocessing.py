"""From a raw table to numbers: typed columns, imputed and quantile-transformed numerics, ordinal categories.

All encoders are scikit-learn's, fitted on the training split alone and saved with `skops`, which unlike a pickle runs
no code when it is loaded.
"""

import json
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sklearn
import skops.io
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.preprocessing import OrdinalEncoder, QuantileTransformer
from transformers.utils import cached_file

ENCODERS_NAME = "preprocessing.skops"
VERSIONS_NAME = "preprocessing_versions.json"
MISSING = "<missing>"
MAX_CATEGORIES = 200
_NOISE = 1e-5
_SHOWN = 5
_NO_TEXTS = (bool, np.bool_, int, float, np.number)
_WRITTEN_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
# What pandas reads as missing; without that, columns of numbers have these texts.
_MISSING_WORDS = frozenset(("", "na", "n/a", "#n/a", "nan", "null", "none", "<na>"))
_ENDS_WITH_YEAR = r"^\s*(\d{1,2})([-/.])(\d{1,2})\2\d{2,4}\b"


class TablePreprocessor:
    """Encodes a table as `x_num` and `x_cat`.

    Numeric columns (and parts of dates): median imputation, quantile transform to a normal distribution, and a 0/1
    column for every one that has missing values; features that are constant in training are dropped. Categorical columns: a missing value is a category of its own, rare
    ones beyond `MAX_CATEGORIES` share one code, categories not seen in training have code 0.

    Args:
        columns: `{"name": ..., "kind": "numeric" | "categorical" | "date"}` of every column that is used.
    """

    def __init__(self, columns: list[dict[str, str]]):
        self.columns = columns
        self.encoders: dict[str, Any] = {}

    def fit(self, frame: pd.DataFrame, seed: int = 0) -> "TablePreprocessor":
        """Fit all encoders on the rows of `frame`, the training split."""
        dates = [column["name"] for column in self.columns if column["kind"] == "date"]
        self.encoders["day_first"] = [name for name in dates if name in frame and is_day_first(frame[name])]
        numeric, categories = self._typed(frame)
        if numeric.shape[1]:
            imputer = SimpleImputer(strategy="median", keep_empty_features=True).fit(numeric)
            filled = imputer.transform(numeric)
            # Ties spread over their quantiles, so that a value with many ties lands in their middle, not at an end.
            noise = np.random.default_rng(seed).normal(size=filled.shape) * _spread(filled) * _NOISE
            quantiles = QuantileTransformer(
                n_quantiles=max(min(len(filled) // 30, 1000), min(10, len(filled))),
                output_distribution="normal",
                subsample=None,
                random_state=seed,
            ).fit(filled + noise)
            self.encoders |= {"imputer": imputer, "quantiles": quantiles}
            if np.isnan(numeric).any():
                self.encoders["missing"] = MissingIndicator(error_on_new=False).fit(numeric)
            # E.g. the hour of dates without one, or a value that the training split happens to have alone.
            self.encoders["varying"] = np.flatnonzero(np.ptp(self._numeric_features(numeric), axis=0) > 0)
        if categories.shape[1]:
            ordinal = OrdinalEncoder(
                handle_unknown="use_encoded_value",
                unknown_value=-1,
                max_categories=MAX_CATEGORIES,
                dtype=np.int64,
            ).fit(categories)
            self.encoders["ordinal"] = ordinal
        return self

    def transform(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Encode rows.

        Returns:
            `x_num` float32 `[rows, numeric features]` and `x_cat` int64 `[rows, categorical features]`; either may
            have no features.

        Raises:
            ValueError: a column is missing.
        """
        numeric, categories = self._typed(frame)
        if not len(frame):
            return np.empty((0, self.n_num_features), np.float32), np.empty(categories.shape, np.int64)
        x_num = np.empty((len(frame), 0), np.float32)
        x_cat = np.empty((len(frame), 0), np.int64)
        if "imputer" in self.encoders:
            x_num = self._numeric_features(numeric)[:, self.encoders["varying"]]
        if "ordinal" in self.encoders:
            x_cat = self.encoders["ordinal"].transform(categories) + 1
        return x_num, x_cat

    def _numeric_features(self, numeric: np.ndarray) -> np.ndarray:
        parts = [self.encoders["quantiles"].transform(self.encoders["imputer"].transform(numeric))]
        if "missing" in self.encoders:
            parts.append(self.encoders["missing"].transform(numeric))
        return np.hstack(parts).astype(np.float32)

    @property
    def n_num_features(self) -> int:
        """Numeric features of the encoded table."""
        return len(self.encoders.get("varying", ()))

    @property
    def cardinalities(self) -> list[int]:
        """Number of codes of each categorical feature, code 0 included."""
        ordinal = self.encoders.get("ordinal")
        if ordinal is None:
            return []
        sizes = []
        for known, infrequent in zip(ordinal.categories_, ordinal.infrequent_categories_):
            rare = 0 if infrequent is None else len(infrequent)
            sizes.append(1 + len(known) - rare + (rare > 0))
        return sizes

    def _typed(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        absent = [column["name"] for column in self.columns if column["name"] not in frame.columns]
        if absent:
            raise ValueError(
                f"The table lacks the column(s) {', '.join(map(repr, absent))}; it has: "
                f"{', '.join(map(repr, map(str, frame.columns)))}."
            )
        numeric, categories = [], []
        known = self._known_categories()
        for column in self.columns:
            values = frame[column["name"]]
            if column["kind"] == "numeric":
                numeric.append(as_numbers(values)[:, None])
            elif column["kind"] == "date":
                day_first = column["name"] in self.encoders.get("day_first", ())
                numeric.append(date_parts(values, day_first))
            else:
                categories.append(as_categories(values, known.get(column["name"]))[:, None])
        rows = len(frame)
        return (
            np.hstack(numeric) if numeric else np.empty((rows, 0)),
            np.hstack(categories) if categories else np.empty((rows, 0), dtype=object),
        )

    def _known_categories(self) -> dict[str, list[str]]:
        """The categories of the training rows by column, once the encoders are fitted."""
        if "ordinal" not in self.encoders:
            return {}
        names = [column["name"] for column in self.columns if column["kind"] == "categorical"]
        return dict(zip(names, (known.tolist() for known in self.encoders["ordinal"].categories_)))

    def doubts(self, frame: pd.DataFrame) -> list[str]:
        """A sentence for every column with values that the network cannot use, often because the table was read in another way.

        They are categories that no training row has, numbers that may be one of several, texts in a column of numbers, and
        what is no date.
        """
        known, found = self._known_categories(), []
        for column in self.columns:
            name, kind = column["name"], column["kind"]
            values = frame[name]
            more = "."
            if kind == "categorical":
                lost = _unknown(values, known[name])
                what = "none of the categories of training, or may be several, and taken as unknown"
                more = f"; known are {_listed(map(repr, known[name]))}."
            else:
                day_first = name in self.encoders.get("day_first", ())
                read = as_dates(values, day_first).isna() if kind == "date" else np.isnan(as_numbers(values))
                lost = values.notna().to_numpy() & np.asarray(read)
                lost[lost] = [str(value).strip().lower() not in _MISSING_WORDS for value in values[lost]]
                what = f"no {'dates' if kind == 'date' else 'finite numbers'} and taken as missing"
            if lost.any():
                examples = dict.fromkeys(map(repr, values[lost].astype(object)))
                found.append(
                    f"column {name!r}: {int(lost.sum()):,} of {len(values):,} values are {what}: {_listed(examples)}{more}"
                )
        return found

    def save_pretrained(self, directory: str | PathLike) -> None:
        """Write the fitted encoders, and the versions that they were written with, into `directory`."""
        skops.io.dump(self.encoders, Path(directory) / ENCODERS_NAME)
        versions = {"scikit-learn": sklearn.__version__, "skops": skops.__version__}
        (Path(directory) / VERSIONS_NAME).write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, name_or_path: str, columns: list[dict[str, str]]) -> "TablePreprocessor":
        """Read the encoders from a folder, or from a repository on the Hub."""
        preprocessor = cls(columns)
        preprocessor.encoders = skops.io.load(
            cached_file(name_or_path, ENCODERS_NAME), trusted=["numpy.dtype"]
        )
        return preprocessor


def _spread(numbers: np.ndarray) -> np.ndarray:
    """Standard deviation of each column, also where squares would overflow."""
    scale = np.abs(numbers).max(axis=0)
    scale[scale == 0] = 1.0
    return (numbers / scale).std(axis=0) * scale


def as_numbers(values: pd.Series) -> np.ndarray:
    """A column as float64, NaN where it is missing, infinite or no number."""
    numbers = pd.to_numeric(values, errors="coerce").astype("float64").to_numpy(copy=True)
    numbers[~np.isfinite(numbers)] = np.nan
    return numbers


def as_categories(values: pd.Series, known: Sequence[str] | None = None) -> np.ndarray:
    """A column as strings without spaces around them, `MISSING` where it is missing; 1 and 1.0 are the same category.

    Args:
        values: values of any type.
        known: categories of the training rows. A truth value or number that is none of them is the one that writes it in
            another way (True: "true", 7: "007"), if there is one alone.
    """
    objects = values.astype(object)
    categories = np.array([_as_category(value) for value in objects], dtype=object)
    unknown: Any = () if known is None else np.flatnonzero(~pd.Series(categories).isin(known))
    if len(unknown):
        meant = _by_meaning(known or ())
        for row in unknown:
            written = meant.get(_meaning(categories[row]), ())
            if isinstance(objects.iloc[row], _NO_TEXTS) and len(written) == 1:
                categories[row] = written[0]
    return categories


def _unknown(values: pd.Series, known: Sequence[str]) -> np.ndarray:
    """Which values are none of the categories, or numbers and truth values that several of them write, bool `[rows]`."""
    categories = pd.Series(as_categories(values, known))
    lost = ~categories.isin(known).to_numpy()
    if not any(category.lower() in _MISSING_WORDS for category in known):
        lost &= (categories != MISSING).to_numpy()  # it is missing however the table is read
    several = {name for names in _by_meaning(known).values() if len(names) > 1 for name in names}
    for row in np.flatnonzero(categories.isin(several)):
        lost[row] |= isinstance(values.iloc[row], _NO_TEXTS)
    return lost


def _by_meaning(known: Sequence[str]) -> dict[Any, list[str]]:
    found: dict[Any, list[str]] = {}
    for category in known:
        found.setdefault(_meaning(category), []).append(category)
    return found


def _meaning(category: str) -> Any:
    """What different writings of a number or truth value have in common."""
    return Decimal(category) if _WRITTEN_NUMBER.fullmatch(category) else category.casefold()


def _listed(names: Iterable[str]) -> str:
    shown = [*names]
    return ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")


def _as_category(value: Any) -> str:
    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return MISSING
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip() or MISSING


def date_parts(values: pd.Series, day_first: bool = False) -> np.ndarray:
    """A column of dates as `[rows, 5]`: days since 1970, month, day of the month, day of the week, hour."""
    dates = as_dates(values, day_first)
    days = (dates - pd.Timestamp("1970-01-01", tz="UTC")) / pd.Timedelta(days=1)
    parts = [days, dates.dt.month, dates.dt.day, dates.dt.dayofweek, dates.dt.hour]
    return np.stack([part.to_numpy(dtype="float64", na_value=np.nan) for part in parts], axis=1)


def is_day_first(values: pd.Series) -> bool:
    """Whether a column of texts writes its dates as 31/12/2020 or 31.12.2020, not as 12/31/2020.

    Numbers above 12 tell; where there are none, dots mean that the day comes first.
    """
    if pd.api.types.is_datetime64_any_dtype(values):
        return False
    found = values.dropna().astype(str).str.extract(_ENDS_WITH_YEAR).dropna()
    first, second = found[0].astype(int), found[2].astype(int)
    ahead = int((first > 12).sum() - (second > 12).sum())
    return ahead > 0 or (ahead == 0 and bool((found[1] == ".").any()))


def ambiguous_date(values: pd.Series) -> str | None:
    """An example, where nothing in a column of texts tells the day from the month; dots do."""
    if pd.api.types.is_datetime64_any_dtype(values):
        return None
    texts = values.dropna().astype(str)
    found = texts.str.extract(_ENDS_WITH_YEAR).dropna()
    first, second = found[0].astype(int), found[2].astype(int)
    if ((first > 12) | (second > 12) | (found[1] == ".")).any() or (first == second).all():
        return None
    return texts[found.index[first != second][0]]


def as_dates(values: pd.Series, day_first: bool = False) -> pd.Series:
    """A column as timestamps in UTC, NaT where it is missing or no date.

    Args:
        values: dates or texts.
        day_first: the result of `is_day_first`; texts that begin with the year have the month next in any case.
    """
    if pd.api.types.is_datetime64_any_dtype(values):
        return pd.to_datetime(values, errors="coerce", utc=True)
    texts = values.astype(object).where(values.notna(), None)
    dates = pd.to_datetime(texts, errors="coerce", utc=True, format="mixed")
    if not day_first:
        return dates
    # Asked for the day first, pandas would exchange the month and the day of 2020-12-01 as well.
    flipped = pd.to_datetime(texts, errors="coerce", utc=True, format="mixed", dayfirst=True)
    return dates.where(~texts.astype(str).str.match(_ENDS_WITH_YEAR), flipped)
