"""The Trainer that weights the gradient of each sample by a function of its own loss.

One way through: batch -> model -> unreduced losses -> weights -> one scalar -> backward. A step's objective is
`sum_i w_i * loss_i / N`, where `w_i` is the detached weight of item i (a sample or a token) and N the number of items
of the WHOLE optimizer step: all its micro-batches, all processes.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Trainer
from transformers.trainer_pt_utils import find_batch_size
from transformers.utils import ModelOutput

from rgd_hf.batches.columns import SAMPLE_WEIGHT, WithColumns
from rgd_hf.batches.last_batch import LastBatchMixin
from rgd_hf.batches.resumed_streams import ResumedStreams
from rgd_hf.batches.trainer import ColumnsMixin
from rgd_hf.class_weights import check_counted
from rgd_hf.evaluation import PlainEvaluationMixin, with_loss
from rgd_hf.hub.model_card import ModelCardMixin
from rgd_hf.hub.push import PushMixin
from rgd_hf.items import (
    SMALLEST,
    Items,
    columns_of,
    losses_at_level,
    reference_at_level,
    zero_uncounted,
)
from rgd_hf.loss_sources import BatchLosses, HeadLosses, MovableBatch, PerSampleLossFn
from rgd_hf.loss_sources.trainer import PerSampleLossesMixin
from rgd_hf.observers.logs import LogsMixin
from rgd_hf.observers.statistics import NonFiniteLossError
from rgd_hf.optimizer_step import OptimizerStepMixin
from rgd_hf.overrides import argument, check_class, overrides_before, parameters_to_the_right
from rgd_hf.set_up import SetUpMixin
from rgd_hf.trainer_arguments import ArgumentsMixin
from rgd_hf.training_args import ReweightingArguments, check_read, take_weighting
from rgd_hf.weightings.trainer import WeightingMixin

__all__ = ["NonFiniteLossError", "ReweightedSeq2SeqTrainer", "ReweightedTrainer", "ReweightingMixin"]


class ReweightingMixin(
    ArgumentsMixin,
    SetUpMixin,
    PushMixin,
    ModelCardMixin,
    WeightingMixin,
    ColumnsMixin,
    LastBatchMixin,
    LogsMixin,
    PlainEvaluationMixin,
    OptimizerStepMixin,
    PerSampleLossesMixin,
):
    """Re-weighted gradient descent for any class that derives from `transformers.Trainer`.

    Put it first: `class MyTrainer(ReweightingMixin, Seq2SeqTrainer)`. All arguments of the Trainer are kept.

    Args:
        per_sample_loss_fn: `(outputs, labels) -> losses` for models whose per-sample losses the library does not know.
            `outputs` is what the model's forward returned without labels; `labels` is the tensor of the batch (a dict
            of tensors where the batch has several of the Trainer's `label_names`). Return unreduced losses, one element per item:
            `[batch]` or `[batch, tokens]`; or a pair of them and a bool mask of the same shape that marks the items
            that count. Without a mask, losses of 0 whose integer label is -100 do not count, as `cross_entropy` ignores
            them.
        **keywords: arguments of the Trainer, and fields of `ReweightingArguments` (`reweighting`, `tau`, `target_ess`,
            `normalize_weights`, ...), each of which overrides that of `args`, as `target_ess=None` does, too. `reweighting` may also be an object of
            `rgd_hf.weightings` (`KL(tau=3.0)`), or a function of losses `[items]` to weights `[items]` (see
            `rgd_hf.weightings.Function`). `class_weights` may be a list or tensor with one non-negative number per class, or a dict
            from the classes 0, 1, ... to their numbers.

    Attributes:
        stop_on_non_finite_loss: whether a NaN or infinite training loss ends the run with an error. None, the default,
            does so wherever losses are re-weighted; with `reweighting="none"` the run then continues, as with the stock
            Trainer. In a hyperparameter search it ends the trial, with a warning and the objective NaN, and no error.

    Raises:
        NotImplementedError: the model's head is not known and no `per_sample_loss_fn` is given
            (with `reweighting="none"` such a model trains as with the stock Trainer).
        ValueError: a setting is not allowed, or cannot be exact in this set-up; or there is a `compute_loss_func` beside
            a `per_sample_loss_fn` or `compute_per_sample_losses`.
        NonFiniteLossError: in training, at the next log, checkpoint or end after a loss was NaN or infinite. No
            further checkpoint is written.
        WeightsError: in training, a rule or function returned weights of a wrong shape (at once); or a negative, NaN or
            infinite one (at the next log, checkpoint or end).

    References:
        Kumar, Majmundar, Nagaraj, Suggala: Stochastic Re-weighted Gradient Descent via Distributionally Robust
        Optimization. TMLR 2024, arXiv 2306.09222.
    """

    def __init__(self, *args: Any, per_sample_loss_fn: PerSampleLossFn | None = None, **keywords: Any):
        given, trainer_arguments = self._split_settings(keywords)
        rule, given = take_weighting(given)
        self.data_collator: Any
        self.label_names: Any
        self.per_sample_loss_fn = per_sample_loss_fn
        self.stop_on_non_finite_loss: bool | None = None
        super().__init__(*args, **trainer_arguments)
        self.add_callback(ResumedStreams)
        self._note_dropped_columns(
            argument(type(self), ReweightingMixin, "train_dataset", args, trainer_arguments)
        )
        self._take_settings(given)
        if rule is None:
            check_read(given, self.args.reweighting, self.args.target_ess)
        if rule is not None:
            self._set_weighting(rule, given=True)
        if not self.label_names and not self.can_return_loss and self._has_own_losses:
            # The forward knows no labels, but the function or method that computes the losses does.
            self.label_names = ["labels"]
            self._labels_assumed = True
            self._signature_columns = None
        self._reset_step_state()
        self._check_set_up()

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        check_class(cls, ReweightingMixin)

    @classmethod
    def _split_settings(cls, keywords: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The keywords that are settings of re-weighting, and those that are the Trainer's."""
        names = ReweightingArguments.__dataclass_fields__
        elsewhere = parameters_to_the_right(cls, ReweightingMixin, names)
        for name in sorted(elsewhere.keys() & keywords.keys()):
            warnings.warn(
                f"{name} goes to {elsewhere[name].__name__}, which takes an argument of that name. The setting of "
                f"re-weighting is set in args: ReweightedTrainingArguments({name}=...).",
                stacklevel=3,
            )
        given = {
            name: value
            for name, value in keywords.items()
            if name in names
            and name not in elsewhere
            # None is a value of some settings; of the others it is none.
            and (value is not None or names[name].default is None)
        }
        rest = {name: value for name, value in keywords.items() if name not in names or name in elsewhere}
        return given, rest

    # --- batch -> model -> unreduced losses -> weights -> one scalar ------------------------------------------------

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The re-weighted mean over a batch in training, the plain mean in evaluation and where there is no gradient.

        An override may add to what this returns, multiply it, or call it several times: `training_step` multiplies what
        the outermost override returns by the batch's share of the optimizer step. It therefore hands overrides
        `num_items_in_batch=None`, for a mean over the batch.

        Args:
            model: the model, wrapped or not.
            inputs: a batch with its labels, and optionally `sample_weight` `[batch]`. A list or tuple goes to
                `compute_per_sample_losses` as it is.
            return_outputs: whether to return the model's outputs too. Without them (as in training, unless an override
                asks for them) the losses of a language model need no logits: see `fused_lm_head`.
            num_items_in_batch: number of items of a whole optimizer step over all processes, to divide by in place of
                the batch's own. Ignored inside `training_step`.

        Returns:
            0-dimensional float32 loss, or `(loss, outputs)`.

        Raises:
            NotImplementedError: a `training_step` asks for the loss without a gradient.
        """
        if self._loss_call is not None:
            self._loss_call.reached = True
        source = self._loss_source()
        given, columns, inputs = inputs, columns_of(inputs), self._columns_by_name(inputs)
        if source is None:
            if self._needs_weights:
                raise self._cannot_unreduce()
            if isinstance(inputs, WithColumns):
                inputs = MovableBatch(inputs, inputs.columns)
                inputs.pop(SAMPLE_WEIGHT, None)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        plain = self._is_plain()
        if isinstance(inputs, WithColumns):
            # Stock evaluation asks Liger's forward for it, which then cannot do without labels.
            inputs.pop("skip_logits", None)
        if not plain and self._loss_call is not None:
            self._check_parts(self._loss_call.passes, given, "compute_loss")
        elif not plain and self._trains_by_itself:
            self._check_parts(self._passes, given, "training_step")
        smoothing = 0.0 if plain else self.args.label_smoothing_factor
        batch = source.run(
            model, inputs, smoothing, not self.args.fused_lm_head or self._shows(return_outputs)
        )
        if plain:
            loss = self.plain_loss(batch.losses.float(), batch.valid, batch.auxiliary)
        else:
            if not isinstance(source, HeadLosses) and self._level() == "sample":
                self._check_rows(source.name, batch.losses, columns)
            loss = self._objective(batch, columns, num_items_in_batch)
        outputs = batch.outputs
        if isinstance(outputs, tuple | list):
            # The Trainer takes the first element to be the loss.
            outputs = (loss, *outputs)
        elif return_outputs and isinstance(outputs, ModelOutput):
            outputs = with_loss(outputs, loss)
        return (loss, outputs) if return_outputs else loss

    def _shows(self, return_outputs: bool) -> bool:
        """Whether the outputs that `compute_loss` returns are used: not when only the loss is evaluated."""
        asked = overrides_before(self, ReweightingMixin, "compute_loss")
        return return_outputs and bool(asked or not self._evaluates_loss_only)

    def _is_plain(self) -> bool:
        """Whether the loss is computed for evaluation rather than training.

        Raises:
            NotImplementedError: it is computed for training, but without a gradient.
        """
        if self._evaluates or torch.is_grad_enabled():
            return self._evaluates
        if self._in_step and self._needs_weights:
            raise self._refusal(
                "compute_loss"
                if self._loss_call is not None and self._overrides("compute_loss")
                else "training_step",
                "asks for the loss without a gradient, but the weights of re-weighting are constants of a gradient",
                f"ask for the loss with gradients on, or {self._without_weights}",
            )
        return not self._in_step

    @property
    def _in_step(self) -> bool:
        """Whether a `training_step` asks for the loss, not a callback or a script."""
        return self._loss_calls is not None or self._trains_by_itself

    def _objective(self, batch: BatchLosses, inputs: Any, num_items: Any) -> Tensor:
        losses, token_reference = batch.losses, batch.reference
        level, sample_weight = self._level(), inputs.get(SAMPLE_WEIGHT)
        self._check_first_batch(losses, token_reference, inputs)
        left_out = self._left_out if sample_weight is not None and not self._has_sample_weights else None
        if left_out is not None and sample_weight.numel() != len(losses):
            token_reference = token_reference * self._counts_or_not(left_out, losses)
            sample_weight = None
        if self.args.class_weights is not None:
            check_counted(self.args.class_weights, self.train_dataset)
            losses = zero_uncounted(losses, token_reference)
        losses = losses_at_level(losses, token_reference, level)
        reference = reference_at_level(token_reference, level, sample_weight)
        if sample_weight is not None or token_reference is not batch.reference:
            losses = zero_uncounted(losses, reference)
        items = Items(losses.detach(), reference, inputs)
        if not self.is_in_train:
            self._end_step()
        if not self.is_in_train or not self._is_cut:
            self._tell_rule([items], of_all_processes=False)
        elif self._counts_ahead and self._in_step and self._what_may_change_items() is not None:
            self._compare_counts(items)
        weights = self._weights_of(items, inputs)
        weighted = reference * weights
        mass = (weighted if self.args.normalize_weights else reference).sum()
        # In this order, and no other: it decides the last bits of every gradient, and with them which numbers the published
        # runs give again.
        loss = (weighted * losses).sum() / mass.clamp(min=SMALLEST)
        if batch.auxiliary is not None:
            # It belongs to the micro-batch, so a step has the mean of its micro-batches', by their share of the step.
            loss = loss + batch.auxiliary * (mass > 0)
        if self._in_step and torch.is_grad_enabled():
            with torch.no_grad():
                self.statistics.limit = self.weighting.clips_above()
                self._show_observers(items, weights)
                self._add_sums(items)
        return self._weighted_loss(loss, mass, num_items)

    # --- steps, and the state of a training ----------------------------------------------------------------------------------------

    def _reset_step_state(self) -> None:
        self._reset_step()
        self._steps_begun = self._step_finished = self._logged_step = 0
        self._step_is_open, self._divided_later = False, None
        self._start_rule()
        self._warned = self._first_batch_checked = self._trial_ends = self._has_sample_weights = False

    def _begin_step(self, batch_samples: list) -> None:
        # Before repeats are left out by weights of this package's own.
        self._has_sample_weights |= any(SAMPLE_WEIGHT in columns_of(batch) for batch in batch_samples)
        super()._begin_step(batch_samples)
        self._end_step()
        if self._is_cut:
            self._tell_rule(self._items_ahead(batch_samples))

    def _items_ahead(self, batches: list) -> Iterator[Items]:
        """The items of a step's micro-batches before their losses are known, which are 0."""
        source, level = self._head_ahead(), self._level()
        for batch in batches:
            reference = None if source is None else self._reference_ahead(source, batch)
            if reference is None:
                # What counts is known only after the forward pass.
                reference = torch.ones(self._samples_of(batch), device=self.args.device)
            columns = columns_of(batch)
            reference = reference_at_level(reference, level, columns.get(SAMPLE_WEIGHT))
            yield Items(torch.zeros_like(reference), reference, columns)

    def _samples_of(self, batch: Any) -> int:
        # A sample may have several rows, but one weight, group or index.
        columns = [columns_of(batch).get(name) for name in (SAMPLE_WEIGHT, *self._columns_read())]
        numbers = [len(column) for column in columns if isinstance(column, Tensor) and column.dim()]
        return numbers[0] if numbers else find_batch_size(batch) or 1

    # --- a training --------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any):
        """As the Trainer's.

        Raises:
            NonFiniteLossError: a loss was NaN or infinite; checkpoints written before are kept.
        """
        self._use_given_arguments()
        try:
            with self._guarded():
                result = super().train(*args, **kwargs)
        finally:
            # The stock Trainer leaves it on when a training ends with an exception.
            self.is_in_train = False
        self._end_step()
        self._stop_if_not_finite()
        return result

    def _inner_training_loop(self, *args: Any, **kwargs: Any):
        # Only here a search's trial has its model and settings; a batch size that did not fit begins here again.
        self._reset_step_state()
        check_counted(self.args.class_weights, self.train_dataset)
        self._check_set_up()
        self._start_observers()
        return super()._inner_training_loop(*args, **kwargs)


class ReweightedTrainer(ReweightingMixin, Trainer):
    """`transformers.Trainer` with re-weighted gradient descent; see `ReweightingMixin` for what it adds."""


class ReweightedSeq2SeqTrainer(ReweightingMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` with re-weighted gradient descent; see `ReweightingMixin` for what it adds."""
