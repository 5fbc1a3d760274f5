"""The nine tasks of GLUE as facts: columns, label names, official metric, validation splits.

Source: Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding", 2019
(arXiv 1804.07461), in the columns of the Hub's `nyu-mll/glue`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Attributes:
        columns: the text column, or the two of a sentence pair.
        labels: names of the classes in the order of their numbers; empty for regression.
        metric: one of `rgd_hf.scripts.training.metrics.FUNCTIONS`.
        validation: names of the validation splits.
    """

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metric: str = "accuracy"
    validation: tuple[str, ...] = ("validation",)


_ENTAILMENT = ("entailment", "not_entailment")

GLUE_TASKS = {
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable"), "matthews"),
    "sst2": GlueTask(("sentence",), ("negative", "positive")),
    "mrpc": GlueTask(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), "accuracy_and_f1"),
    "stsb": GlueTask(("sentence1", "sentence2"), (), "correlations"),
    "qqp": GlueTask(("question1", "question2"), ("not_duplicate", "duplicate"), "accuracy_and_f1"),
    "mnli": GlueTask(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        validation=("validation_matched", "validation_mismatched"),
    ),
    "qnli": GlueTask(("question", "sentence"), _ENTAILMENT),
    "rte": GlueTask(("sentence1", "sentence2"), _ENTAILMENT),
    "wnli": GlueTask(("sentence1", "sentence2"), ("not_entailment", "entailment")),
}
HUB_NAME = "nyu-mll/glue"
