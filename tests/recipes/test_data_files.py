"""Data sets from local files."""

import pytest

from rgd_hf.scripts.data_files import first_rows, read_directory, read_file, require_columns
from rgd_hf.scripts.errors import UserError

ROWS = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]


@pytest.mark.parametrize("name", ["rows.csv", "rows.json", "rows.jsonl", "rows.parquet"])
def test_every_format_gives_the_same_rows(write_rows, name):
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
