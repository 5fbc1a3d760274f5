"""What `sft.py` takes for training data: columns, cells, lines; everything else is refused or reported."""

import json

import pytest

from rgd_hf.scripts.errors import UserError

pytest.importorskip("trl")
pytest.importorskip("peft")
import sft

TEXTS = [{"text": f"number {n}"} for n in range(8)]
PAIRS = [{"prompt": f"ask {n}", "completion": f" say {n}"} for n in range(8)]
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
CHATS = [{"messages": TURNS} for _ in range(8)]


@pytest.fixture
def load(tmp_path):
    """Write training (and validation) data as jsonl, or bytes as they are, and read both as `sft.py` does."""

    def loaded(train, validation=None, name="train.jsonl", **settings):
        files = {}
        for option, filename, data in (
            ("train_file", name, train),
            ("validation_file", "v" + name, validation),
        ):
            if data is not None:
                content = data if isinstance(data, bytes) else "\n".join(map(json.dumps, data)).encode()
                (tmp_path / filename).write_bytes(content)
                files[option] = str(tmp_path / filename)
        inputs = sft.InputArguments(**files, holdout_fraction=0.25 if validation is None else None)
        args = sft.SFTArguments(output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, **settings)
        return sft.load_data(inputs, args)

    return loaded


@pytest.mark.parametrize(
    ("train", "columns"),
    [
        (TEXTS, ["text"]),
        (PAIRS, ["prompt", "completion"]),
        (CHATS, ["messages"]),
        ([{"prompt": TURNS[:1], "completion": TURNS[1:]}] * 8, ["prompt", "completion"]),
        ([{"messages": [TURNS[0], {"role": "assistant", "tool_calls": "f()"}]}] * 8, ["messages"]),
    ],
    ids=["texts", "pairs", "chats", "chats in parts", "tool calls"],
)
def test_every_format_is_read(train, columns, load):
    data = load(train)
    assert data["train"].column_names == columns and (len(data["train"]), len(data["validation"])) == (6, 2)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([*TEXTS, {"text": None}], r"'text' of .*train.jsonl has no value in 1 of 9 rows, first in row 8 \("),
        ([*PAIRS[:3], {"prompt": "x"}], "'completion' of .* has no value in 1 of 4 rows, first in row 3"),
        ([{"text": n} for n in range(8)], "'text' of .* holds 0 in row 0 .*, not texts.*jsonl or parquet"),
        ([{"messages": "hello"}] * 8, "'messages' of .* holds 'hello' in row 0 .*, not lists of messages"),
        ([*CHATS, {"messages": []}], "'messages' of .* has no message in row 8"),
        ([{"messages": [{"from": "user", "value": "hi"}]}] * 8, "a message without a role .* in row 0"),
        ([{"messages": [{"role": "user", "content": None}]}] * 8, "a message without content .* in row 0"),
        (
            [{"prompt": TURNS[:1], "completion": "yo"}] * 8,
            "'prompt' holds messages and 'completion' holds texts",
        ),
    ],
)
def test_cells_of_another_kind_are_refused(train, message, load):
    with pytest.raises(UserError, match=message):
        load(train)


@pytest.mark.parametrize("bad", ["high", None, -1.0, float("nan")])
def test_every_weight_is_checked(bad, load):
    good = ["1", "0.5"] * 4 if bad == "high" else [1.0, 0.5] * 4
    rows = [{**row, "sample_weight": weight} for row, weight in zip(TEXTS, good, strict=True)]
    data = load(rows)
    assert {*data["train"]["sample_weight"], *data["validation"]["sample_weight"]} == {1.0, 0.5}
    wrong = [*rows[:5], {**rows[5], "sample_weight": bad}, *rows[6:]]
    for train, validation, where in ((wrong, None, "/train"), (rows, wrong, "vtrain")):
        with pytest.raises(
            UserError, match=rf"'sample_weight' of .*{where}\.jsonl has .* in row 5 \(counted"
        ):
            load(train, validation)
    with pytest.raises(UserError, match=r"has a column 'sample_weight', but --packing puts several rows"):
        load(rows, packing=True)


