"""Delimited text (csv, tsv, ...) as columns of strings: every cell of the file, or a refusal that says why.

Encoding, separator and quotation are found by trying: a reading is taken only if it gives every record as many cells
as the header has names. Nothing is typed here; see `column_types`.
"""

import csv
import gzip
import io
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from rgd_hf.scripts.errors import UserError, listed

# In this order where several divide every row: commas are also met in texts and decimals.
SEPARATORS = {"\t": "tab", ";": "semicolon", "|": "bar", ",": "comma"}
_NO_SEPARATOR = "\x1f"
_BLOCK = 50_000
_SHOWN = 5
_BOMS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_SEP_LINE = re.compile(r'"?sep=(.)"?(?:\r\n|\r|\n)', re.IGNORECASE)
# What bytes of another encoding look like as Windows-1252: words of foreign letters, symbols within words.
_NOT_WESTERN = re.compile(r"[À-ÿ]{3}|[^\W\d_](?![’‘´·])[\u0080-¿×÷ˆ˜†‡‰](?=[^\W\d_])")
_FOREIGN_WORD = re.compile(r"\S*[^\x00-\x7f]\S*")


def read_delimited(path: Path, warn: Callable[[str], Any]) -> pa.Table:
    """Read a file of delimited text, plain or gzip, into columns of strings; an empty cell is an empty string.

    Args:
        path: the file. Its first record is the header; a line `sep=;` before it, as Excel writes it, is followed.
        warn: called with a sentence for everything that could have been read differently, or is left out.

    Raises:
        UserError: no text, an unknown encoding, NUL bytes, quotation marks that do not match, records with more or
            fewer cells than the header, or two readings that are equally good.
    """
    text = _decoded(_bytes_of(path), path, warn)
    if not text.strip():
        raise UserError(f"{path} is empty: a header and at least one row are needed.")
    separators, skipped_lines = list(SEPARATORS), 0
    if match := _SEP_LINE.match(text):
        separators, text, skipped_lines = [match.group(1)], text[match.end() :], 1
    with _long_cells():
        survey = _best_survey(text, separators, skipped_lines, path, warn)
        return _table(text, survey, path, warn)


def _bytes_of(path: Path) -> bytes:
    raw = path.read_bytes()
    if path.suffix.lower() != ".gz":
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is no whole gzip file: {error}.") from error


def _decoded(raw: bytes, path: Path, warn: Callable[[str], Any]) -> str:
    encoding = next((name for mark, name in _BOMS if raw.startswith(mark)), None) or _utf16_without_mark(raw)
    try:
        text = raw.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding:
            raise UserError(f"{path} begins like {encoding} but is not: {error.reason}.") from error
        text = _western(raw, path, warn)
    if "\x00" in text:
        line = text.count("\n", 0, text.index("\x00")) + 1
        raise UserError(
            f"{path} has {text.count(chr(0)):,} NUL characters (the first in line {line}), so it is damaged or no text. "
            "Write it again, or take them away: tr -d '\\000' < FILE > CLEAN_FILE."
        )
    return text


def _utf16_without_mark(raw: bytes) -> str | None:
    """UTF-16 without a byte order mark: every other byte of mostly Latin text is 0."""
    start = raw[:2000]
    for encoding, zeros, others in (
        ("utf-16-le", start[1::2], start[::2]),
        ("utf-16-be", start[::2], start[1::2]),
    ):
        if zeros.count(0) > 0.5 * len(zeros) and others.count(0) == 0:
            return encoding
    return None


def _western(raw: bytes, path: Path, warn: Callable[[str], Any]) -> str:
    remedy = "write it in UTF-8: iconv -f ENCODING -t UTF-8 FILE > UTF8_FILE, with its ENCODING (iconv -l lists them)"
    try:
        text = raw.decode("cp1252")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is neither UTF-8 nor Windows-1252 ({error.reason}): {remedy}.") from error
    words = list(dict.fromkeys(_FOREIGN_WORD.findall(text)))
    examples = listed(word[:40] for word in words[:3])
    if _NOT_WESTERN.search(text):
        raise UserError(f"{path} is not UTF-8, and as Windows-1252 it would say {examples}: {remedy}.")
    warn(
        f"{path} is not UTF-8 and is read as Windows-1252, which gives {len(words):,} different word(s) with other than "
        f"ASCII characters: {examples}. If they look wrong, {remedy}."
    )
    return text


