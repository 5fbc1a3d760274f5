"""The metrics of a run that its model card reports: those of the model as it is, under names that readers and the Hub know."""

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
class Score:
    """A metric of the last evaluation.

    Attributes:
        evaluated_on: the evaluation set's name where the Trainer has several, else None.
        key: as the Trainer logs it, without prefixes, e.g. `"accuracy"`.
        value: as it was logged.
    """

    evaluated_on: str | None
    key: str
    value: Any

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
    """The metrics that belong to the model as it is: of an evaluation after training, else of its best or last step."""
    history = trainer.state.log_history
    end = max((i for i, entry in enumerate(history) if "train_runtime" in entry), default=-1)
    evaluations = [entry for entry in history if any(key.startswith("eval_") for key in entry)]
    after = [entry for entry in history[end + 1 :] if entry in evaluations]
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    if end >= 0 and after:
        chosen = after
    elif best is not None:
        chosen = [entry for entry in evaluations if entry.get("step") == best]
    else:
        chosen = [entry for entry in evaluations if entry.get("step") == evaluations[-1].get("step")]
    several = trainer.eval_dataset if isinstance(trainer.eval_dataset, Mapping) else {}
    scores = {}
    for key, value in (item for entry in chosen for item in entry.items()):
        if key.startswith("eval_") and not key.endswith(_NO_METRICS):
            key = key.removeprefix("eval_")
            names = [name for name in several if key.startswith(f"{name}_")]
            name = max(names, key=len, default=None)
            key = key if name is None else key.removeprefix(f"{name}_")
            scores[name, key] = Score(name, key, value)
    return list(scores.values())
