"""The plain loss of a whole evaluation set, the same however it is cut into batches and processes."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput

from rgd_hf.data import SAMPLE_WEIGHT

# A mixin stands to the left of the Trainer class that it is mixed into; type checkers see the Trainer below it.
if TYPE_CHECKING:
    from transformers import Trainer as TrainerBase
else:
    TrainerBase = object


class PlainEvaluationMixin(TrainerBase):
    """Makes `eval_loss` the mean of the plain losses over the items of the evaluation set.

    The stock Trainer averages the means of the batches, so that its `eval_loss` depends on the batch size where
    batches hold different numbers of tokens, and on the repeats that fill up the last batch of several processes.
    """

    _eval_items: Tensor | None = None
    _eval_sums: Tensor | None = None

    def plain_loss(self, losses: Tensor, valid: Tensor, auxiliary: Tensor | None = None) -> Tensor:
        """Mean of the valid `losses` of one evaluation batch (plus the model's auxiliary loss).

        Args:
            losses: un-reduced, `[batch]` or `[batch, items]`, 0 where not valid.
            valid: bool, of the same shape.
            auxiliary: 0-dimensional, or None.

        Returns:
            0-dimensional float32.
        """
        rows = losses.shape[0]
        sums = losses.reshape(rows, -1).sum(dim=1)
        counts = valid.reshape(rows, -1).sum(dim=1).to(sums.dtype)
        if auxiliary is not None:
            sums = sums + auxiliary * counts
        self._eval_items = torch.stack([sums, counts], dim=1)
        return sums.sum() / counts.sum().clamp(min=1)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **kwargs,
    ):
        """As the Trainer's; evaluation counts every sample once, so a `sample_weight` column is left out."""
        inputs = {k: v for k, v in inputs.items() if k != SAMPLE_WEIGHT}
        self._eval_items = None
        result = super().prediction_step(
            model, inputs, prediction_loss_only, ignore_keys=ignore_keys, **kwargs
        )
        if self._eval_items is not None:
            self._add_eval_items(self._eval_items)
        return result

    def _add_eval_items(self, items: Tensor) -> None:
        accelerator = self.accelerator
        if not accelerator.even_batches:
            items = accelerator.pad_across_processes(items, dim=0)
        # Drops the repeats at the end of the last batch, which plain gather (Seq2SeqTrainer's choice) keeps.
        sums = accelerator.gather_for_metrics(items).double().sum(dim=0)
        self._eval_sums = sums if self._eval_sums is None else self._eval_sums + sums

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As the Trainer's, with the exact loss of the whole set."""
        self._eval_sums = None
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if self._eval_sums is not None:
            total, count = self._eval_sums.tolist()
            self._eval_sums = None
            if count > 0 and total == total:
                output.metrics[f"{metric_key_prefix}_loss"] = total / count
        return output
