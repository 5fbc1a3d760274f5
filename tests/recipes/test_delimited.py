"""Delimited text: every cell as it was written, or a refusal with a way on; nothing else without a message."""

import csv
import gzip
import math
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.files import delimited
from rgd_hf.scripts.files.data_files import read_arrow

WORDS = ["None", "NA", "null", "n/a", "?", "-", "nan"]


def read(path: Path, target: str | None = None) -> tuple[dict[str, list], list[str]]:
    messages: list[str] = []
    return read_arrow({"t": path}, target, messages.append)["t"].to_pydict(), messages


def written(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


CASES = {
    "space and quotation mark in a cell": ('a,b\n" """, ;\n', {"a": [' "'], "b": [" ;"]}, None),
    "space before a quoted cell": ('a,b\n1, ";"\n', {"a": [1], "b": [";"]}, None),
    "comma": ("x,y\n1,a\n2,b\n", {"x": [1, 2], "y": ["a", "b"]}, None),
    "semicolon": ("x;y\n1;a, b\n2;b\n", {"x": [1, 2], "y": ["a, b", "b"]}, None),
    "bar": ("x|y\n1|a;b\n2|b\n", {"x": [1, 2], "y": ["a;b", "b"]}, None),
    "no final newline": ("x,y\n1,a\n2,b", {"x": [1, 2], "y": ["a", "b"]}, None),
    "old line ends": ("x,y\r1,a\r2,b\r", {"x": [1, 2], "y": ["a", "b"]}, None),
    "separator in a header": ('"a, b";c\n1,5;2\n2,5;3\n', {"a, b": [1.5, 2.5], "c": [2, 3]}, "decimal commas"),
    "two separators divide all": ("a, b;c\n1,5;2\n2,5;3\n", {"a, b": [1.5, 2.5], "c": [2, 3]}, "semicolon"),
    "rows end in a separator": ("x,y\n1,a,\n2,b,\n", {"x": [1, 2], "y": ["a", "b"]}, "2 of 2 rows"),
    "header ends in one too": ("x,y,\n1,a,\n2,b,\n", {"x": [1, 2], "y": ["a", "b"]}, "1 column.s. without a name"),
    "a nameless column": (",y\n4,a\n5,b\n", {"Unnamed: 0": [4, 5], "y": ["a", "b"]}, "'Unnamed: 0'"),
    "sep line": ("sep=|\r\nx|y\r\n1|a\r\n", {"x": [1], "y": ["a"]}, None),
    "empty lines": ("x,y\n\n1,a\n  \n2,b\n\n\n", {"x": [1, 2], "y": ["a", "b"]}, r"2 empty line\(s\)"),
    "empty rows": ("x,y\n1,a\n,\n , \n2,b\n", {"x": [1, 2], "y": ["a", "b"]}, r"2 row\(s\) whose cells"),
    "line break in a cell": ('x,y\n1,"a\r\nb"\n2,c\n', {"x": [1, 2], "y": ["a\r\nb", "c"]}, None),
    "a quote within a cell": ('x,y\n1,5" disk\n2,"6"" disk"\n', {"x": [1, 2], "y": ['5" disk', '6" disk']}, None),
    "a lone quote": ('x\ty\n"one\t1\ntwo\t2\n', {"x": ['"one', "two"], "y": [1, 2]}, "all 1 are read as characters"),
    "space before a quote": ('x, y\n1, "a, b"\n2, "c"\n', {"x": [1, 2], "y": ["a, b", "c"]}, None),
    "equal names": ("a,a,a.1,a\n1,2,3,4\n", {"a": [1], "a.2": [2], "a.1": [3], "a.3": [4]}, "'a.2' .another 'a'."),
    "texts called missing": ("x,y\n1,None\n2,null\n3,\n", {"x": [1, 2, 3], "y": ["None", "null", None]}, None),
    "words among numbers": ("x,y\n1,a\nNA,b\n-,c\n", {"x": [1, None, None], "y": ["a", "b", "c"]}, r"'NA' \(1 row\)"),
    "decimal commas with -": ("x;y\n1,5;a\n-;b\n", {"x": [1.5, None], "y": ["a", "b"]}, r"'-' \(1 row\)"),
    "both marks": ('x;y\n1.234,5;"1,234.5"\n', {"x": [1234.5], "y": [1234.5]}, "thousands"),
    "thousands told by others": ("x;y\n1.234;0,5\n5.678;1\n", {"x": [1234, 5678], "y": [0.5, 1.0]}, "'1.234' is 1234"),
    "thousands told by others than integers": (
        "id;x;y\n1;1.234;0,5\n2;5.678;1\n", {"id": [1, 2], "x": [1234, 5678], "y": [0.5, 1.0]}, "'1.234' is 1234"
    ),
    "integers tell nothing of commas": ("id;x\n1;1,234\n2;2,500\n", {"id": [1, 2], "x": ["1,234", "2,500"]}, "stays text"),
    "decimal commas told beside integers": (
        "id;x;y\n1;1,234;0,5\n2;2,500;1\n", {"id": [1, 2], "x": [1.234, 2.5], "y": [0.5, 1.0]}, "decimal commas"
    ),
    "thousands or decimals": ("x;y\n1,234;a\n", {"x": ["1,234"], "y": ["a"]}, "stays text"),
    "spaces within numbers": ("x;y\n1 234,5;a\n", {"x": [1234.5], "y": ["a"]}, "thousands"),
    "leading zeros": ("x,y\n007,0\n10,0.5\n", {"x": ["007", "10"], "y": [0.0, 0.5]}, None),
    "beyond float64": (f"x,y\n{2**53 + 1},a\n,b\n", {"x": [2**53 + 1, None], "y": ["a", "b"]}, None),
    "beyond int64": (f"x,y\n{2**64},a\n1,b\n", {"x": [str(2**64), "1"], "y": ["a", "b"]}, "beyond 64 bits"),
    "white space": ("x y\n1 a\n2 b\n", {"x": [1, 2], "y": ["a", "b"]}, "white space as separator"),
    "aligned with spaces": ("  x   y \n  1   a\n 20  bb  \n", {"x": [1, 20], "y": ["a", "bb"]}, "white space"),
    "spaces in quotes": ('x y\n1 "a b"\n2 b\n', {"x": [1, 2], "y": ["a b", "b"]}, "white space"),
    "names of rows": ("x,y\nr1,1,a\nr2,2,b\n", {"row_names": ["r1", "r2"], "x": [1, 2], "y": ["a", "b"]}, "all 2 rows"),
    "as R writes it": ('"x" "y"\n"1" 5 "a"\n"2" 6 "b"\n', {"row_names": [1, 2], "x": [5, 6], "y": ["a", "b"]}, "'row_n"),
    "row names, late header": ("\nx,y\nr1,1,a\n", {"row_names": ["r1"], "x": [1], "y": ["a"]}, "all 1 rows"),
    "sentences in one column": ("my text\none two three\nfour\n", {"my text": ["one two three", "four"]}, None),
    "line ends of three kinds": ("x,y\r\n1,a\n2,b\r3,c\n", {"x": [1, 2, 3], "y": ["a", "b", "c"]}, "1 carriage return"),
    "a title": ("Report\nx,y\n1,a\n", {"Report": ["x,y", "1,a"]}, "comma divides every row after the first line"),
    "no header": ("5.1,0,a\n4.9,1,b\n", {"5.1": [4.9], "0": [1], "a": ["b"]}, "the first line looks like a row"),
    "no header, texts": ("u,a\nv,b\nu,a\n", {"u": ["v", "u"], "a": ["b", "a"]}, "first line looks like a row"),
    "numbers count columns": ("0,1,2\n7,0,a\n", {"0": [7], "1": [0], "2": ["a"]}, None),
    "years": ("2019,2020,y\n1,2,a\n", {"2019": [1], "2020": [2], "y": ["a"]}, None),
    "percent": ("x,y\n1.5%,a\n2%,b\n", {"x": ["1.5%", "2%"], "y": ["a", "b"]}, "sign or unit .'1.5%'. and stays text"),
    "currency": ("x,y\n$1,a\n$2,b\n", {"x": ["$1", "$2"], "y": ["a", "b"]}, "sign or unit"),
    "units": ("x,y\n1 kg,a\n2 kg,b\n", {"x": ["1 kg", "2 kg"], "y": ["a", "b"]}, "sign or unit"),
    "codes": ("x,y\nA1,a\nA2,b\n", {"x": ["A1", "A2"], "y": ["a", "b"]}, None),
    "one column": ("text\nHello, world\nbye\n", {"text": ["Hello, world", "bye"]}, None),
}  # fmt: skip


@pytest.mark.parametrize("text, expected, message", CASES.values(), ids=CASES)
def test_what_a_file_says(text, expected, message, tmp_path):
    found, messages = read(written(tmp_path, text))
    assert found == expected
    if message is None:
        assert not messages
    else:
        assert re.search(message, "\n".join(messages)), messages


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("x,y\n1\n2,b\n3,b,c\n", r"2 of 3 rows have 1 or 3 cell\(s\), but the header has 2 .*line 2, 4"),
        ("sep=,\nx,y\n1\n", "line 3"),
        ("x,y\nr1,1,a\nr1,2,b\n", r"2 of 2 rows have 3 cell\(s\), but the header has 2"),
        ("x,y\r\n1,a\rb\r\n2,c\r\n", r"a carriage return .* in line 2"),
        (gzip.compress(b"x,y\n1,a\n", mtime=0), "is a gzip file.*csv.gz"),
        (b"PK\x03\x04xl/workbook", "is a zip or Excel file"),
        ('x,y\n"a,1\nb,2\n"c,3,4\n', "quotation marks do not match.*line 2"),
        (b"x,y\n1,a\x00b\n", "1 NUL characters .the first in line 2"),
        ("x,y\n1,Привет\n".encode("koi8-r"), "is not UTF-8, and as Windows-1252 it would say.*iconv"),
        ("x,y\n1,今天天气\n".encode("gbk"), "iconv"),
        ("x,y\n1,Zażółć gęślą\n".encode("cp1250"), "iconv"),
        ("x,y\n1,a\n".encode("utf-16")[:-1], "begins like utf-16 but is not"),
        (" \n\n", "is empty"),
        ("x,y\n\n", "no rows"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(content, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint):
        read(written(tmp_path, content))


def test_a_broken_gzip_file_is_refused_and_a_whole_one_read(tmp_path):
    whole = gzip.compress(b"x,y\n1,a\n", mtime=0)
    assert read(written(tmp_path, whole, "t.csv.gz"))[0] == {"x": [1], "y": ["a"]}
    with pytest.raises(UserError, match="no whole gzip file"):
        read(written(tmp_path, whole[:-4], "cut.csv.gz"))


def test_two_readings_are_refused_and_each_remedy_gives_its_own(tmp_path):
    path = written(tmp_path, 'text\tlabel\n"one\t0\ntwo"\t1\nthree\t0\n', "t.tsv")
    with pytest.raises(UserError, match=r"in two ways: as 2 rows, 1 of them .* or as 3 rows") as refusal:
        read(path)
    commands = [
        part.split(" for the ")[0] for part in str(refusal.value).split("parquet file: ")[1].split(", ", 1)
    ]
    text = str(refusal.value)
    commands = [text[start : text.index('"', start + 12) + 1] for start in _starts(text, 'python -c "')]
    counts = []
    for command in commands:
        subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True, timeout=60)
        counts.append(len(read(path.with_suffix(".parquet"))[0]["text"]))
    assert counts == [2, 3]


def _starts(text: str, piece: str) -> list[int]:
    return [i for i in range(len(text)) if text.startswith(piece, i)]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
@pytest.mark.parametrize("word", ["München", "élève", "señor Ñandú", "l’été – “5 €”", "Ørland på øy"])
def test_encodings(encoding, word, tmp_path):
    text = "text;label\n" + "".join(f"a plain row {i};{i}\n" for i in range(20)) + f"{word};20\n"
    found, messages = read(written(tmp_path, text.encode(encoding)))
    assert found["text"][-1] == word
    assert [repr(word.split()[0])[1:-1] in m for m in messages] == ([True] if encoding == "cp1252" else [])


def test_classes_named_like_missing_values_are_classes_and_numbers_lack_them(tmp_path):
    rows = "".join(f"{x},{grade}\n" for x, grade in zip((1.5, 2, 3, 4), (1, 2, "None", 1)))
    found, messages = read(written(tmp_path, "x,grade\n" + rows), "grade")
    assert found["grade"] == ["1", "2", "None", "1"] and "'None' (1 row)" in messages[0]
    rows = "".join(f"{x / 7},{x}\n" for x in range(40)) + "NA,-\n"
    found, messages = read(written(tmp_path, "price,x\n" + rows), "price")
    assert found["price"][-1] is None and found["price"][3] == 3 / 7 and len(messages) == 2


def test_a_column_has_one_type_in_all_splits(tmp_path):
    train = written(tmp_path, "text,label,n\nwords,1,1\nmore,0,2\n", "train.csv")
    validation = written(tmp_path, "text,label,n\n1984,one,1.5\n007,0,3\n", "validation.csv")
    tables = read_arrow({"train": train, "validation": validation}, "label", print)
    assert tables["validation"]["text"].to_pylist() == ["1984", "007"]
    assert tables["train"]["label"].to_pylist() == ["1", "0"]
    assert tables["train"].schema == tables["validation"].schema


TEXTS = st.text(st.sampled_from("aZé€ ,;|\t\"'\n1-.0"), max_size=6)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.text(st.sampled_from('xy ,;|"é'), min_size=1, max_size=4)


@st.composite
def tables(draw) -> pd.DataFrame:
    rows = draw(st.integers(1, 5))
    cells = st.sampled_from(
        [TEXTS, INTEGERS, FLOATS, st.sampled_from(WORDS), st.sampled_from([1, 0.5, None])]
    )
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique_by=str.strip))
    columns = {n: draw(st.lists(draw(cells), min_size=rows, max_size=rows)) for n in names}
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})