@contextmanager
def _long_cells() -> Iterator[None]:
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


@dataclass
class _Survey:
    """What one reading of the text gives.

    Attributes:
        separator: between the cells.
        quoted: whether quotation marks enclose cells; they are characters like any other where not.
        skip_spaces: whether spaces after a separator do not count, also before a quotation mark.
        header: the first record.
        rows: records after it, without empty lines.
        wrong: line and number of cells of the records that do not fit the header.
        trimmed: records with empty cells beyond those of the header.
        empty_lines: between the records.
        line_breaks: records with line breaks in cells.
        space_before_quote: whether a cell begins with spaces and a quotation mark.
        error: why the text cannot be read like this.
        error_line: where the record with the error begins.
    """

    separator: str
    quoted: bool
    skip_spaces: bool
    header: list[str] = field(default_factory=list)
    rows: int = 0
    wrong: list[tuple[int, int]] = field(default_factory=list)
    trimmed: int = 0
    empty_lines: int = 0
    line_breaks: int = 0
    space_before_quote: bool = False
    error: str | None = None
    error_line: int = 0

    @property
    def fits(self) -> bool:
        return self.error is None and not self.wrong

    def blank(self, record: list[str]) -> bool:
        """Whether a record is an empty line, not a row of one empty cell."""
        return not record or (len(record) == 1 and self.separator != _NO_SEPARATOR and not record[0].strip())

    def records(self, text: str) -> Iterator[tuple[int, list[str]]]:
        """Line number and cells of every record, the header's first."""
        reader = csv.reader(
            io.StringIO(text, newline="\n" if "\n" in text else "\r"),
            delimiter=self.separator,
            quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE,
            skipinitialspace=self.skip_spaces,
            strict=True,
        )
        for record in reader:
            yield reader.line_num, record


def _survey(text: str, separator: str, quoted: bool, skip_spaces: bool) -> _Survey:
    found = _Survey(separator, quoted, skip_spaces)
    before, waiting = 0, 0
    marked = quoted and '"' in text
    try:
        for line, record in found.records(text):
            if found.blank(record):
                waiting += bool(found.header)
                before = line
                continue
            if not found.header:
                found.header, before = record, line
                continue
            found.rows += 1
            found.empty_lines, waiting = found.empty_lines + waiting, 0
            found.line_breaks += line - before > 1
            before = line
            if marked and any(cell.lstrip()[:1] == '"' and cell[0] != '"' for cell in record if cell):
                found.space_before_quote = True
            width = len(found.header)
            if len(record) > width and not any(cell.strip() for cell in record[width:]):
                found.trimmed += 1
            elif len(record) != width:
                found.wrong.append((line, len(record)))
    except csv.Error as error:
        found.error, found.error_line = str(error), before + 1
    return found


def _readings(text: str, separator: str) -> Iterator[_Survey]:
    """Surveys that may fit, the most usual first."""
    plain = _survey(text, separator, quoted=True, skip_spaces=False)
    if '"' not in text:
        yield plain
        return
    if not plain.fits or plain.space_before_quote:
        spaced = _survey(text, separator, quoted=True, skip_spaces=True)
        if spaced.fits:
            yield spaced
    yield plain
    if not plain.fits or plain.line_breaks:
        literal = _survey(text, separator, quoted=False, skip_spaces=False)
        if not any('"' in name for name in literal.header):
            yield literal


