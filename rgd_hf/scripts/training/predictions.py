"""What a model predicts for every sample of its evaluation data, kept from the evaluation itself."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from accelerate import PartialState
from transformers.trainer_utils import EvalLoopOutput

from rgd_hf.scripts.training.calibration import confidence_of
from rgd_hf.scripts.training.metrics import predicted_labels

if TYPE_CHECKING:
    from rgd_hf import ReweightedTrainer as TrainerBase
else:
    TrainerBase = object

PREDICTIONS = "predictions"
IGNORED = -100


class PredictionsMixin(TrainerBase):
    """Keeps the predictions of the last evaluation, for any class that derives from `ReweightedTrainer`.

    Attributes:
        predictions: by the prefix of the metrics (`"eval"`, or `"eval_<name>"` where there are several evaluation
            sets), a table as `predictions_table` describes it.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self.predictions: dict[str, pd.DataFrame] = {}
        super().__init__(*args, **kwargs)

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, with every sample."""
        with self._drop_last_is_of_training():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, with every sample."""
        with self._drop_last_is_of_training():
            return super().get_test_dataloader(*args, **kwargs)

    @contextmanager
    def _drop_last_is_of_training(self) -> Iterator[None]:
        """Inside, the Trainer does not leave out the last samples of an evaluation."""
        asked = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = asked

    def predicted(self, outputs: Any) -> np.ndarray:
        """The predictions in what the evaluation keeps of the model's outputs: here logits `[samples, classes]`.

        Returns:
            Class numbers int64 `[samples]`, 0 and 1 `[samples, classes]` (several labels per sample), or float64
            `[samples]` (regression), by the model's `problem_type`.
        """
        model: Any = self.accelerator.unwrap_model(self.model)
        return predicted_labels(outputs, model.config.problem_type)

    def confidence(self, outputs: Any) -> np.ndarray:
        """Probability of the predicted class, float `[samples]`: asked for where there is one label per sample."""
        return confidence_of(outputs[0] if isinstance(outputs, tuple) else outputs)

    def evaluation_order(self, dataset: Any) -> np.ndarray | None:
        """The rows of `dataset` in the order in which evaluation goes through them, int64; None: as they stand."""
        return None

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        order = self.evaluation_order(eval_dataset)
        return super()._get_eval_sampler(eval_dataset) if order is None else order.tolist()

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As the Trainer's; what it predicted goes to `predictions`."""
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if output.predictions is not None and output.label_ids is not None:
            predicted = self.predicted(output.predictions)
            table = predictions_table(
                np.asarray(output.label_ids),
                predicted,
                None if self.eval_losses is None else self.eval_losses.numpy(),
                self.confidence(output.predictions) if are_classes(predicted) else None,
            )
            order = self.evaluation_order(dataloader.dataset)
            if order is not None:
                table = table.set_index(order).sort_index()
            self.predictions[metric_key_prefix] = table
        return output


def are_classes(predictions: np.ndarray) -> bool:
    """Whether predictions are class numbers, one per sample."""
    return predictions.ndim == 1 and bool(np.issubdtype(predictions.dtype, np.integer))


def predictions_table(
    labels: np.ndarray,
    predictions: np.ndarray,
    losses: np.ndarray | None,
    confidence: np.ndarray | None = None,
) -> pd.DataFrame:
    """One row per sample.

    Args:
        labels: int or float `[samples]`, or `[samples, classes]` of 0 and 1.
        predictions: predictions of the same shape.
        losses: float32 `[samples]`, or None.
        confidence: probability of the predicted class, float `[samples]`, or None.

    Returns:
        The columns `label`, `prediction`, `correct` (not for real-valued labels; empty where a sample counts for
        nothing, as an unreadable image does), `loss` (the plain one, unsmoothed and without weight) and `confidence`.
    """
    several = predictions.ndim == 2
    if several:
        labels = labels.astype(np.int64)
        table = pd.DataFrame({"label": list(labels), "prediction": list(predictions)})
    else:
        table = pd.DataFrame({"label": labels, "prediction": predictions})
    if np.issubdtype(predictions.dtype, np.integer):
        right = labels == predictions
        table["correct"] = pd.array(right.all(axis=1) if several else right, dtype="boolean")
        if not several:
            table.loc[labels == IGNORED, "correct"] = pd.NA
    if losses is not None:
        table["loss"] = losses
    if confidence is not None:
        table["confidence"] = confidence
    return table


def write_predictions(trainer: PredictionsMixin, directory: str | Path) -> list[Path]:
    """Write the last evaluation's predictions: `predictions.parquet`, or `predictions_<name>.parquet` for each of several.

    Only the main process writes.

    Args:
        trainer: that has evaluated its `eval_dataset`.
        directory: the directory of the run.

    Returns:
        The files.
    """
    names = {"eval": PREDICTIONS}
    if isinstance(trainer.eval_dataset, dict):
        names = {f"eval_{name}": f"{PREDICTIONS}_{name}" for name in trainer.eval_dataset}
    files = {prefix: Path(directory) / f"{name}.parquet" for prefix, name in names.items()}
    if PartialState().is_main_process:
        for prefix, path in files.items():
            write_table(trainer.predictions[prefix], path)
    return list(files.values())


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a parquet file, whole or not at all; its directory is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    table.to_parquet(partial, index=False)
    os.replace(partial, path)