def test_padding_free_batches_have_no_place_for_weights(load):
    rows = [{**row, "sample_weight": 1.0} for row in TEXTS]
    with pytest.raises(UserError, match=r"train\.jsonl has a column 'sample_weight', but --padding_free"):
        load(rows, padding_free=True)
    load(rows, padding_free=False)


def test_validation_cells_are_checked_too(load):
    with pytest.raises(UserError, match=r"'text' of .*vtrain\.jsonl has no value in 1 of 9 rows"):
        load(TEXTS, [*TEXTS, {"text": None}])


def test_chats_need_the_assistant_where_its_loss_alone_counts(load):
    assert len(load(CHATS, assistant_only_loss=True)["train"]) == 6
    with pytest.raises(UserError, match=r"1 of 9 chats .* of the role 'assistant', first in row 8"):
        load([*CHATS, {"messages": TURNS[:1]}], assistant_only_loss=True)


def test_training_and_validation_data_have_one_format(load, capsys):
    with pytest.raises(
        UserError, match=r"train\.jsonl has 'text'; .*vtrain\.jsonl has 'prompt', 'completion'"
    ):
        load(TEXTS, PAIRS)
    with pytest.raises(UserError, match="one holds lists of messages"):
        load(PAIRS, [{"prompt": TURNS[:1], "completion": TURNS[1:]}] * 2)
    both = [text | pair for text, pair in zip(TEXTS, PAIRS)]
    assert load(both, TEXTS)["train"].column_names == ["text"]
    assert load(both, PAIRS)["train"].column_names == ["prompt", "completion"]


def test_the_columns_are_said_and_the_others_left_out(load, capsys):
    rows = [{"id": 1, **text, **pair, "sample_weight": 2.0} for text, pair in zip(TEXTS, PAIRS)]
    assert load(rows)["train"].column_names == ["prompt", "completion", "sample_weight"]
    said = capsys.readouterr().out
    assert "columns used: 'prompt', 'completion', 'sample_weight'; not used: 'id', 'text'." in said
    rows = [{"id": 1, **text, **pair} for text, pair in zip(TEXTS, PAIRS)]
    assert load(rows, packing=True)["train"].column_names == ["prompt", "completion"]
    assert load([{"body": "a"}] * 8, dataset_text_field="body")["train"].column_names == ["body"]


def test_empty_texts_are_counted_but_not_empty_prompts(load, capsys):
    load([*TEXTS, {"text": " "}])
    assert "warning: 1 of 9 texts in the column 'text'" in capsys.readouterr().out
    load([*PAIRS, {"prompt": "", "completion": "x"}])
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["lines.txt", "lines.TXT"])
def test_every_line_of_a_text_file_is_a_text(name, load, capsys):
    data = load("\ufeffone\r\n\r\ntwo\u2028still two\nthree\n".encode(), b"x\n", name=name)
    assert data["train"]["text"][:] == ["one", "two\u2028still two", "three"]
    assert "1 empty line(s) are skipped" in capsys.readouterr().out


def test_text_files_in_other_encodings_are_read_or_refused(load, capsys):
    data = load("café\nthé\n".encode("latin-1"), "Straße\n".encode("utf-16"), name="lines.txt")
    assert data["train"]["text"][:] == ["café", "thé"] and data["validation"]["text"][:] == ["Straße"]
    assert "is not UTF-8 and is read as Windows-1252" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match="not UTF-8"):
        load("привет мир\n".encode("cp1251"), name="lines.txt")


@pytest.mark.parametrize("content", [b"", b"\n \n"], ids=["empty", "blank"])
def test_text_files_without_a_text_are_refused(content, load):
    with pytest.raises(UserError, match=r"/lines\.txt is empty: at least one line"):
        load(content, name="lines.txt")
    with pytest.raises(UserError, match=r"/vlines\.txt is empty: at least one line"):
        load(b"one\n", content, name="lines.txt")