def _best_survey(
    text: str, separators: list[str], skipped_lines: int, path: Path, warn: Callable[[str], Any]
) -> _Survey:
    first_line = text.lstrip("\r\n").splitlines()[0]
    found = [s for separator in separators if separator in first_line for s in _readings(text, separator)]
    several = [survey for survey in found if len(survey.header) > 1 or survey.error]
    candidates = several or list(_readings(text, _NO_SEPARATOR))
    fitting = [survey for survey in candidates if survey.fits]
    if not fitting:
        raise UserError(_complaint(min(candidates, key=lambda s: len(s.wrong)), text, skipped_lines, path))
    best = next((survey for survey in fitting if survey.quoted), fitting[0])
    literal = [s for s in fitting if not s.quoted and s.separator == best.separator and s is not best]
    if literal and best.line_breaks and best.separator != _NO_SEPARATOR:
        raise UserError(
            f"{path} can be read in two ways: as {best.rows:,} rows, {best.line_breaks:,} of them with line breaks "
            f"between quotation marks, or as {literal[0].rows:,} rows with quotation marks in the text. Say which, and "
            f"write a parquet file: {_pandas_command(path, best.separator, '')} for the first, "
            f"{_pandas_command(path, best.separator, ', quoting=3')} for the second."
        )
    if not best.quoted:
        warn(
            f"{path} has quotation marks that do not enclose a cell: all {text.count(chr(34)):,} are read as characters "
            "of the text."
        )
    others = {s.separator for s in fitting if s.separator != best.separator}
    if others:
        warn(
            f"{path} is read with the {SEPARATORS.get(best.separator)} as separator, which gives the columns "
            f"{listed(best.header[:_SHOWN])}; the {' or the '.join(SEPARATORS[s] for s in sorted(others))} would divide "
            "every row too."
        )
    return best


def _complaint(survey: _Survey, text: str, skipped_lines: int, path: Path) -> str:
    places = ", ".join(str(line + skipped_lines) for line, _ in survey.wrong[:_SHOWN])
    more = f" and {len(survey.wrong) - _SHOWN:,} more" if len(survey.wrong) > _SHOWN else ""
    name = SEPARATORS.get(survey.separator, repr(survey.separator))
    if survey.error and "\r" in text and "new-line character" in survey.error:
        return (
            f"{path}: a carriage return (\\r) that is no part of a line end and not between quotation marks in line "
            f"{survey.error_line + skipped_lines}. Take them away: tr -d '\\r' < FILE > CLEAN_FILE."
        )
    if survey.error:
        return (
            f"{path}: quotation marks do not match ({survey.error}) in the record that begins in line "
            f"{survey.error_line + skipped_lines}. A "
            f"quotation mark within a quoted cell is written twice. Repair it; or, if all are characters of the text, "
            f"write a parquet file: {_pandas_command(path, survey.separator, ', quoting=3')}."
        )
    counts = sorted({count for _, count in survey.wrong})
    hint = ""
    if len(survey.wrong) == survey.rows and counts == [len(survey.header) + 1]:
        hint = " If the first cells are the rows' names, as R writes them, begin the header with a name for them."
    return (
        f"{path}: {len(survey.wrong):,} of {survey.rows:,} rows have {' or '.join(map(str, counts[:_SHOWN]))} cell(s), "
        f"but the header has {len(survey.header)} (separator: {name}): line {places}{more}. Repair these lines; a cell "
        f"that holds the separator is enclosed in quotation marks.{hint}"
    )


def _pandas_command(path: Path, separator: str, options: str) -> str:
    call = f"pd.read_csv({str(path)!r}, sep={separator!r}, keep_default_na=False, na_values=['']{options})"
    return f'python -c "import pandas as pd; {call}.to_parquet({str(path.with_suffix(".parquet"))!r})"'


def _table(text: str, survey: _Survey, path: Path, warn: Callable[[str], Any]) -> pa.Table:
    width = len(survey.header)
    schema = pa.schema([(str(number), pa.string()) for number in range(width)])
    batches: list[pa.RecordBatch] = []
    rows: list[list[str]] = []
    empty = 0

    def finish_batch() -> None:
        columns = [pa.array(column, pa.string()) for column in zip(*rows)]
        batches.append(pa.RecordBatch.from_arrays(columns, schema=schema))
        rows.clear()

    records = (record for _, record in survey.records(text) if not survey.blank(record))
    next(records)
    for record in records:
        if not any(cell.strip() for cell in record):
            empty += 1
            continue
        rows.append(record[:width])
        if len(rows) == _BLOCK:
            finish_batch()
    if rows:
        finish_batch()
    if survey.trimmed:
        warn(
            f"{path}: {survey.trimmed:,} of {survey.rows:,} rows end in empty cells beyond the {width} columns of the "
            "header, which are left out."
        )
    if survey.empty_lines:
        warn(f"{path}: {survey.empty_lines:,} empty line(s) between the rows are left out.")
    if empty:
        warn(f"{path}: {empty:,} row(s) whose cells are all empty are left out.")
    return pa.Table.from_batches(batches, schema=schema).rename_columns(survey.header)
