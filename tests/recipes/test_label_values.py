"""Label columns that hold lists, dates, or what is no label."""

import datetime
import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import AutoConfig

import glue
from helpers.recipes import changed, output_of, sentences
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.files.data_files import read_file
from rgd_hf.scripts.text.text_classification import Labels, encode_labels, find_labels, say_missing_classes

MULTI = "multi_label_classification"
MARKS = [[0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 1, 0], [0, 0, 0]]


def column(values, **options) -> Dataset:
    return Dataset.from_dict({"label": values}, **options)


def found(values) -> Labels:
    return find_labels(column(values), "label", "the data")


@pytest.mark.parametrize("kind", [int, float, bool])
def test_lists_of_a_0_or_1_for_every_class_are_taken_by_position(kind):
    values, told = [[kind(mark) for mark in row] for row in MARKS], []
    labels = find_labels(column(values), "label", "the data", tell=told.append)
    assert labels == Labels(MULTI, ("0", "1", "2"), multi_hot=True)
    assert labels.config["id2label"] == {0: "0", 1: "1", 2: "2"}
    assert len(told) == 1 and "lists of 3 zeros and ones" in told[0]
    assert encode_labels(column(values), "label", labels, "the data") == MARKS
    # Another split may write them as another type of numbers, and need not have every class.
    assert encode_labels(column([[0, 1, 1]]), "label", labels, "the validation split") == [[0.0, 1.0, 1.0]]


def test_decimals_and_other_formats_of_a_dataset_are_numbers():
    decimals = [[Decimal(1)], [Decimal(2), Decimal(1)], [Decimal(2)]]
    data = column(decimals, features=Features({"label": List(Value("decimal128(10, 0)"))}))
    labels = find_labels(data, "label", "the data")
    assert labels.names == ("1", "2")
    assert encode_labels(data, "label", labels, "the data") == [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
    assert find_labels(column([3, 1, 3]).with_format("numpy"), "label", "the data").names == ("1", "3")


@pytest.mark.parametrize("values", [[["0", "1"], ["1"]], [[0], [1], [0]], [[0, 1], [1]], [[0, 2], [1, 2]]])
def test_other_lists_name_the_labels(values):
    told = []
    labels = find_labels(column(values), "label", "the data", tell=told.append)
    names = sorted({str(value) for row in values for value in row})
    assert labels.names == tuple(names) and not labels.multi_hot and not told
    expected = [[float(name in map(str, row)) for name in names] for row in values]
    assert encode_labels(column(values), "label", labels, "the data") == expected


def test_whole_numbers_of_the_fractional_type_are_the_same_names():
    labels = found([[1.0, 2.0], [5.0]])
    assert labels.names == ("1", "2", "5")
    for values in ([[1.0, 2.0], [5.0]], [[1, 2], [5]]):
        encoded = encode_labels(column(values), "label", labels, "the data")
        assert encoded == [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (MARKS, [[0, 1, 0], [0, 1]], r"\[0, 1\] in row 1 .*: the lists of the training data have 3 entries"),
        (MARKS, [[0, 2, 0]], r"\[0, 2, 0\] in row 0 .*a 0 or 1 for every class"),
        (MARKS, [["a", "b", "c"]], "a 0 or 1 for every class"),
        (MARKS, [0, 1], "holds no lists, but that of the training data lists"),
        ([["a"], ["b"]], ["a", "b"], "holds no lists, but that of the training data lists"),
        (["a", "b"], [["a"], ["b"]], "holds lists, but that of the training data none"),
        ([[0], [1, 2]], [[0, 0, 1]], r"'0' is repeated.*3 to 3 entries"),
    ],
)
def test_other_splits_are_read_like_the_training_data(train, validation, message):
    with pytest.raises(UserError, match=f"of the validation split .*{message}"):
        encode_labels(column(validation), "label", found(train), "the validation split")


