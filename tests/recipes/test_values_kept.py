"""Values, classes and types survive json, parquet, label columns and tables, or a message counts them."""

import json

import pandas as pd
import pytest
from datasets import Dataset

from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.files.data_files import read_arrow, read_file
from rgd_hf.scripts.tabular.columns import ColumnArguments, choose_columns, find_target
from rgd_hf.scripts.tabular.sources import load_table
from rgd_hf.scripts.text.text_classification import encode_labels, find_labels


def read_rows(path, rows: list[dict]) -> tuple[dict[str, list], str]:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    messages: list[str] = []
    return read_arrow({"t": path}, None, messages.append)["t"].to_pydict(), "\n".join(messages)


def test_a_key_that_comes_late_is_a_column(tmp_path):
    found, told = read_rows(tmp_path / "t.jsonl", [{"a": 1}] * 3000 + [{"b": "x"}])
    assert found["a"][-2:] == [1, None] and found["b"][-1] == "x" and not told


def test_mixed_types_become_text_and_are_counted(tmp_path):
    found, told = read_rows(tmp_path / "t.jsonl", [{"a": 1}, {"a": "1"}, {"a": 1.0}, {"a": True}])
    assert found["a"] == ["1", "1", "1", "True"] and "2 numbers and 1 texts and 1 true or false" in told
    found, told = read_rows(tmp_path / "t.jsonl", [{"a": 2**70}, {"a": 1}])
    assert found["a"] == [str(2**70), "1"] and "beyond 64 bits" in told


def test_a_key_given_twice_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": 1, "a": 2}\n')
    with pytest.raises(UserError, match=r"in line 1 has the key\(s\) 'a' more than once"):
        read_file(tmp_path / "t.jsonl")


def test_categories_of_parquet_are_their_values(tmp_path):
    frame = pd.DataFrame({"label": pd.Categorical(["b", "a", None]), "n": [1, 2, 3]})
    frame.to_parquet(tmp_path / "t.parquet")
    assert read_file(tmp_path / "t.parquet")["label"][:] == ["b", "a", None]


def test_values_that_differ_in_spaces_alone_are_one_and_counted(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "a,Yes\na ,No\nb,Yes \n" * 4)
    told: list[str] = []
    table = load_table(str(path), "y", told.append)
    assert sorted(table.frame["y"].unique()) == ["No", "Yes"] and "'Yes ' (4 rows)" in "\n".join(told)
    labels = find_labels(read_file(path), "y", "the data", told.append)
    assert labels.names == ("No", "Yes") and "4 label(s)" in told[-1]


@pytest.mark.parametrize(
    "words, told",
    [
        (["TRUE", "true", "True", "no"], "'TRUE' (5), 'True' (5), 'true' (5)"),
        (["caf\u00e9", "cafe\u0301", "tea", "rum"], r"'cafe\u0301' (5), 'caf\xe9' (5)"),
        (["a", "a\u200b", "b", "c"], r"'a' (5), 'a\u200b' (5)"),
    ],
)
def test_classes_that_look_alike_stay_apart_and_are_counted(words, told, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "".join(f"{i * 0.5},{words[i % 4]}\n" for i in range(20)), encoding="utf-8")
    messages: list[str] = []
    table = load_table(str(path), "y", messages.append)
    labels = find_labels(read_file(path), "y", "the data", messages.append)
    assert set(labels.names) == set(words) == set(table.frame["y"])
    assert [told in message for message in messages] == [True, True]


def test_ten_thousand_columns_take_seconds(tmp_path):
    path = tmp_path / "t.csv"
    names = [f"c{i}" for i in range(10_000)]
    path.write_text(
        "\n".join([",".join(names), *(",".join(str(i * k % 7) for k in range(10_000)) for i in range(3))])
    )
    table = read_file(path)
    assert table.column_names == names and table[2]["c9999"] == 2 * 9999 % 7


class TestNestedJson:
    ROWS = [{"x": {"a": i, "b": "q"}, "l": [i, i + 1], "e": [], "y": "ab"[i % 2]} for i in range(6)]

    def test_nested_values_are_kept(self, tmp_path):
        found, told = read_rows(tmp_path / "t.jsonl", self.ROWS)
        assert found == {name: [row[name] for row in self.ROWS] for name in self.ROWS[0]} and not told

    def test_keys_of_objects_that_come_late_are_kept(self, tmp_path):
        found, _ = read_rows(tmp_path / "t.jsonl", [{"x": {"a": 1}}, {"x": {"b": [2]}}])
        assert found["x"] == [{"a": 1, "b": None}, {"a": None, "b": [2]}]

    def test_objects_and_numbers_in_one_column_are_refused(self, tmp_path):
        with pytest.raises(UserError, match="column 'x' has 1 objects and 1 numbers"):
            read_rows(tmp_path / "t.jsonl", [{"x": {"a": 1}}, {"x": 1}])

    def test_types_that_differ_within_are_refused(self, tmp_path):
        with pytest.raises(UserError, match="column 'x' has values that do not go together"):
            read_rows(tmp_path / "t.jsonl", [{"x": {"a": 1}}, {"x": {"a": "1"}}])

    @pytest.mark.parametrize("beside", [{}, {"version": 1}, {"errors": []}])
    def test_rows_in_a_key_are_named(self, beside, tmp_path):
        (tmp_path / "t.json").write_text(json.dumps({**beside, "data": self.ROWS}))
        with pytest.raises(UserError, match=r"holds no rows.*The key 'data' holds a list of objects"):
            read_file(tmp_path / "t.json")

    def test_a_table_leaves_them_out_by_name(self, tmp_path):
        (tmp_path / "t.jsonl").write_text(
            "".join(json.dumps({**row, "n": i % 5}) + "\n" for i, row in enumerate(self.ROWS))
        )
        told: list[str] = []
        frame = load_table(str(tmp_path / "t.jsonl"), "y", told.append).frame
        assert [column["name"] for column in choose_columns(frame, "y", ColumnArguments(), told.append)] == [
            "n"
        ]
        assert "3 column(s) that are lists, dicts or bytes: 'x', 'l', 'e'" in told[-1]


def test_a_target_of_several_types_keeps_its_classes():
    frame = pd.DataFrame({"x": range(9), "y": pd.Series([1, "1", "a"] * 3, dtype=object)})
    told: list[str] = []
    _, target = find_target(frame, "y", ColumnArguments(), told.append)
    assert target.classes == ("1", "a") and "3 number and 6 str" in told[0]


def test_values_that_are_no_numbers_are_counted_also_where_the_user_chose():
    frame = pd.DataFrame(
        {"x": ["1", "2", "twelve", "twelve"], "code": ["007", "07", "1", "2"], "y": list("abab")}
    )
    told: list[str] = []
    choose_columns(frame, "y", ColumnArguments(numeric_columns=["x"]), told.append)
    assert (
        "2 value(s) that are no numbers, taken as missing: 'twelve' (2)" in told[0]
        and "leading zeros" in told[1]
    )


@pytest.mark.parametrize(
    "train, validation", [(["neg", "pos"], [0, 1]), ([1, 2], [False, True]), (["a", "b"], ["c"])]
)
def test_labels_of_another_kind_are_refused_not_guessed(train, validation):
    labels = find_labels(Dataset.from_dict({"y": train}), "y", "training")
    with pytest.raises(UserError, match="no classes of the training data"):
        encode_labels(Dataset.from_dict({"y": validation}), "y", labels, "validation")
