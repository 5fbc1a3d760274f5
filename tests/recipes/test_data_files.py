"""Data sets from local files."""

import json

import pytest
from datasets import Dataset

from rgd_hf.scripts.domains import sources as domains
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.files.data_files import (
    concatenated,
    first_rows,
    read_directory,
    read_file,
    require_columns,
)
from rgd_hf.scripts.tabular.sources import load_table
from rgd_hf.scripts.vision.sets import read_folder

ROWS = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]


@pytest.mark.parametrize("name", ["rows.csv", "rows.json", "rows.jsonl", "rows.parquet"])
def test_every_format_gives_the_same_rows(write_rows, name):
    assert read_file(write_rows(name, ROWS)).to_list() == ROWS


def test_parts_of_different_types_are_told_by_column():
    parts = {"a": Dataset.from_dict({"x": [1], "y": ["u"]}), "b": Dataset.from_dict({"x": [1.5], "y": ["v"]})}
    with pytest.raises(
        UserError, match=r"'a', 'b' cannot be put together: column 'x': int64 in a, float64 in b\."
    ):
        concatenated(parts)
    parts["b"] = Dataset.from_dict({"x": [2], "y": ["v"]})
    assert concatenated(parts).to_list() == [{"x": 1, "y": "u"}, {"x": 2, "y": "v"}]


@pytest.mark.parametrize("name", ["a[1].parquet", "b*.parquet", "c?.parquet"])
def test_a_filename_is_no_pattern(name, write_rows):
    write_rows("a1.parquet", ROWS[:1])
    assert read_file(write_rows(name, ROWS)).to_list() == ROWS