def test_numbers_of_named_classes_are_no_marks():
    feature = List(ClassLabel(names=["a", "b"]))
    labels = find_labels(
        column([[0, 1], [1, 0]], features=Features(label=feature)), "label", "the data", tell=pytest.fail
    )
    marks = column([[1, 1]], features=Features(label=feature))
    with pytest.raises(UserError, match=r"\[1, 1\] in row 0 .*'1' is repeated"):
        encode_labels(marks, "label", labels, "the data")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([["a"], ["b", None]], r"\['b', None\] in row 1 \(counted from 0\).*Take the empty entry out"),
        ([[0.0, 1.0], [float("nan"), 1.0]], r"in row 1 .*Take the empty entry out"),
        ([{"n": "a"}, {"n": "b"}], r"\{'n': 'a'\} in row 0 .*--label_column"),
        ([[["b"]], [["a", "b"]]], r"\[\['b'\]\] in row 0 .*without lists in it"),
        ([b"a", b"b"], r"b'a' in row 0 .*texts or whole numbers"),
        ([["a", "b"], ["a", "a"]], r"in row 1 .*'a' is repeated"),
        ([[0, 1, 0], [1, 0]], r"\[0, 1, 0\] in row 0 .*need the same length, above 1, .*2 to 3 entries"),
        ([["0", "1", "0"]], "'0' is repeated: .*no other numbers"),
        ([[0.5, 0.5], [0.2, 0.8]], "is repeated|not fractions"),
        ([[0.3, 0.7], [0.2, 0.8]], r"\[0.3, 0.7\] in row 0 .*not fractions"),
    ],
)
def test_values_that_are_no_labels_are_named_with_row_and_remedy(values, message):
    with pytest.raises(UserError, match=f"the label column 'label' of the data has .*{message}"):
        found(values)


@pytest.mark.parametrize(
    "values",
    [
        [datetime.date(2020, 1, 2), datetime.date(2020, 1, 1)],
        [datetime.datetime(2020, 1, 2, 3), datetime.datetime(2020, 1, 1)],
        [datetime.time(3), datetime.time(1)],
        [datetime.timedelta(3), datetime.timedelta(1)],
    ],
)
def test_dates_and_times_are_names(values, tmp_path):
    frame = pd.DataFrame({"label": pd.Series(values, dtype=object if "time(" in repr(values) else None)})
    frame.to_parquet(tmp_path / "dates.parquet")
    rows = read_file(tmp_path / "dates.parquet")
    labels = find_labels(rows, "label", "the data")
    assert labels.names == (str(values[1]), str(values[0])) and not labels.numbered
    assert encode_labels(rows, "label", labels, "the data") == [1, 0]
    # As a csv file has them.
    assert encode_labels(column([str(values[0])]), "label", labels, "the data") == [1]


def test_a_regression_with_one_number_to_evaluate_on_is_warned_of():
    told = []
    say_missing_classes([0.5], Labels("regression", ()), "the validation split", told.append)
    assert len(told) == 1 and "the validation split has 1 row(s), all with the label 0.5" in told[0]


def test_marks_train_what_lists_of_names_train(tiny_run, write_rows):
    """The same labels in both forms: one model, one file of predictions."""
    runs = []
    for form in ("marks", "names"):
        files = {}
        for split, count, seed in (("train", 24, 0), ("validation", 12, 1)):
            rows = sentences(count, seed)
            for number, row in enumerate(rows):
                marks = [row["label"], number % 3 // 2, 1 - row["label"]]
                named = [str(place) for place in np.flatnonzero(marks)]
                row["label"] = marks if form == "marks" else named
            files[f"{split}_file"] = write_rows(f"{form}_{split}.jsonl", rows)
        run = changed(tiny_run, output_dir=f"{output_of(tiny_run)}_{form}", num_train_epochs=1, **files)
        record = glue.main([*run, "--save_predictions"])
        out = output_of(run)
        runs.append((record["eval_loss"], pd.read_parquet(out / "predictions.parquet")))
        assert AutoConfig.from_pretrained(out).id2label == {0: "0", 1: "1", 2: "2"}
    assert runs[0][0] == runs[1][0]
    pd.testing.assert_frame_equal(runs[0][1], runs[1][1])
    rows = (output_of(tiny_run).parent / "marks_validation.jsonl").read_text().splitlines()
    assert [list(row) for row in runs[0][1]["label"]] == [json.loads(row)["label"] for row in rows]


def test_a_regression_with_one_validation_row_runs_to_its_end(tiny_run, write_rows, capsys):
    rows = [{**row, "label": row["label"] + 0.5} for row in sentences(24)]
    files = {
        "train_file": write_rows("amounts.jsonl", rows),
        "validation_file": write_rows("one.jsonl", rows[:1]),
    }
    run = changed(tiny_run, num_train_epochs=1, **files)
    with pytest.raises(UserError, match="computes 'mse', 'loss'"):
        glue.main([*run, "--metric_for_best_model", "pearson"])
    record = glue.main(run)
    assert np.isfinite(record["eval_mse"]) and np.isnan(record["eval_pearson"])
    assert "the validation split has 1 row(s)" in capsys.readouterr().out
