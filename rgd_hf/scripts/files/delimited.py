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
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
from tqdm.auto import tqdm

from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.files.dialects import SEPARATORS, SHOWN, Survey, best_survey
from rgd_hf.scripts.files.surrogates import refuse_surrogates

_BLOCK = 50_000
_BYTES = 1 << 26
_BOMS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_ARCHIVES = (
    (b"\x1f\x8b", "a gzip file", "give its name the suffix .csv.gz"),
    (b"PK\x03\x04", "a zip or Excel file", "unpack it, or save the sheet as CSV UTF-8"),
    (b"PAR1", "a parquet file", "give its name the suffix .parquet"),
    (b"\xd0\xcf\x11\xe0", "an Excel file", "save the sheet as CSV UTF-8"),
)
_SEP_LINE = re.compile(r'"?sep=(.)"?(?:\r\n|\r|\n)', re.IGNORECASE)
_LONE_RETURN = re.compile(r"\r(?!\n)")
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)
# What bytes of another encoding look like as Windows-1252: words of foreign letters, symbols within words.
_NOT_WESTERN = re.compile(r"[À-ÿ]{3}|[^\W\d_](?![’‘´·])[\u0080-¿×÷ˆ˜†‡‰](?=[^\W\d_])")
_FOREIGN_WORD = re.compile(r"\S*[^\x00-\x7f]\S*")


def read_delimited(path: Path, warn: Callable[[str], Any]) -> pa.Table:
    """Read a file of delimited text, plain or gzip, into columns of strings; an empty cell is an empty string.

    Args:
        path: the file. Its first record is the header; a line `sep=;` before it, as Excel writes it, is followed.
        warn: called with a sentence for everything that could have been read differently, or is skipped.

    Returns:
        The columns. The table's metadata has the arguments of `pandas.read_csv` that read the same cells: `sep`, `encoding`,
        and where they are needed `skiprows`, `skipinitialspace`, `quoting`; none where no call does.

    Raises:
        UserError: no text, an unknown encoding, NUL bytes, quotation marks that do not match, records with more or
            fewer cells than the header, or two readings that are equally good.
    """
    text, encoding = _decoded(bytes_of(path), path, warn)
    if not text.strip():
        raise UserError(f"{path} is empty: a header and at least one row are needed.")
    separators, skipped_lines = list(SEPARATORS), 0
    if match := _SEP_LINE.match(text):
        separators, text, skipped_lines = [match.group(1)], text[match.end() :], 1
    with _long_cells():
        try:
            survey = best_survey(text, separators, skipped_lines, path, warn)
        except UserError as error:
            text, survey = _with_line_ends_of_several_kinds(
                text, error, separators, skipped_lines, path, warn
            )
        table = _table(text, survey, path, warn)
    _say_if_header_looks_like_a_row(table, path, warn)
    return table.replace_schema_metadata(_for_pandas(survey, encoding, skipped_lines))


def _for_pandas(survey: Survey, encoding: str, skipped_lines: int) -> dict[str, str]:
    """What `pandas.read_csv` has to be told to read the same cells; nothing where it cannot be told."""
    names = survey.header
    padded = any(name != name.lstrip() for name in names)
    # Of rows with more cells than the header has names, pandas takes the first cells for an index.
    if survey.row_names or survey.trimmed or any(name != name.rstrip() for name in names if name.strip()):
        return {}
    spaces = survey.separator == " "
    told = {"sep": r"\s+" if spaces else survey.separator, "encoding": encoding}
    if skipped_lines:
        told["skiprows"] = str(skipped_lines)
    if not spaces and (survey.skip_spaces or padded):
        told["skipinitialspace"] = "True"
    if not survey.quoted:
        told["quoting"] = str(csv.QUOTE_NONE)
    return told


def _with_line_ends_of_several_kinds(
    text: str,
    error: UserError,
    separators: list[str],
    skipped_lines: int,
    path: Path,
    warn: Callable[[str], Any],
) -> tuple[str, "Survey"]:
    """The text with line feeds alone, and its best reading.

    Raises:
        UserError: the `error` of the text as it is, where this does not make it readable.
    """
    lone = len(_LONE_RETURN.findall(text))
    if not lone or "\n" not in text:
        raise error
    unified = _LONE_RETURN.sub("\n", text.replace("\r\n", "\n"))
    try:
        survey = best_survey(unified, separators, skipped_lines, path, warn)
    except UserError:
        raise error from None
    warn(f"{path} has line ends of several kinds: {lone:,} carriage return(s) alone are taken as line ends.")
    return unified, survey


def bytes_of(path: Path) -> bytes:
    """The content of a file, unpacked if it is gzipped; `UserError` for other archives."""
    raw = path.read_bytes()
    if path.suffix.lower() != ".gz":
        for magic, kind, remedy in _ARCHIVES:
            if raw.startswith(magic):
                raise UserError(f"{path} is {kind}, not delimited text: {remedy}.")
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is no whole gzip file: {error}.") from error


