"""Names and types of the columns of a text file: numbers where every cell is one, else the strings that are there."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tqdm.auto import tqdm

from rgd_hf.scripts.errors import listed

# What tables write for a missing number. In a column of texts these are texts: a class can be called "None".
MISSING_NUMBERS = r"(?i)^(\?|-+|\.|na|n/a|#n/a|nan|null|none|missing)$"
_INFINITE = r"(?i)^[+-]?inf(inity)?$"
_LEADING_ZERO = r"^[+-]?0\d"
_AFFIXED = r"^([$€£¥\x{2212}] ?#|#\s?(%|‰|[$€£¥]|[a-zA-Zµ°²³/]{1,5}))$"
_MANY_CLASSES = 20
_EXACT_IN_FLOAT64 = 2**53


@dataclass(frozen=True)
class NumberFormat:
    """How the numbers of a column are written.

    Attributes:
        decimal: the decimal mark.
        thousands: marks between groups of three digits, as a regular expression; none where empty.
    """

    decimal: str
    thousands: str = ""

    @property
    def pattern(self) -> str:
        mark = re.escape(self.decimal)
        if not self.thousands:
            return rf"(?i)^[+-]?(\d+{mark}?\d*|{mark}\d+)(e[+-]?\d+)?$"
        return rf"^[+-]?([1-9]\d{{0,2}}({self.thousands}\d{{3}})+|\d{{1,3}})({mark}\d+)?$"

    def marks_in(self, cells: pa.ChunkedArray) -> bool:
        """Whether any cell has what tells this format from integers."""
        return _some(cells, self.thousands or re.escape(self.decimal))

    def plain(self, cells: pa.ChunkedArray) -> pa.ChunkedArray:
        """The same numbers as Arrow casts them: no thousands marks, a decimal point, no plus sign."""
        if self.thousands:
            cells = pc.replace_substring_regex(cells, self.thousands, "")
        cells = pc.utf8_ltrim(cells, "+")
        return cells if self.decimal == "." else pc.replace_substring(cells, self.decimal, ".")

    def type_of(self, cells: pa.ChunkedArray) -> pa.DataType:
        """int64 if all numbers are whole, else float64."""
        return pa.int64() if _every(self.plain(cells), r"^-?\d+$") else pa.float64()


WHOLE = NumberFormat(".")
_DOTTED_THOUSANDS = NumberFormat(",", r"\.")
_FORMATS = (
    WHOLE,
    NumberFormat(","),
    NumberFormat(".", ","),
    _DOTTED_THOUSANDS,
    NumberFormat(".", "[ \u00a0\u202f'’]"),
    NumberFormat(",", "[ \u00a0\u202f'’]"),
)


def column_names(names: Sequence[Any], where: str, warn: Callable[[str], Any]) -> list[str]:
    """Stripped names, each once: nameless columns are called by their position, equal names numbered, as pandas does.

    Args:
        names: as the file has them.
        where: the file, for messages.
        warn: called with a sentence where a name is made up.
    """
    stripped = [str(name).strip() for name in names]
    filled = [name or f"Unnamed: {position}" for position, name in enumerate(stripped)]
    if "" in stripped:
        made_up = [name for name, before in zip(filled, stripped) if not before]
        warn(f"{where}: {len(made_up)} column(s) without a name are called {listed(made_up)}.")
    taken, unique, numbers = set(filled), [], dict.fromkeys(filled, 0)
    for name in filled:
        new = name
        while numbers[name] and new in taken:
            new = f"{name}.{numbers[name]}"
            numbers[name] += 1
        numbers[name] = max(numbers[name], 1)
        taken.add(new)
        unique.append(new)
    renamed = [f"{new!r} (another {old!r})" for new, old in zip(unique, filled) if new != old]
    if renamed:
        warn(f"{where}: several columns have the same name; they are numbered: {', '.join(renamed)}.")
    return unique


def typed_tables(
    tables: Sequence[pa.Table], where: str, target: str | None, warn: Callable[[str], Any]
) -> list[pa.Table]:
    """Tables of strings with their numbers as int64 or float64 and their empty cells missing.

    A column that several tables have gets one type, so that a split's column of digits stays text where it is text in
    another. Numbers with leading zeros are codes, thus text. A column of numbers may have some of `MISSING_NUMBERS`,
    which are counted in a message. The marks in numbers, `decimal` and `thousands`, are added to the tables' metadata.

    Args:
        tables: columns of strings; those of other types are left as they are.
        where: the files, for messages.
        target: in this column those words are classes of their own if the numbers look like classes.
        warn: called with a sentence for everything that is more than a plain conversion.
    """
    columns: dict[str, _Column] = {}
    parts: dict[str, list[pa.ChunkedArray]] = {}
    for table in tables:
        for name, part in zip(table.column_names, table.columns):
            parts.setdefault(name, []).append(part)
    for name, found in tqdm(parts.items(), "column types", delay=3, disable=None, leave=False):
        if all(pa.types.is_string(part.type) for part in found):
            columns[name] = _Column([chunk for part in found for chunk in part.chunks])
    # Integers have no mark, and say nothing of those of others.
    decimals = {
        formats[0].decimal
        for column in columns.values()
        if len(formats := column.formats) == 1 and formats[0].marks_in(column.numbers)
    }
    chosen: dict[str, tuple[NumberFormat, pa.DataType]] = {}
    for name, column in columns.items():
        known = column.choose(decimals, f"{where}: column {name!r}", warn)
        if known is None:
            if affixed := column.affixed_number():
                warn(
                    f"{where}: column {name!r} has numbers with a sign or unit ({affixed!r}) and stays text. Write the "
                    "numbers alone to have them read as numbers."
                )
            continue
        if column.words and name == target and column.looks_like_classes(known):
            warn(
                f"{where}: the target {name!r} has {column.listed_words()} beside numbers, taken as classes of their "
                "own. Leave those cells empty if they are missing."
            )
            continue
        if column.words:
            warn(f"{where}: column {name!r} is numeric but for {column.listed_words()}, taken as missing.")
        chosen[name] = known, pa.float64() if column.infinite else known.type_of(column.numbers)
    commas = [
        name
        for name, (known, _) in chosen.items()
        if known.decimal == "," and known.marks_in(columns[name].numbers)
    ]
    if commas:
        warn(f"{where}: {len(commas)} column(s) are read with decimal commas: {listed(commas)}.")
    marks = {"decimal": "," if commas else "."}
    thousands = {known.thousands for known, _ in chosen.values()} & {",", r"\."}
    if len(thousands) == 1:
        marks["thousands"] = thousands.pop()[-1]
    return [
        _converted(table, chosen).replace_schema_metadata({**(table.schema.metadata or {}), **marks})
        for table in tables
    ]


def _converted(table: pa.Table, chosen: dict[str, tuple[NumberFormat, pa.DataType]]) -> pa.Table:
    columns = [
        _typed(column, chosen.get(name)) if pa.types.is_string(column.type) else column
        for name, column in zip(table.column_names, table.columns)
    ]
    return pa.Table.from_arrays(columns, names=table.column_names)


def _typed(column: pa.ChunkedArray, chosen: tuple[NumberFormat, pa.DataType] | None) -> pa.ChunkedArray:
    stripped = pc.utf8_trim_whitespace(column)
    missing = pc.equal(stripped, "")
    nothing = pa.scalar(None, pa.string())
    if chosen is None:
        return pc.if_else(missing, nothing, column)
    known, kind = chosen
    missing = pc.or_(missing, pc.match_substring_regex(stripped, MISSING_NUMBERS))
    return known.plain(pc.if_else(missing, nothing, stripped)).cast(kind)


class _Column:
    """What the cells of a column of strings can be read as.

    Attributes:
        numbers: the stripped cells that are neither empty, nor one of `MISSING_NUMBERS`, nor infinite.
        words: those of `MISSING_NUMBERS` in it, with their numbers.
        infinite: whether there are infinite cells.
        formats: how the numbers may be written; none where the column is text, several where it is in doubt.
    """

    def __init__(self, chunks: list[pa.Array]):
        cells = pc.utf8_trim_whitespace(pa.chunked_array(chunks, pa.string()).drop_null())
        cells = cells.filter(pc.not_equal(cells, ""))
        is_word = pc.match_substring_regex(cells, MISSING_NUMBERS)
        counts = cells.filter(is_word).value_counts().to_pylist()
        self.words = {item["values"]: item["counts"] for item in counts}
        cells = cells.filter(pc.invert(is_word))
        self.numbers = cells.filter(pc.invert(pc.match_substring_regex(cells, _INFINITE)))
        self.infinite = len(self.numbers) < len(cells)
        self.formats: list[NumberFormat] = []
        if not len(self.numbers) or _some(self.numbers, _LEADING_ZERO):
            return
        if _every(self.numbers, r"^[+-]?\d+$"):
            self.formats = [WHOLE]
            return
        plain = _every(self.numbers, WHOLE.pattern)
        # Numbers like 1.234 have neither commas nor spaces, so that one other format is left.
        others = [_DOTTED_THOUSANDS] if plain else [known for known in _FORMATS if known is not WHOLE]
        marked = [known for known in others if known.marks_in(self.numbers)]
        fitting = [known for known in marked if _every(self.numbers, known.pattern)]
        self.formats = [WHOLE, *fitting] if plain else fitting

    def affixed_number(self) -> str | None:
        """An example, where all cells are numbers with one and the same sign or unit (12 %, $5)."""
        for cells in (self.numbers[:100], self.numbers):
            shapes = pc.replace_substring_regex(cells, r"[+-]?\d+([.,]\d+)*", "#").unique()
            if len(shapes) != 1 or len(cells) < 2 or not _some(shapes, _AFFIXED):
                return None
        return self.numbers[0].as_py()

    def listed_words(self) -> str:
        """For messages: `'-' (7 rows), 'NA' (1 row)`."""
        return ", ".join(f"{word!r} ({count:,} row{'s' * (count > 1)})" for word, count in self.words.items())

    def looks_like_classes(self, known: NumberFormat) -> bool:
        """Whether the numbers are whole and few."""
        kind = known.type_of(self.numbers)
        return pa.types.is_integer(kind) and len(known.plain(self.numbers).unique()) <= _MANY_CLASSES

    def choose(self, decimals: set[str], where: str, warn: Callable[[str], Any]) -> NumberFormat | None:
        """How the numbers are written; None where the column stays text.

        Args:
            decimals: the decimal marks of all columns of the file that leave no doubt.
            where: the column, for messages.
            warn: called where it is in doubt, or cannot be read exactly.
        """
        if not self.formats:
            return None
        known = self.formats[0]
        example = (
            pc.filter(self.numbers, pc.match_substring_regex(self.numbers, r"[^\d+-]"))[0].as_py()
            if (known is not WHOLE or len(self.formats) > 1)
            else ""
        )
        if len(self.formats) > 1:
            fitting = [one for one in self.formats if {one.decimal} == decimals]
            if fitting:
                known = fitting[0]
            elif known is not WHOLE:
                warn(
                    f"{where} has numbers with a comma that may stand for thousands or for decimals ({example!r}), and "
                    "stays text. Write them without thousands separators and with decimal points."
                )
                return None
        if known.thousands:
            number = known.plain(pa.chunked_array([[example]]))[0].as_py()
            warn(f"{where} is read with thousands separators: {example!r} is {number}.")
        try:
            values = known.plain(self.numbers).cast(known.type_of(self.numbers))
        except pa.ArrowInvalid:
            warn(f"{where} has integers beyond 64 bits and stays text.")
            return None
        return known if self._exact(values, where, warn) else None

    def _exact(self, values: pa.ChunkedArray, where: str, warn: Callable[[str], Any]) -> bool:
        if pa.types.is_integer(values.type):
            return True
        if pc.any(pc.is_inf(values)).as_py():
            warn(f"{where} has numbers beyond those of float64 and stays text.")
            return False
        whole = pc.match_substring_regex(self.numbers, r"^[+-]?\d+$")
        large = pc.sum(pc.and_(whole, pc.greater(pc.abs(values), _EXACT_IN_FLOAT64))).as_py()
        if large:
            warn(f"{where} has fractions, and {large:,} integer(s) beyond 2**53, which float64 rounds.")
        return True


def say_what_looks_alike(counts: Mapping[Any, int], where: str, warn: Callable[[str], Any]) -> None:
    """Warn of texts that differ only in case, in invisible characters or in the form of their accents.

    Args:
        counts: number of occurrences of each value; only texts are checked.
        where: the column, for messages.
        warn: called once, if there are any.
    """
    groups: dict[str, list[str]] = {}
    for value in counts:
        if isinstance(value, str):
            visible = "".join(
                c for c in unicodedata.normalize("NFKC", value) if unicodedata.category(c) != "Cf"
            )
            groups.setdefault(" ".join(visible.casefold().split()), []).append(value)
    alike = [sorted(group) for group in groups.values() if len(group) > 1]
    if alike:
        named = "; ".join(", ".join(f"{text!a} ({counts[text]:,})" for text in group) for group in alike[:3])
        more = f"; and {len(alike) - 3:,} more" if len(alike) > 3 else ""
        warn(f"{where} has values that look alike and are taken as different: {named}{more}.")


def _every(cells: pa.ChunkedArray, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(cells, pattern), min_count=0).as_py())


def _some(cells: pa.ChunkedArray, pattern: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(cells, pattern), min_count=0).as_py())
