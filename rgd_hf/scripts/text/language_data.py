"""Chats, prompts with completions, and texts to train a language model on: their columns, and every cell checked."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Value

from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.files.data_files import read_splits, suffix_of
from rgd_hf.scripts.files.delimited import bytes_of, decoded
from rgd_hf.scripts.messages import say, say_warning

FORMATS = (("prompt", "completion"), ("messages",), ("text",))
"""The columns of each format, in TRL's order where a file has those of several."""
OF_TEMPLATES = ("tools", "chat_template_kwargs")
MESSAGE = '{"role": "user", "content": "..."}'


def read_language_data(
    files: Mapping[str, str], text_column: str = "text", others: Sequence[str] = ()
) -> tuple[dict[str, Dataset], tuple[str, ...]]:
    """Read files of one format, and say which of their columns are used.

    Args:
        files: by split; a `.txt` file has a text in each line.
        text_column: name of the column of texts.
        others: columns that are kept beside those of the format, where there are any.

    Returns:
        The rows by split, and the columns of their format.

    Raises:
        UserError: a file cannot be read or has no rows, or the files have no format in common.
    """
    lines = {split for split, name in files.items() if suffix_of(name) == ".txt" and Path(name).is_file()}
    tables = read_splits({split: name for split, name in files.items() if split not in lines})
    found = {
        split: Dataset.from_dict({text_column: _lines(Path(name))}) if split in lines else tables[split]
        for split, name in files.items()
    }
    columns = _columns_of_all({files[split]: rows for split, rows in found.items()}, text_column)
    kept = [*columns, *OF_TEMPLATES, *others]
    for split, name in files.items():
        names = found[split].column_names
        if split not in lines:
            used, unused = [n for n in kept if n in names], [n for n in names if n not in kept]
            say(f"{name}: columns used: {listed(used)}; not used: {listed(unused)}.")
    selected = {
        split: rows.select_columns([name for name in kept if name in rows.column_names])
        for split, rows in found.items()
    }
    return selected, columns


def _lines(path: Path) -> list[str]:
    lines = list(io.StringIO(decoded(bytes_of(path), path, say_warning), newline=None))
    texts = [line.rstrip("\n") for line in lines if line.strip()]
    if not texts:
        raise UserError(f"{path} is empty: at least one line of text is needed.")
    if len(texts) < len(lines):
        say_warning(f"{path}: {len(lines) - len(texts):,} empty line(s) are skipped.")
    return texts


def _columns_of_all(rows: Mapping[str, Dataset], text_column: str) -> tuple[str, ...]:
    formats = (*FORMATS[:-1], (text_column,))
    wanted = ", or ".join(" and ".join(map(repr, columns)) for columns in formats)
    possible = {
        name: [columns for columns in formats if set(columns) <= set(data.column_names)]
        for name, data in rows.items()
    }
    for name, data in rows.items():
        if not possible[name]:
            raise UserError(f"{name} has the columns {listed(data.column_names)}, but needs {wanted}.")
    common = [columns for columns in formats if all(columns in found for found in possible.values())]
    if not common:
        each = "; ".join(f"{name} has {listed(found[0])}" for name, found in possible.items())
        raise UserError(
            f"training and validation data need the same columns, {wanted}: {each}. Write one of them anew, or leave "
            "out --validation_file and give --holdout_fraction 0.05."
        )
    return common[0]


def check_language_data(rows: Dataset, columns: Sequence[str], where: str) -> bool:
    """Whether the rows are chats (else they are texts), once every cell of these columns is one.

    Raises:
        UserError: a cell is empty or of another kind; the message numbers rows from 0.
    """
    chats = {column: _is_chat_column(rows, column, where) for column in columns}
    if len(set(chats.values())) > 1:
        held = [f"{column!r} holds {'messages' if chat else 'texts'}" for column, chat in chats.items()]
        raise UserError(f"{where}: {' and '.join(held)}: both need texts, or both lists of messages.")
    return next(iter(chats.values()))


def _is_chat_column(rows: Dataset, column: str, where: str) -> bool:
    name = f"the column {column!r} of {where}"
    values = rows[column][:]
    missing = [row for row, value in enumerate(values) if value is None]
    if missing:
        raise UserError(
            f"{name} has no value in {len(missing):,} of {len(values):,} rows, first in row {missing[0]} (counted "
            "from 0): fill these cells, or take the rows out."
        )
    feature = rows.features[column]
    if feature in (Value("string"), Value("large_string")) and column != "messages":
        blank = sum(not value.strip() for value in values)
        if blank and column != "prompt":
            say_warning(
                f"{blank:,} of {len(values):,} texts in {name} are empty: the end of the text is all that is learnt "
                "of them."
            )
        return False
    if not isinstance(values[0], list) or column not in ("prompt", "completion", "messages"):
        wanted = {"messages": f"lists of messages, {MESSAGE}", "prompt": "texts or lists of messages"}
        wanted["completion"] = wanted["prompt"]
        raise UserError(
            f"{name} holds {values[0]!r:.60} in row 0 ({feature!s:.60}), not {wanted.get(column, 'texts')}. Write it "
            'so to a jsonl or parquet file ("12" is a text, 12 is none).'
        )
    for row, messages in enumerate(values):
        problem = _problem_of(messages)
        if problem:
            raise UserError(
                f"{name} has {problem} in row {row} (counted from 0): a list of {MESSAGE} is needed. Correct it, or "
                "take the row out."
            )
    return True


def _problem_of(messages: Any) -> str | None:
    if not messages:
        return "no message"
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return f"a message without a role ({message!r:.60})"
        content = message.get("content")
        calls = any(value is not None for key, value in message.items() if key not in ("role", "content"))
        if not isinstance(content, str | list) and not (content is None and calls):
            return f"a message without content ({message!r:.60})"
    return None


def check_assistant_turns(rows: Dataset, columns: Sequence[str], where: str) -> None:
    """Raise `UserError` where a chat has no message of the assistant, of which alone the loss is taken."""
    without = [
        row
        for row, messages in enumerate(rows[columns[-1]])
        if all(message["role"] != "assistant" for message in messages)
    ]
    if without:
        raise UserError(
            f"--assistant_only_loss: {len(without):,} of {len(rows):,} chats of {where} have no message of the role "
            f"'assistant', first in row {without[0]} (counted from 0): take them out, or leave out "
            "--assistant_only_loss."
        )