DIALECTS = st.fixed_dictionaries(
    {
        "sep": st.sampled_from(",;\t|"),
        "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
        "encoding": st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
        "decimal": st.sampled_from(".,"),
        "na_rep": st.sampled_from(["", "NA", "-", "?"]),
        "lineterminator": st.sampled_from(["\n", "\r\n"]),
    }
)


def same(cell, value, missing: str) -> bool:
    """Whether what was read is what was written; spaces around numbers and names do not count."""
    if value is None:
        return cell is None or str(cell).strip() == "" or str(cell) in WORDS
    if cell is None:
        return value == missing
    if isinstance(value, str):
        return str(cell).removesuffix("\r") == value.removesuffix("\r")
    return math.isclose(
        value, float(str(cell).replace(",", ".")), rel_tol=0 if isinstance(value, int) else 1e-15
    )


@settings(max_examples=300, deadline=None)
@given(tables(), DIALECTS)
def test_random_tables_are_read_as_written_or_refused(frame, dialect):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        frame.to_csv(path, index=False, **dialect)
        try:
            found, messages = read(path)
        except UserError as refusal:
            assert str(path) in str(refusal)
            return
    told = "\n".join(messages)
    names = [name.strip() or f"Unnamed: {i}" for i, name in enumerate(frame.columns)]
    if list(found) != names:
        assert any(words in told for words in ("without a name", "would divide", "white space")), (
            list(found),
            names,
            told,
        )
        return
    kept = len(next(iter(found.values()))) if found else 0
    if kept != len(frame):
        assert f"{len(frame) - kept:,} row(s) whose cells are all empty" in told
        return
    for before, after in zip(frame.columns, names):
        cells = frame[before].tolist()
        if repr(after) in told and not all(
            same(*pair, dialect["na_rep"]) for pair in zip(cells, found[after])
        ):
            continue
        for cell, value in zip(cells, found[after]):
            assert same(cell, value, dialect["na_rep"]), (after, cells, found[after], told)


CELLS = st.text(st.sampled_from("aé 1.;\t\u00a0\x1f"), max_size=5)
LINES = st.lists(st.one_of(st.tuples(CELLS, CELLS).map(",".join), CELLS), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(LINES, st.sampled_from(["\n", "\r\n"]))
def test_the_fast_reader_gives_what_the_slow_one_gives(lines, line_end):
    lines = [line for line in lines if ("," in lines[0]) == ("," in line)]
    text = line_end.join(["x,y" if "," in lines[0] else "x", *lines, ""])
    found = []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        path = written(Path(folder), text)
        for _ in range(2):
            messages: list[str] = []
            try:
                found.append((delimited.read_delimited(path, messages.append).to_pydict(), messages))
            except UserError as refusal:
                found.append(str(refusal))
            patched.setattr(delimited, "_cells_at_once", lambda *_: None)
    assert found[0] == found[1]
