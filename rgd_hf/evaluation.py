"""The plain loss of a whole evaluation set, the same however it is cut into batches and processes."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Seq2SeqTrainer
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import ModelOutput

from rgd_hf.batches.columns import SAMPLE_WEIGHT
from rgd_hf.batches.flattened import SAMPLE_LENGTHS, labels_of_row
from rgd_hf.batches.repeats import ignore_repeats_in_row
from rgd_hf.evaluated_items import EvaluatedItems
from rgd_hf.items import columns_of, without
from rgd_hf.loss_sources.base import by_name
from rgd_hf.overrides import set_on
from rgd_hf.trainer_base import TrainerBase

_WITHOUT_REPEATS = "Set per_device_eval_batch_size=1, or evaluate on one process."


class _WithLossOfTrainer(nn.Module):
    """A model that is asked for its own loss, and gives that of the Trainer's `compute_loss`: by one forward pass too.

    The Seq2SeqTrainer asks for it where it generates, and smooths its labels by itself.

    Args:
        model: as the Trainer calls it.
        trainer: the Trainer, whose `label_smoother` is gone once it has its loss.
    """

    def __init__(self, model: nn.Module, trainer: Any):
        super().__init__()
        self.module, self.trainer = model, trainer
        self.training = model.training

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def forward(self, *args: Any, **inputs: Any) -> Any:
        trainer = self.trainer
        if args or any(inputs.get(name) is None for name in trainer.label_names):
            return self.module(*args, **inputs)
        number = trainer._get_num_items_in_batch([inputs], trainer.args.device)
        loss, outputs = trainer.compute_loss(
            self.module, inputs, return_outputs=True, num_items_in_batch=number
        )
        trainer.label_smoother = None
        if isinstance(outputs, tuple):
            return (loss, *outputs[1:])
        if not isinstance(outputs, ModelOutput):
            return {"loss": loss, **outputs} if isinstance(outputs, Mapping) else (loss, outputs)
        return with_loss(outputs, loss)


def with_loss(outputs: ModelOutput, loss: Tensor) -> ModelOutput:
    """A model's outputs with `loss` as the first of them, where Trainers and overrides look for it; in place."""
    outputs["loss"] = loss
    outputs.move_to_end("loss", last=False)
    return outputs