def test_tab_separated_values(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("text\tlabel\na, b\t0\n")
    assert read_file(path).to_list() == [{"text": "a, b", "label": 0}]


@pytest.mark.parametrize(
    "name, separator, told",
    [
        ("rows.csv", ",", None),
        ("rows.csv", ";", "semicolon"),
        ("rows.csv", "\t", "tab"),
        ("rows.tsv", "\t", None),
        ("rows.tsv", "|", "bar"),
    ],
)
def test_a_separator_other_than_that_of_the_suffix_is_said(name, separator, told, tmp_path, capsys):
    path = tmp_path / name
    path.write_text(f"text{separator}label\na{separator}0\n")
    read_file(path)
    assert capsys.readouterr().out == ("" if told is None else f"{path}: the separator is the {told}.\n")


def test_directory_takes_the_file_of_each_split(write_rows, tmp_path):
    write_rows("train.csv", ROWS)
    write_rows("validation.parquet", ROWS[:1])
    data = read_directory(tmp_path, ["train", "validation"])
    assert data.num_rows == {"train": 2, "validation": 1}


def test_missing_split_says_which_files_were_found(write_rows, tmp_path):
    write_rows("train.csv", ROWS)
    write_rows("dev.csv", ROWS)
    with pytest.raises(UserError, match=r"no file for the split 'validation'.*found: 'dev.csv', 'train.csv'"):
        read_directory(tmp_path, ["train", "validation"])


def test_two_files_for_one_split_are_ambiguous(write_rows, tmp_path):
    write_rows("train.csv", ROWS)
    write_rows("train.json", ROWS)
    with pytest.raises(UserError, match="several files for the split 'train'"):
        read_directory(tmp_path, ["train"])


@pytest.mark.parametrize(
    "name, content, complaint",
    [
        ("nothing.csv", b"", "is empty"),
        ("header.csv", b"text,label\n", "no rows"),
        ("nothing.json", b"[]", "no rows"),
        ("wrong.parquet", b"text,label\na,0\n", "could not be read as parquet"),
        ("wrong.json", b"text,label\na,0\n", "could not be read as json"),
        ("rows.xlsx", b"x", "suffix must be one of '.csv'"),
    ],
)
def test_unusable_files_are_explained(tmp_path, name, content, complaint):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        read_file(path)


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(UserError, match=r"no file .*nothing\.csv"):
        read_file(tmp_path / "nothing.csv")
    with pytest.raises(UserError, match=r"no directory .*nothing"):
        read_directory(tmp_path / "nothing", ["train"])


@pytest.mark.parametrize(
    "read, message",
    [
        (lambda folder, _: read_file(folder), "is a directory, not a file: give one file"),
        (lambda _, file: read_directory(file, ["train"]), "is a file, not .* as --train_file"),
        (lambda _, file: domains.read_directory(file, "label"), "is a file, not .* as --data_file"),
        (
            lambda folder, _: domains.read_table("domain", "label", data_file=folder),
            "is a directory, not .* as --dataset_dir",
        ),
        (lambda folder, _: load_table(folder, "label"), "is a directory, not .* as --data"),
        (lambda _, file: read_folder(file), "is a file, not a directory"),
    ],
)
def test_a_path_of_another_kind_is_not_called_absent(read, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(str(tmp_path), __file__)


def test_missing_columns_are_named_with_those_found(write_rows):
    with pytest.raises(UserError, match=r"my file lacks the column\(s\) 'sentence'; found: 'text', 'label'"):
        require_columns(read_file(write_rows("rows.csv", ROWS)), ["sentence", "label"], "my file")


def test_first_rows(write_rows):
    rows = read_file(write_rows("rows.csv", ROWS))
    assert first_rows(rows, None, "max_train_samples").num_rows == 2
    assert first_rows(rows, 1, "max_train_samples").to_list() == ROWS[:1]
    assert first_rows(rows, 99, "max_train_samples").num_rows == 2
    with pytest.raises(UserError, match="--max_train_samples must be at least 1"):
        first_rows(rows, 0, "max_train_samples")


ROW_OF_HALF = "first in row 1 .counted from 0"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "bad \ud83d emoji",
            rf"column 'text' has half a character in 1 row\(s\), {ROW_OF_HALF}.*'bad .ud83d emoji'",
        ),
        (["good", "\ude00"], ROW_OF_HALF),
        ({"content": "\ude00"}, ROW_OF_HALF),
        ({"\ude00": "x"}, ROW_OF_HALF),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_half_characters_in_json_are_refused(value, message, suffix, tmp_path):
    usual = {str: "good \U0001f600", list: ["good"], dict: {"content": "good"}}[type(value)]
    rows = [{"text": usual, "label": 0}, {"text": value, "label": 1}]
    path = tmp_path / f"rows.{suffix}"
    path.write_text(json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=f"rows.{suffix}: .*{message}"):
        read_file(path)


def test_half_characters_in_names_and_mixed_columns_are_refused(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"te\ud83dxt": "a"}]))
    with pytest.raises(UserError, match=r"the name of the column 'te.ud83dxt' has half a character"):
        read_file(path)
    path.write_text(json.dumps([{"text": 1}, {"text": "\ud83d"}]))
    with pytest.raises(UserError, match=ROW_OF_HALF):
        read_file(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("suffix", ["csv", "txt", "json"])
def test_half_characters_in_bytes_are_refused_and_the_remedy_works(suffix, encoding, tmp_path):
    if suffix == "json" and encoding != "utf-8":
        pytest.skip("json is UTF-8")
    path = tmp_path / f"rows.{suffix}"
    lines = ["text,label", "good,0", "bad \ud83d emoji,1", "whole \ud83d\ude00,1"]
    if suffix == "json":
        lines = [
            '[{"text": "good"}, ',
            "",
            '{"text": "bad \ud83d emoji"},',
            '{"text": "whole \ud83d\ude00"}]',
        ]
    path.write_bytes("\n".join(lines).encode(encoding, "surrogatepass"))
    found = r"first in line 3: '.*bad .ud83d emoji.*errors='surrogatepass'"
    with pytest.raises(UserError, match=rf"rows.{suffix} has [13] half character\(s\), {found}"):
        read_file(path)
    # To the letter.
    with open(path, encoding=encoding, errors="surrogatepass") as file:
        text = file.read()
    path.write_text(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), encoding="utf-8")
    assert read_file(path)["text"][:] == ["good", "bad \ufffd emoji", "whole \U0001f600"]
