"""Separator, quotation and header of delimited text, found by trying: the reading that gives all records as many cells."""

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.messages import say

ROW_NAMES = "row_names"
"""Of the column whose name R leaves out."""
# In this order where several divide every row: commas are also met in texts and decimals.
SEPARATORS = {"\t": "tab", ";": "semicolon", "|": "bar", ",": "comma"}
_SPACES = " "
NO_SEPARATOR = "\x1f"
_NAMES = {**SEPARATORS, _SPACES: "white space", NO_SEPARATOR: "none"}
SHOWN = 5


@dataclass
class Survey:
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
        row_names: whether the header lacks a name for the first cells, as R writes names of rows.
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
    row_names: bool = False
    space_before_quote: bool = False
    error: str | None = None
    error_line: int = 0

    @property
    def fits(self) -> bool:
        return self.error is None and not self.wrong

    def blank(self, record: list[str]) -> bool:
        """Whether a record is an empty line, not a row of one empty cell."""
        return not record or (len(record) == 1 and self.separator != NO_SEPARATOR and not record[0].strip())

    def records(self, text: str) -> Iterator[tuple[int, list[str]]]:
        """Line number and cells of every record, the header's first."""
        reader = csv.reader(
            io.StringIO(text, newline="\n" if "\n" in text else "\r"),
            delimiter=self.separator,
            quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE,
            skipinitialspace=self.skip_spaces,
            strict=True,
        )
        unnamed = self.row_names
        for record in reader:
            if self.separator == _SPACES and record and not record[-1]:
                record.pop()  # spaces at the end of a line
            if unnamed and not self.blank(record):
                record.insert(0, ROW_NAMES)
                unnamed = False
            yield reader.line_num, record


def _survey(text: str, separator: str, quoted: bool, skip_spaces: bool, row_names: bool = False) -> Survey:
    found = Survey(separator, quoted, skip_spaces, row_names=row_names)
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


def _readings(text: str, separator: str) -> Iterator[Survey]:
    """Surveys that may fit, the most usual first."""
    plain = _survey(text, separator, quoted=True, skip_spaces=False)
    if '"' not in text:
        yield plain
        return
    # A cell may begin with a space and a quotation mark that are its own: then the mark that encloses it comes first.
    opened = re.search(rf'(?:^|{re.escape(separator)}) +"', text, re.MULTILINE)
    if not plain.fits or (plain.space_before_quote and opened):
        spaced = _survey(text, separator, quoted=True, skip_spaces=True)
        if spaced.fits:
            yield spaced
    yield plain
    if not plain.fits or plain.line_breaks:
        literal = _survey(text, separator, quoted=False, skip_spaces=False)
        if not any('"' in name for name in literal.header):
            yield literal


def _with_row_names(text: str, survey: Survey) -> Survey | None:
    """The same reading where every row begins with a different cell that the header has no name for."""
    width = len(survey.header) + 1
    if survey.error or len(survey.wrong) < survey.rows or any(count != width for _, count in survey.wrong):
        return None
    first = [record[0] for _, record in survey.records(text) if not survey.blank(record)][1:]
    if len(set(first)) < len(first):
        return None
    named = _survey(text, survey.separator, survey.quoted, survey.skip_spaces, row_names=True)
    return named if named.fits else None


def _by_spaces(text: str) -> list[Survey]:
    """Readings with one or more spaces between the cells, that divide every row alike."""
    surveys = [_survey(text, _SPACES, quoted, True) for quoted in (True, False)[: 1 + ('"' in text)]]
    readings = [survey if survey.fits else _with_row_names(text, survey) for survey in surveys]
    return [reading for reading in readings if reading and reading.rows and len(reading.header) > 1][:1]


