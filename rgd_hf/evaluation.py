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

    Attributes:
        eval_losses: after an evaluation, on every process: the plain loss of each sample of the evaluation set, the
            mean over the sample's items, in the order of `EvalLoopOutput.predictions`; float32 `[samples]` on the CPU,
            NaN for a sample without items. None where the losses are the stock Trainer's affair.
    """

    eval_losses: Tensor | None = None
    _eval_items: Tensor | None = None
    _eval_batches: list[Tensor]

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
            items = accelerator.pad_across_processes(items, dim=0, pad_index=-1)
        # Drops the repeats at the end of the last batch, which plain gather (Seq2SeqTrainer's choice) keeps.
        self._eval_batches.append(accelerator.gather_for_metrics(items))

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As the Trainer's, with the exact loss of the whole set."""
        self._eval_batches, self.eval_losses = [], None
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if self._eval_batches:
            items = torch.cat(self._eval_batches).cpu()
            self._eval_batches = []
            items = items[items[:, 1] >= 0]
            self.eval_losses = items[:, 0] / items[:, 1]  # 0 / 0 is NaN
            total, count = items.double().sum(dim=0).tolist()
            if count > 0 and total == total and output.metrics is not None:
                output.metrics[f"{metric_key_prefix}_loss"] = total / count
        return output