def decoded(raw: bytes, path: Path, warn: Callable[[str], Any]) -> str:
    """The text of a file's bytes in the encoding that they tell; `warn` is called where that is a guess."""
    return _decoded(raw, path, warn)[0]


def _decoded(raw: bytes, path: Path, warn: Callable[[str], Any]) -> tuple[str, str]:
    encoding = next((name for mark, name in _BOMS if raw.startswith(mark)), None) or _utf16_without_mark(raw)
    try:
        text = raw.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        refuse_surrogates(raw, encoding or "utf-8", path)
        if encoding:
            raise UserError(f"{path} begins like {encoding} but is not: {error.reason}.") from error
        text, encoding = _western(raw, path, warn), "cp1252"
    if "\x00" in text:
        line = text.count("\n", 0, text.index("\x00")) + 1
        raise UserError(
            f"{path} has {text.count(chr(0)):,} NUL characters (the first in line {line}), so it is damaged or no text. "
            "Write it again, or take them away: tr -d '\\000' < FILE > CLEAN_FILE."
        )
    return text, encoding or "utf-8"


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


def _say_if_header_looks_like_a_row(table: pa.Table, path: Path, warn: Callable[[str], Any]) -> None:
    names = [name.strip() for name in table.column_names]
    numbers = [name for name in names if _NUMBER.fullmatch(name)]
    whole = sorted(int(name) for name in numbers if name.isdigit())
    counted = len(whole) > 1 and whole == list(range(whole[0], whole[0] + len(whole)))
    like_data = [
        name
        for name, column in zip(names, table.columns)
        if name and ((name in numbers and not counted) or (name not in numbers and _has(column, name)))
    ]
    if like_data and 2 * len(like_data) >= sum(bool(name) for name in names):
        warn(
            f"{path}: the first line looks like a row, not like names of columns ({listed(like_data[:SHOWN])}), and is "
            "taken as the header, so that this row is lost. If it is one, write a line of names before it."
        )


def _has(column: pa.ChunkedArray, value: str) -> bool:
    return bool(pc.any(pc.equal(pc.utf8_trim_whitespace(column), value), min_count=0).as_py())


def _cells(text: str, survey: Survey, path: Path) -> pa.Table:
    """The cells of all records, empty lines left out."""
    schema = pa.schema([(str(number), pa.string()) for number in range(len(survey.header))])
    table = _cells_at_once(text, survey, schema)
    if table is not None:
        return table
    batches: list[pa.RecordBatch] = []
    rows: list[list[str]] = []

    def finish_batch() -> None:
        columns = [pa.array(column, pa.string()) for column in zip(*rows)]
        batches.append(pa.RecordBatch.from_arrays(columns, schema=schema))
        rows.clear()

    records = (record for _, record in survey.records(text) if not survey.blank(record))
    next(records)
    for record in tqdm(
        records, f"reading {path.name}", survey.rows, delay=3, disable=None, leave=False, unit=" rows"
    ):
        rows.append(record[: len(schema)])
        if len(rows) == _BLOCK:
            finish_batch()
    if rows:
        finish_batch()
    return pa.Table.from_batches(batches, schema=schema)


def _cells_at_once(text: str, survey: Survey, schema: pa.Schema) -> pa.Table | None:
    """The same by Arrow's reader, where nothing but separators and line ends divides the text; None elsewhere."""
    plain = '"' not in text and not survey.skip_spaces and not _LONE_RETURN.search(text)
    regular = not (survey.trimmed or survey.row_names or survey.empty_lines)
    first_line, _, rest = text.partition("\n")
    if not (plain and regular and first_line.rstrip("\r") == survey.separator.join(survey.header)):
        return None
    try:
        table = arrow_csv.read_csv(
            io.BytesIO(rest.encode()),
            arrow_csv.ReadOptions(column_names=schema.names, block_size=_BYTES),
            arrow_csv.ParseOptions(delimiter=survey.separator, quote_char=False),
            arrow_csv.ConvertOptions(column_types=schema, strings_can_be_null=False),
        )
    except pa.ArrowException:
        return None
    return table if len(table) == survey.rows else None


def _table(text: str, survey: Survey, path: Path, warn: Callable[[str], Any]) -> pa.Table:
    table = _cells(text, survey, path)
    if survey.trimmed:
        warn(
            f"{path}: {survey.trimmed:,} of {survey.rows:,} rows end in empty cells beyond the {len(survey.header)} "
            "columns of the header, which are skipped."
        )
    if survey.empty_lines:
        warn(f"{path}: {survey.empty_lines:,} empty line(s) between the rows are skipped.")
    empty = None
    for column in table.columns:
        blank = pc.equal(pc.utf8_trim_whitespace(column), "")
        empty = blank if empty is None else pc.and_(empty, blank)
        if not pc.any(empty, min_count=0).as_py():
            break
    else:
        warn(f"{path}: {pc.sum(empty).as_py():,} row(s) whose cells are all empty are skipped.")
        table = table.filter(pc.invert(empty))
    return table.rename_columns(survey.header)
