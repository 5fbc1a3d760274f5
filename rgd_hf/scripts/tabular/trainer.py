"""The Trainer of tables: batches cut on the device, early stopping without checkpoints."""

import copy
import math
from typing import Any

from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_callback import ProgressCallback

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.tabular.batches import BatchLoader
from rgd_hf.scripts.tabular.scores import better_is_larger


class TabularTrainer(ReweightedTrainer):
    """`ReweightedTrainer` over `TensorTable`s: the data lie on the device and batches are cut by indexing."""

    train_dataset: Any
    eval_dataset: Any

    def get_train_dataloader(self) -> Any:
        """Shuffled batches of the training table."""
        return BatchLoader(
            self.train_dataset,
            self._train_batch_size,
            shuffle=True,
            seed=self.args.seed,
            rank=self.args.process_index,
            world_size=self.args.world_size,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """All rows of the evaluation table, in order."""
        return BatchLoader(
            self.eval_dataset if eval_dataset is None else eval_dataset, self.args.eval_batch_size
        )

    def floating_point_ops(self, inputs: Any) -> int:
        """None: the Trainer's estimate counts tokens, and walks through all parameters in every step."""
        return 0


class KeepBest(TrainerCallback):
    """Stops when the validation score has not risen for `patience` epochs, and puts the best weights back.

    They are kept in memory: a checkpoint an epoch would take longer than the epoch of a small table.

    Args:
        score: what is compared, as `compute_metrics` calls it; the validation loss decides between equals.
        patience: epochs.
    """

    def __init__(self, score: str, patience: int):
        self.score = score
        self.patience = patience
        self.best: tuple[float, float] = (-math.inf, -math.inf)
        self.best_epoch = 0.0
        self.weights: dict[str, Tensor] = {}
        self.waited = 0

    def on_evaluate(self, args, state, control, model=None, metrics: Any = None, **kwargs):
        # Of losses that are not finite the next step says more.
        if math.isnan(metrics[f"eval_{self.score}"]) and math.isfinite(metrics["eval_loss"]):
            raise UserError(
                f"--metric_for_best_model {self.score}: on the validation rows it is not a number; choose another."
            )
        now = (better_is_larger(self.score, metrics[f"eval_{self.score}"]), -metrics["eval_loss"])
        if now > self.best or not self.weights:
            self.best, self.best_epoch, self.waited = now, state.epoch, 0
            self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        else:
            self.waited += 1
            control.should_training_stop = control.should_training_stop or self.waited >= self.patience
        return control

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if self.weights:
            model.load_state_dict(self.weights)


def with_changes(args: ReweightedTrainingArguments, **changes: Any) -> ReweightedTrainingArguments:
    """A copy of `args` with some fields set."""
    changed = copy.copy(args)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def quiet(trainer: TabularTrainer) -> TabularTrainer:
    """`trainer` without a line of output for every epoch."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer
