"""Text classification data: which columns are text, what the labels mean, tokenization.

Works on a `DatasetDict` with a `train` split and any number of validation splits.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from rgd_hf.batches.columns import SAMPLE_WEIGHT
from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.files.column_types import MISSING_NUMBERS, say_what_looks_alike
from rgd_hf.scripts.files.data_files import require_columns, sample_weights
from rgd_hf.scripts.files.label_values import encode_multi_hot, is_multi_hot, label_values, require_names
from rgd_hf.scripts.messages import say, say_warning

MANY_CLASSES = 20
PAIRS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("text1", "text2"),
)
SINGLES = ("text", "sentence", "content", "review")


@dataclass(frozen=True)
class Labels:
    """What a label column holds.

    Attributes:
        kind: `"single_label_classification"`, `"multi_label_classification"` or `"regression"`, the values of
            `PretrainedConfig.problem_type`.
        names: the classes, in the order of their numbers; empty for regression.
        numbered: whether the data itself gave the classes these numbers, so that a column of numbers may stand for them.
        multi_hot: whether lists of several labels hold a 0 or 1 for every class; else they name those of the sample.
    """

    kind: str
    names: tuple[str, ...]
    numbered: bool = True
    multi_hot: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """Keywords for a model's configuration."""
        if not self.names:
            return {"num_labels": 1, "problem_type": self.kind}
        id2label = dict(enumerate(self.names))
        label2id = {name: number for number, name in id2label.items()}
        return {
            "num_labels": len(id2label),
            "id2label": id2label,
            "label2id": label2id,
            "problem_type": self.kind,
        }


def find_text_columns(
    dataset: Dataset,
    asked: Sequence[str] | None,
    label_column: str,
    where: str,
    tell: Callable[[str], Any] = say,
    option: str = "--text_columns",
    most: int = 2,
) -> list[str]:
    """The one or two text columns: those asked for, else usual names, else the only ones that hold strings.

    Args:
        dataset: the training data.
        asked: names that the user gave.
        label_column: name of the label column.
        where: the data, for messages.
        tell: called with a sentence where there are other columns of strings, which are not used.
        option: the option of the recipe that names them, for messages.
        most: how many the recipe takes, 1 or 2.

    Raises:
        UserError: they are missing, no strings, cannot be told, or are a pair where one is taken; the message names the
            columns found.
    """
    amount = "one or two" if most > 1 else "one"
    strings = [
        name
        for name, feature in dataset.features.items()
        if getattr(feature, "dtype", None) in ("string", "large_string") and name != label_column
    ]
    if asked:
        require_columns(dataset, asked, where)
        if len(asked) > most or not set(asked) <= set(strings):
            raise UserError(
                f"{option} takes {amount} column(s) that hold strings, not {listed(asked)}; "
                f"columns of strings in {where}: {listed(strings)}.{_nested(dataset)}"
            )
        return list(asked)
    usual = [list(pair) for pair in PAIRS if set(pair) <= set(strings)]
    usual += [[name] for name in SINGLES if name in strings]
    if not usual and len(strings) == 1:
        return strings
    if not usual:
        raise UserError(
            f"cannot tell which column of {where} is the text: name {amount} with {option}. "
            f"Columns of strings: {listed(strings)}; all columns: {listed(dataset.column_names)}.{_nested(dataset)}"
        )
    if len(usual[0]) > most:
        raise UserError(
            f"{where} has the text columns {' and '.join(map(repr, usual[0]))}, a pair, but each sample is one text here: name "
            f"the one to use ({option} {usual[0][0]}), or write both texts into one column."
        )
    others = [name for name in strings if name not in usual[0]]
    if others:
        tell(
            f"Text column(s): {listed(usual[0])}; not used: {listed(others)}. {option} chooses "
            + ("one or two others." if most > 1 else "another.")
        )
    return usual[0]


def _nested(dataset: Dataset) -> str:
    """What to do with columns of objects, for messages; nothing where there are none."""
    found = {name: list(feature) for name, feature in dataset.features.items() if isinstance(feature, dict)}
    if not found:
        return ""
    keys = "; ".join(f"{name!r} with the key(s) {listed(inner)}" for name, inner in found.items())
    return f" Columns of objects: {keys}: write each of their values as a column of its own."