def best_survey(
    text: str, separators: list[str], skipped_lines: int, path: Path, warn: Callable[[str], Any]
) -> Survey:
    """The most usual reading that gives every record as many cells as the header.

    Args:
        text: with at least one line that is not empty.
        separators: that may divide the cells; white space is tried where none of them is in the first line.
        skipped_lines: lines of the file before `text`, for messages.
        path: the file, for messages.
        warn: called with a sentence for everything that could have been read differently.

    Raises:
        UserError: no reading fits, or two do equally well.
    """
    first_line = text.lstrip("\r\n").splitlines()[0]
    found = [s for separator in separators if separator in first_line for s in _readings(text, separator)]
    several = [survey for survey in found if len(survey.header) > 1 or survey.error]
    candidates = several or _by_spaces(text) or list(_readings(text, NO_SEPARATOR))
    fitting = [survey for survey in candidates if survey.fits] or [
        named for survey in candidates if (named := _with_row_names(text, survey))
    ]
    if not fitting:
        raise UserError(_complaint(min(candidates, key=lambda s: len(s.wrong)), text, skipped_lines, path))
    best = next((survey for survey in fitting if survey.quoted), fitting[0])
    literal = [s for s in fitting if not s.quoted and s.separator == best.separator and s is not best]
    if literal and best.line_breaks and best.separator != NO_SEPARATOR:
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
    if best.row_names:
        warn(
            f"{path}: all {best.rows:,} rows have one cell more than the header, as R writes the names of rows: the first "
            f"column is called {ROW_NAMES!r}."
        )
    if best.separator == _SPACES:
        warn(
            f"{path} is read with white space as separator, which gives the columns {listed(best.header[:SHOWN])}. If it "
            "has one column, enclose its cells in quotation marks."
        )
    if best.separator == NO_SEPARATOR and (divided := _divides_the_rest(text)):
        warn(
            f"{path} is read as one column, {best.header[0]!r}, although the {divided} divides every row after the first "
            "line. If lines stand before the header, take them away."
        )
    others = {s.separator for s in fitting if s.separator != best.separator}
    if others:
        warn(
            f"{path} is read with the {SEPARATORS.get(best.separator)} as separator, which gives the columns "
            f"{listed(best.header[:SHOWN])}; the {' or the '.join(_NAMES[s] for s in sorted(others))} would divide "
            "every row too."
        )
    elif best.separator in SEPARATORS and best.separator != ("\t" if ".tsv" in path.name.lower() else ","):
        say(f"{path}: the separator is the {SEPARATORS[best.separator]}.")
    return best


def _divides_the_rest(text: str) -> str | None:
    """The name of a separator that every line but the first has equally often."""
    lines = [line for line in text.splitlines() if line.strip()][1:]
    for separator, name in SEPARATORS.items():
        if len(lines) > 1 and len({line.count(separator) for line in lines}) == 1 and separator in lines[0]:
            return name
    return None


def _complaint(survey: Survey, text: str, skipped_lines: int, path: Path) -> str:
    places = ", ".join(str(line + skipped_lines) for line, _ in survey.wrong[:SHOWN])
    more = f" and {len(survey.wrong) - SHOWN:,} more" if len(survey.wrong) > SHOWN else ""
    name = _NAMES.get(survey.separator, repr(survey.separator))
    if survey.error and "\r" in text and "new-line character" in survey.error:
        return (
            f"{path}: a carriage return (\\r) that is no part of a line end and not between quotation marks in line "
            f"{survey.error_line + skipped_lines}. Enclose the cell in quotation marks, or take the character away."
        )
    if survey.error:
        return (
            f"{path}: quotation marks do not match ({survey.error}) in the record that begins in line "
            f"{survey.error_line + skipped_lines}. A "
            f"quotation mark within a quoted cell is written twice. Repair it; or, if all are characters of the text, "
            f"write a parquet file: {_pandas_command(path, survey.separator, ', quoting=3')}."
        )
    counts = sorted({count for _, count in survey.wrong})
    return (
        f"{path}: {len(survey.wrong):,} of {survey.rows:,} rows have {' or '.join(map(str, counts[:SHOWN]))} cell(s), "
        f"but the header has {len(survey.header)} (separator: {name}): line {places}{more}. Repair these lines; a cell "
        f"that holds the separator is enclosed in quotation marks."
    )


def _pandas_command(path: Path, separator: str, options: str) -> str:
    call = f"pd.read_csv({str(path)!r}, sep={separator!r}, keep_default_na=False, na_values=['']{options})"
    return f'python -c "import pandas as pd; {call}.to_parquet({str(path.with_suffix(".parquet"))!r})"'
