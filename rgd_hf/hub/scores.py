"""The metrics of a run that its model card reports: those of the model as it is, under names that readers and the Hub know."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

METRICS = {
    "mcc": ("Matthews correlation", "matthews_correlation"),
    "matthews_correlation": ("Matthews correlation", "matthews_correlation"),
    "pearson": ("Pearson correlation", "pearsonr"),
    "pearsonr": ("Pearson correlation", "pearsonr"),
    "spearman": ("Spearman correlation", "spearmanr"),
    "spearmanr": ("Spearman correlation", "spearmanr"),
    "f1_macro": ("F1 (macro)", "f1"),
    "f1_micro": ("F1 (micro)", "f1"),
    "mse": ("Mean squared error", "mse"),
    "mae": ("Mean absolute error", "mae"),
    "roc_auc": ("ROC AUC", "roc_auc"),
    "auroc": ("ROC AUC", "roc_auc"),
    "wer": ("Word error rate", "wer"),
    "cer": ("Character error rate", "cer"),
    "ter": ("Translation edit rate", "ter"),
    "bleu": ("BLEU", "bleu"),
}
"""Name and Hub identifier of metrics whose key is neither by itself."""

_NO_METRICS = ("runtime", "samples_per_second", "steps_per_second", "time")


@dataclass(frozen=True)
class EvaluatedSet:
    """Which data an evaluation was of.

    Attributes:
        is_own: whether it is the Trainer's evaluation set, or one of several.
        name: that of one of several sets; of other data the name it was passed by, else its split.
        split: as the data has it.
    """

    is_own: bool
    name: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Score:
    """A metric of the last evaluation.

    Attributes:
        evaluated_on: name of the data, None for the Trainer's only evaluation set.
        key: as the Trainer logs it, without prefixes, e.g. `"accuracy"`.
        value: as it was logged.
        split: that of the data, or its name.
    """

    evaluated_on: str | None
    key: str
    value: Any
    split: str | None = None

    @property
    def name(self) -> str:
        """As readers know the metric."""
        words = self.key.replace("_", " ")
        return METRICS[self.key][0] if self.key in METRICS else words[:1].upper() + words[1:]

    @property
    def identifier(self) -> str:
        """As the Hub knows the metric."""
        return METRICS[self.key][1] if self.key in METRICS else self.key


def last_scores(trainer: Any) -> list[Score]:
    """The metrics that belong to the model as it is: of an evaluation after training, else of its best or last step.

    Args:
        trainer: has `evaluated_set`, which tells the data of an entry of its log.

    Returns:
        Those of its evaluation set or sets; then those of other data it evaluated since it was trained, under the name
        that was passed or their split. Other data that has neither, or the same as the evaluation set, is left out.
    """
    history = trainer.state.log_history
    end = max((i for i, entry in enumerate(history) if "train_runtime" in entry), default=-1)
    every = [
        (i > end, entry, trainer.evaluated_set(entry))
        for i, entry in enumerate(history)
        if any(key.startswith("eval_") for key in entry)
    ]
    own = [(after, entry, of) for after, entry, of in every if of.is_own]
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    if end >= 0 and any(after for after, _, _ in own):
        chosen = [(entry, of) for after, entry, of in own if after]
    else:
        step = best if best is not None else own[-1][1].get("step") if own else None
        chosen = [(entry, of) for _, entry, of in own if entry.get("step") == step]
    data = trainer.eval_dataset
    several = data if isinstance(data, Mapping) else {}
    scores: dict[tuple[str | None, str], Score] = {}
    for entry, of in chosen:
        for key, value in _metrics(entry):
            name = max((name for name in several if key.startswith(f"{name}_")), key=len, default=of.name)
            split = of.split or split_of(data if name is None else several.get(name)) or name
            key = _without(name, key)
            scores[name, key] = Score(name, key, value, split)
    taken = {None, *several, *(score.evaluated_on for score in scores.values())}
    taken |= {score.split for score in scores.values()}
    for after, entry, of in every:
        is_of_model = after and entry.get("step") == trainer.state.global_step
        if is_of_model and not of.is_own and of.name not in taken:
            for key, value in _metrics(entry):
                key = _without(of.name, key)
                scores[of.name, key] = Score(of.name, key, value, of.name)
    return list(scores.values())


def _metrics(entry: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [
        (key.removeprefix("eval_"), value)
        for key, value in entry.items()
        if key.startswith("eval_") and not key.endswith(_NO_METRICS)
    ]


def _without(name: str | None, key: str) -> str:
    # Not only in front: EMA's are last_<set>_<metric>.
    return key if name is None else re.sub(rf"(^|_){re.escape(name)}_", r"\1", key, count=1)


def split_of(data: Any) -> str | None:
    """The split of a data set that knows it, such as those of `datasets`."""
    split = getattr(data, "split", None)
    return None if split is None else str(split)