class PlainEvaluationMixin(TrainerBase):
    """Makes `eval_loss` the mean of the plain losses over the items of the evaluation set.

    The stock Trainer averages the means of the batches, so that its `eval_loss` depends on the batch size where
    batches hold different numbers of tokens, and on the repeats that fill up the last batch of several processes.
    Where an override of `compute_loss` or `prediction_step` returns another loss than the plain one, `eval_loss` is
    what the stock Trainer makes of that.

    Attributes:
        eval_losses: after an evaluation, on every process: the plain loss of each sample of the evaluation set, the
            mean over the sample's items (plus the batch's auxiliary loss, where the model adds one), in the order of `EvalLoopOutput.predictions`; float32 `[samples]` on the CPU,
            NaN for a sample without items. Where the losses have other rows than samples (a flat loss per token, several
            samples in a row), one of each row. None where the loss is the stock Trainer's, which has no losses per sample.
    """

    eval_losses: Tensor | None = None
    # Sums and counts of the samples of the innermost evaluation under way.
    _eval_batches: EvaluatedItems | tuple[()] = ()
    _collects = False
    # The plain loss that was computed last, with the sums and counts of its samples.
    _plain: tuple[Tensor, Tensor] | None = None
    _evaluates = False
    # Whether nobody will look at the outputs of the batch that is evaluated.
    _evaluates_loss_only = False
    # Whether label_names are not those of the forward, which has none.
    _labels_assumed = False

    if TYPE_CHECKING:

        @property
        def unreduces_losses(self) -> bool: ...  # noqa: D102

    def plain_loss(self, losses: Tensor, valid: Tensor, auxiliary: Tensor | None = None) -> Tensor:
        """Mean of the valid `losses` of one evaluation batch (plus the model's auxiliary loss).

        Args:
            losses: unreduced, `[batch]` or `[batch, items]`, 0 where not valid.
            valid: bool, of the same shape.
            auxiliary: 0-dimensional, or None.

        Returns:
            0-dimensional float32.
        """
        # A batch may have no rows, whose items reshape could not tell.
        by_row = [each.flatten(1) if each.dim() > 1 else each[:, None] for each in (losses, valid)]
        sums, counts = by_row[0].sum(dim=1), by_row[1].sum(dim=1).to(losses.dtype)
        if auxiliary is not None:
            sums = sums + auxiliary * counts
        loss = sums.sum() / counts.sum().clamp(min=1)
        if self._collects:
            self._plain = loss.detach(), torch.stack([sums, counts], dim=1).detach()
        return loss

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        outer, self._evaluates = self._evaluates, True
        try:
            yield
        finally:
            self._evaluates = outer

    @contextmanager
    def _outputs_behind_the_loss(self) -> Iterator[None]:
        """Inside, the Trainer finds all the outputs: it takes the first element of whatever is no dict to be the loss."""
        compute_loss = self.compute_loss

        def loss_and_outputs(*args: Any, **kwargs: Any) -> Any:
            returned = compute_loss(*args, **kwargs)
            if isinstance(returned, tuple) and len(returned) == 2:
                loss, outputs = returned[0], by_name(returned[1])
                if isinstance(outputs, Tensor):
                    return loss, (loss, outputs)
                # It has no elements that metrics could see.
                if not hasattr(outputs, "__getitem__"):
                    return loss, (loss,)
                return loss, outputs
            return returned

        with set_on(self, "compute_loss", loss_and_outputs):
            yield

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **kwargs,
    ):
        """As the Trainer's; evaluation counts every sample once, so a `sample_weight` column is ignored."""
        inputs = without(inputs, SAMPLE_WEIGHT)
        outer, self._evaluates_loss_only = self._evaluates_loss_only, prediction_loss_only
        smoother, label_names = self.label_smoother, self.label_names
        if self._has_loss_without_labels(inputs):
            self.label_names = []
        if self._generates and not prediction_loss_only and self.unreduces_losses:
            model = _WithLossOfTrainer(model, self)
        try:
            with self._evaluating(), self._outputs_behind_the_loss():
                return super().prediction_step(
                    model, inputs, prediction_loss_only, ignore_keys=ignore_keys, **kwargs
                )
        finally:
            self._evaluates_loss_only = outer
            self.label_smoother, self.label_names = smoother, label_names

    def _has_loss_without_labels(self, inputs: Any) -> bool:
        """Whether a batch asks for a loss (`return_loss`, as those of CLIP do) and has no labels.

        The stock Trainer computes it where there are no `label_names`.
        """
        columns = columns_of(inputs)
        if not (self._labels_assumed and self.unreduces_losses and columns.get("return_loss")):
            return False
        return all(columns.get(name) is None for name in self.label_names)

    @property
    def _generates(self) -> bool:
        return isinstance(self, Seq2SeqTrainer) and bool(getattr(self.args, "predict_with_generate", False))

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As the Trainer's, with the exact loss of the whole set."""
        # An evaluation may run inside another, in its compute_metrics.
        outer_batches, nested = self._eval_batches, self._collects
        of_instance = self.__dict__.get("prediction_step")
        batches = EvaluatedItems(self.accelerator, dataloader)
        self._eval_batches, self._collects = batches, True
        if not nested:
            self.__dict__["prediction_step"] = self._collecting(self.prediction_step)
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        finally:
            self._eval_batches, self._collects = outer_batches, nested
            if of_instance is not None:
                self.__dict__["prediction_step"] = of_instance
            else:
                del self.__dict__["prediction_step"]
        self.eval_losses = None
        if len(batches):
            items = batches.of_all_processes()
            self.eval_losses = items[:, 0] / items[:, 1]  # 0 / 0 is NaN
            total, count, changed = items.double().sum(dim=0).tolist()
            if total == total and not changed and output.metrics is not None:
                output.metrics[f"{metric_key_prefix}_loss"] = total / count if count > 0 else math.nan
                if count == 0:
                    warnings.warn(
                        f"{metric_key_prefix}_loss is NaN: of {len(items):,} evaluated rows, none has a label that counts. "
                        "Labels of -100 do not count: look at what the data collator makes of them (a template that is not "
                        "found) and at the maximum length, which may cut all of them away.",
                        stacklevel=2,
                    )
        return output

    def _collecting(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The `prediction_step` of the class, overrides included, that also keeps the losses of the samples."""

        def prediction_step(model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self._plain = None
            in_row = self._ignores_repeats_in_row(inputs)
            with self._evaluating():
                result = step(model, inputs, *args, **kwargs)
            plain, self._plain = self._plain, None
            if plain is not None and result[0] is not None:
                assert isinstance(self._eval_batches, EvaluatedItems)
                loss, items = plain
                returned = torch.as_tensor(result[0], device=loss.device).detach()
                changed = ((returned != loss) & ~(returned.isnan() & loss.isnan())).any()
                self._eval_batches.add(items, changed, in_row)
            return result

        return prediction_step

    def _ignores_repeats_in_row(self, inputs: Any) -> bool:
        """Whether the batch is one row of several samples; the labels of those that are repeats are ignored."""
        if not isinstance(inputs, MutableMapping):
            return False
        lengths = inputs.pop(SAMPLE_LENGTHS, None)
        evaluated = self._eval_batches
        if not isinstance(evaluated, EvaluatedItems):
            return False
        share = evaluated.share()
        if share is None or share.samples == 1 or not self.unreduces_losses:
            return False
        in_row = labels_of_row(inputs, self.label_names)
        if in_row:
            share = share if evaluated.at_end else share._replace(kept=share.samples)
            ignore_repeats_in_row(inputs, share, lengths, in_row, _WITHOUT_REPEATS)
        return bool(in_row)
