"""Which columns are text, what labels mean, and what the model is given."""

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from transformers import AutoTokenizer

from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.text.text_classification import (
    Labels,
    encode_labels,
    find_labels,
    find_text_columns,
    say_missing_classes,
    tokenize,
)

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def columns(**values) -> Dataset:
    return Dataset.from_dict(values)


@pytest.mark.parametrize(
    "names, expected",
    [
        (["text"], ["text"]),
        (["idx_name", "sentence"], ["sentence"]),
        (["note", "sentence2", "sentence1"], ["sentence1", "sentence2"]),
        (["premise", "hypothesis"], ["premise", "hypothesis"]),
        (["tweet"], ["tweet"]),
    ],
)
def test_text_columns_are_found_by_usual_names_or_because_there_is_one(names, expected):
    dataset = columns(**{name: ["a"] for name in names}, number=[1], label=["x"])
    assert find_text_columns(dataset, None, "label", "the data") == expected


def test_columns_of_strings_that_are_not_used_are_named():
    told = []
    dataset = columns(title=["a"], text=["b"], note=["c"], number=[1], label=["x"])
    assert find_text_columns(dataset, None, "label", "the data", told.append) == ["text"]
    assert told == [
        "Text column(s): 'text'; not used: 'title', 'note'. --text_columns chooses one or two others."
    ]
    assert find_text_columns(dataset, ["title"], "label", "the data", told.append) == ["title"]
    alone = columns(text=["b"], number=[1], label=["x"])
    assert find_text_columns(alone, None, "label", "the data", told.append) == ["text"] and len(told) == 1


@pytest.mark.parametrize("asked", [None, ["text"]])
def test_columns_of_objects_are_named_with_what_to_do(asked):
    dataset = columns(text=[{"title": "a", "body": "b"}], label=["x"])
    with pytest.raises(
        UserError, match=r"'text' with the key.s. 'title', 'body': write each of their values"
    ):
        find_text_columns(dataset, asked, "label", "the data")


@pytest.mark.parametrize(
    "kind, encoded, missing",
    [
        (SINGLE, [0, 1, 2, 1], None),
        (SINGLE, [2, 0, 0], "1 of 3 classes: 'b'"),
        (SINGLE, [1, 1], "2 of 3 classes: 'a', 'c'"),
        (MULTI, [[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]], "1 of 3 classes: 'b'"),
        ("regression", [0.5, 1.0], None),
    ],
)
def test_classes_that_a_split_lacks_are_named(kind, encoded, missing):
    told = []
    names = () if kind == "regression" else ("a", "b", "c")
    say_missing_classes(encoded, Labels(kind, names), "the validation split", told.append)
    assert len(told) == (missing is not None)
    if missing:
        assert told[0].startswith(f"the validation split has no sample of {missing}.")


def test_text_columns_that_cannot_be_told_must_be_named():
    dataset = columns(title=["a"], body=["b"], number=[1], label=[0])
    with pytest.raises(UserError, match=r"--text_columns. Columns of strings: 'title', 'body'"):
        find_text_columns(dataset, None, "label", "the data")
    assert find_text_columns(dataset, ["title", "body"], "label", "the data") == ["title", "body"]
    with pytest.raises(UserError, match="'number'; columns of strings in the data: 'title', 'body'"):
        find_text_columns(dataset, ["number"], "label", "the data")
    with pytest.raises(UserError, match=r"lacks the column\(s\) 'headline'; found: 'title'"):
        find_text_columns(dataset, ["headline"], "label", "the data")


@pytest.mark.parametrize(
    "values, kind, names, encoded",
    [
        (["spam", "ham", "spam"], SINGLE, ("ham", "spam"), [1, 0, 1]),
        ([0, 2, 1], SINGLE, ("0", "1", "2"), [0, 2, 1]),
        ([10, 5, 10], SINGLE, ("5", "10"), [1, 0, 1]),
        ([-1, 1, 1], SINGLE, ("-1", "1"), [0, 1, 1]),
        ([True, False, True], SINGLE, ("False", "True"), [1, 0, 1]),
        ([0.5, 2.0, 4.75], "regression", (), [0.5, 2.0, 4.75]),
        ([["a", "b"], [], ["b"]], MULTI, ("a", "b"), [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]),
        ([[3], [7], [3, 7]], MULTI, ("3", "7"), [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]),
    ],
)
def test_labels_of_plain_columns(values, kind, names, encoded):
    dataset = columns(label=values)
    labels = find_labels(dataset, "label", "the data")
    assert (labels.kind, labels.names) == (kind, names)
    assert encode_labels(dataset, "label", labels, "the data") == encoded