def find_labels(
    dataset: Dataset,
    column: str,
    where: str,
    warn: Callable[[str], Any] = say_warning,
    tell: Callable[[str], Any] = say,
) -> Labels:
    """What the training split's label column holds.

    Class numbers, strings, dates and booleans are classes, floats are a regression's target. Lists are sets of labels or,
    where all have one length above 1 and hold nothing but 0 and 1, multi-hot: classes are called by their position.

    Args:
        dataset: the training data.
        column: name of the label column.
        where: the data, for messages.
        warn: called with a sentence for everything that may not be meant.
        tell: called with a sentence where lists are taken as multi-hot.

    Raises:
        UserError: there is no such column, it has empty cells or values that are no labels, a list that names a label
            twice, or fewer than two classes.
    """
    require_columns(dataset, [column], f"{where} (label column, see --label_column)")
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel):
        return Labels("single_label_classification", tuple(feature.names))
    values = label_values(dataset, column, where, warn)
    if isinstance(values[0], float):
        if len(set(values)) <= MANY_CLASSES and all(value.is_integer() for value in values):
            warn(
                f"the label column {column!r} of {where} holds the fractional type of numbers, but {len(set(values))} "
                "whole ones only: they are predicted as amounts. For classes, write integers (1, not 1.0)."
            )
        return Labels("regression", ())
    is_set = isinstance(values[0], list)
    inner = getattr(feature, "feature", None)
    if is_set and isinstance(inner, ClassLabel):
        return Labels("multi_label_classification", tuple(inner.names))
    if is_set and is_multi_hot(values):
        count = len(values[0])
        tell(
            f"The label column {column!r} of {where} holds lists of {count} zeros and ones, taken as one for each class; the "
            f"classes are called by their position, '0' to '{count - 1}'. If 0 and 1 are names of classes, write texts."
        )
        return Labels("multi_label_classification", tuple(map(str, range(count))), multi_hot=True)
    if is_set:
        require_names(values, column, where)
        values = [[_whole(label) for label in row] for row in values]
    classes = sorted({value for row in values for value in row} if is_set else set(values))
    counts = Counter(value for row in values for value in row) if is_set else Counter(values)
    say_what_looks_alike(counts, f"the label column {column!r} of {where}", warn)
    words = [value for value in classes if re.match(MISSING_NUMBERS, str(value))]
    if words:
        warn(
            f"the label column {column!r} of {where} has the class(es) {listed(words)}; leave out those rows if their "
            "labels are missing."
        )
    if len(classes) < 2:
        raise UserError(
            f"the label column {column!r} of {where} has {len(classes)} class(es), {listed(classes)}: two are needed."
        )
    kind = "multi_label_classification" if is_set else "single_label_classification"
    return Labels(kind, tuple(map(str, classes)), numbered=not isinstance(classes[0], str))


def encode_labels(dataset: Dataset, column: str, labels: Labels, where: str) -> list[Any]:
    """The label column as class numbers, floats, or rows of 0.0 and 1.0.

    Raises:
        UserError: a label is missing, not a number where one is needed, or none of `labels.names`; or the column does not
            hold lists as that of the training data does, or of another length.
    """
    require_columns(dataset, [column], f"{where} (label column, see --label_column)")
    values = label_values(dataset, column, where)
    several = labels.kind == "multi_label_classification"
    if any(isinstance(value, list) != several for value in values):
        held, needed = ("no lists", "lists") if several else ("lists", "none")
        raise UserError(
            f"the label column {column!r} of {where} holds {held}, but that of the training data {needed}: write the labels "
            "of both in the same way."
        )
    if labels.multi_hot:
        return encode_multi_hot(values, len(labels.names), column, where)
    if several:
        require_names(values, column, where)
    if labels.kind == "regression":
        try:
            targets = [float(value) for value in values]
        except (TypeError, ValueError) as error:
            raise UserError(f"the label column {column!r} of {where} must hold numbers: {error}.") from error
        infinite = sum(not math.isfinite(target) for target in targets)
        if infinite:
            raise UserError(
                f"the label column {column!r} of {where} has {infinite:,} number(s) that are not finite."
            )
        return targets
    rows = values if several else [[value] for value in values]
    texts = any(isinstance(value, str) for row in rows for value in row)
    numbers = _class_numbers(dataset.features[column], labels, texts)
    strange = sorted({str(value) for row in rows for value in row if value not in numbers})
    if strange:
        raise UserError(
            f"the label column {column!r} of {where} has labels that are no classes of the training data: {listed(strange[:10])}; its classes: "
            f"{listed(labels.names)}"
            + (f" (as numbers: 0 to {len(labels.names) - 1})" if 0 in numbers else "")
            + ". Correct these labels, take their rows out, or add training rows with them."
        )
    if not several:
        return [numbers[value] for value in values]
    chosen = [{numbers[value] for value in row} for row in rows]
    return [[float(number in row) for number in range(len(labels.names))] for row in chosen]