def test_a_class_label_column_keeps_its_names_and_numbers():
    feature = ClassLabel(names=["2", "1"])  # digits as names must not be read as numbers
    dataset = Dataset.from_dict({"label": [0, 1]}, features=Features(label=feature))
    labels = find_labels(dataset, "label", "the data")
    assert labels.names == ("2", "1") and encode_labels(dataset, "label", labels, "the data") == [0, 1]
    assert labels.config["id2label"] == {0: "2", 1: "1"}
    sets = Dataset.from_dict({"label": [[0], [0, 1]]}, features=Features(label=List(feature)))
    labels = find_labels(sets, "label", "the data")
    assert labels == Labels(MULTI, ("2", "1"))
    assert encode_labels(sets, "label", labels, "the data") == [[1.0, 0.0], [1.0, 1.0]]


def test_named_labels_are_given_by_number_or_by_name():
    labels = Labels(SINGLE, ("negative", "positive"))
    assert encode_labels(columns(label=[1, 0]), "label", labels, "the data") == [1, 0]
    assert encode_labels(columns(label=["positive", "negative"]), "label", labels, "the data") == [1, 0]


@pytest.mark.parametrize(
    "values, names, complaint",
    [
        (
            [0, 1, 2, -1],
            ("negative", "positive"),
            r"training data: '-1', '2'; .*as numbers: 0 to 1.*add training rows",
        ),
        (
            ["positive", "meh"],
            ("negative", "positive"),
            r"training data: 'meh'; its classes: 'negative', 'positive'\. Correct these",
        ),
        (
            [0, None],
            ("a", "b"),
            r"empty in 1 of 2 rows, first in row 1 .*: fill these cells, or take the rows out",
        ),
    ],
)
def test_labels_out_of_range_are_named(values, names, complaint):
    with pytest.raises(UserError, match=complaint):
        encode_labels(columns(label=values), "label", Labels(SINGLE, names), "the data")


def test_regression_needs_numbers():
    labels = Labels("regression", ())
    assert encode_labels(columns(label=[1, 5]), "label", labels, "the data") == [1.0, 5.0]
    with pytest.raises(UserError, match="must hold numbers"):
        encode_labels(columns(label=["high"]), "label", labels, "the data")
    with pytest.raises(UserError, match="empty in 1 of 2 rows"):
        encode_labels(columns(label=[0.5, None]), "label", labels, "the data")


def test_one_class_and_no_label_column_are_refused():
    with pytest.raises(UserError, match=r"1 class\(es\), 'spam': two are needed"):
        find_labels(columns(label=["spam", "spam"]), "label", "the data")
    with pytest.raises(
        UserError, match=r"--label_column\) lacks the column\(s\) 'label'; found: 'text', 'target'"
    ):
        find_labels(columns(text=["a"], target=[1]), "label", "the data")


def test_tokenize_keeps_what_training_needs(tiny_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    rows = {"a": ["good word1", "bad"], "b": ["word2", "word3 word4"], "label": [1, 0], "extra": [5, 6]}
    data = DatasetDict(train=columns(**rows), validation=columns(**rows))
    labels = Labels(SINGLE, ("n", "p"))
    encoded = tokenize(data, tokenizer, ["a", "b"], "label", labels, max_length=6)
    assert set(encoded["train"].column_names) == {
        *("input_ids", "token_type_ids", "attention_mask", "length", "labels")
    }
    by_hand = [
        tokenizer(a, b, truncation=True, max_length=6) for a, b in zip(rows["a"], rows["b"], strict=True)
    ]
    assert encoded["validation"]["input_ids"][:] == [row["input_ids"] for row in by_hand]
    assert encoded["train"]["length"][:] == [len(row["input_ids"]) for row in by_hand] == [6, 6]
    assert encoded["train"]["labels"][:] == [1, 0]
    assert encoded["train"].features["labels"] == Value("int64")
    del data["validation"]
    data["validation"] = columns(a=["x"], label=[0])
    with pytest.raises(
        UserError, match=r"the validation split lacks the column\(s\) 'b'; found: 'a', 'label'"
    ):
        tokenize(data, tokenizer, ["a", "b"], "label", labels, max_length=6)


def test_sample_weights_are_kept_and_checked(tiny_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    labels = Labels(SINGLE, ("n", "p"))

    def tokenized(weights):
        rows = {"a": ["good", "bad"], "label": [1, 0], "sample_weight": weights}
        return tokenize(DatasetDict(train=columns(**rows)), tokenizer, ["a"], "label", labels, None)["train"]

    assert tokenized([2, 0])["sample_weight"] == [2.0, 0.0]
    assert tokenized(["0.5", "1"])["sample_weight"] == [0.5, 1.0]
    for bad in ([1.0, -1.0], [1.0, None], ["1", "much"], [float("nan"), 1.0]):
        with pytest.raises(UserError, match=r"'sample_weight' of the train split has .* in row [01]"):
            tokenized(bad)