def say_missing_classes(
    encoded: Sequence[Any], labels: Labels, where: str, warn: Callable[[str], Any] = say_warning
) -> None:
    """Warn of the classes that a split has no sample of, or of a regression's target that is one number alone.

    Args:
        encoded: the labels, as `encode_labels` returns them.
        labels: what the training data holds.
        where: the split, for the message.
        warn: called once, if there are any.
    """
    if not labels.names:
        if len(set(encoded)) < 2:
            warn(
                f"{where} has {len(encoded):,} row(s), all with the label {encoded[0]:g}: correlations (pearson, spearmanr) on "
                "it are not defined and will be NaN. They need rows with two different labels or more."
            )
        return
    several = labels.kind == "multi_label_classification"
    counts = np.sum(encoded, axis=0) if several else np.bincount(encoded, minlength=len(labels.names))
    missing = [name for name, count in zip(labels.names, counts) if not count]
    if missing:
        more = f" and {len(missing) - 10:,} more" if len(missing) > 10 else ""
        warn(
            f"{where} has no sample of {len(missing):,} of {len(labels.names):,} classes: {listed(missing[:10])}"
            f"{more}. They cannot be learned from it, nor do scores on it (macro F1, say) tell how well they are."
        )


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) else value


def _class_numbers(feature: Any, labels: Labels, texts: bool) -> dict[Any, int]:
    """From what the column holds to a class number: names, or numbers that are either names or positions."""
    names = labels.names
    inner = getattr(feature, "feature", feature)
    by_name = {name: number for number, name in enumerate(names)}
    if texts:
        return by_name
    if getattr(inner, "dtype", "") == "bool" and set(names) == {"False", "True"}:
        return {value: by_name[str(value)] for value in (False, True)}
    # Numbers of a plain column are its classes' names; those of a ClassLabel, or of GLUE, are positions.
    if not isinstance(inner, ClassLabel) and all(name.lstrip("-").isdigit() for name in names):
        return {int(name): number for number, name in enumerate(names)}
    return {number: number for number in by_name.values()} if labels.numbered else {}


def _check_texts(dataset: Dataset, columns: Sequence[str], where: str) -> None:
    """Count empty texts, which are encoded as such; refuse a column that holds none."""
    for column in columns:
        if getattr(dataset.features[column], "dtype", None) not in ("string", "large_string"):
            raise UserError(f"the column {column!r} of {where} holds {dataset.features[column]}, not texts.")
        empty = sum(not text or text.isspace() for text in dataset[column])
        if empty:
            say_warning(f"{empty:,} of {len(dataset):,} texts in the column {column!r} of {where} are empty.")


def tokenize(
    data: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    text_columns: Sequence[str],
    label_column: str,
    labels: Labels,
    max_length: int | None,
) -> DatasetDict:
    """Token ids, `labels` and `length` of every split, and `sample_weight` where there is one; padding is left to the collator.

    Other columns are dropped: the model has no use for them.

    Args:
        data: splits with the text and label columns.
        tokenizer: the tokenizer of the model.
        text_columns: one column, or two that are encoded as a pair.
        label_column: name of the label column.
        labels: what it holds.
        max_length: longer texts are cut; never above the tokenizer's own limit, which None stands for.

    Raises:
        UserError: a split lacks a column, has a label that `labels` does not allow, or a sample weight that is no number.
    """
    limit = min(max_length or tokenizer.model_max_length, tokenizer.model_max_length)
    done = DatasetDict()
    for split, dataset in data.items():
        where = f"the {split} split"
        require_columns(dataset, text_columns, where)
        encoded_labels = encode_labels(dataset, label_column, labels, where)
        say_missing_classes(encoded_labels, labels, where)
        _check_texts(dataset, text_columns, where)

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            texts = [[text or "" for text in batch[column]] for column in text_columns]
            encoded = dict(tokenizer(*texts, truncation=True, max_length=limit))
            encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
            return encoded

        encoded = dataset.map(
            encode, batched=True, remove_columns=dataset.column_names, desc=f"Tokenizing {split}"
        )
        if SAMPLE_WEIGHT in dataset.column_names:
            encoded = encoded.add_column(SAMPLE_WEIGHT, sample_weights(dataset, where))
        done[split] = encoded.add_column("labels", encoded_labels)
    return done
