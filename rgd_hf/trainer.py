"""The Trainer that weights every sample's gradient by a function of its own loss.

One way through: batch -> model -> un-reduced losses -> weights -> one scalar -> backward. A step's objective is
`sum_i w_i * loss_i / N`, where `w_i` is the detached weight of item i (a sample or a token) and N the number of items
of the WHOLE optimizer step: all its micro-batches, all processes.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Trainer

from rgd_hf.class_weights import as_setting
from rgd_hf.data import SAMPLE_WEIGHT, SampleWeightCollator, drop_repeats
from rgd_hf.diagnostics import NonFiniteLossError, WeightStatistics, stop_if_not_finite, warn_of_saturation
from rgd_hf.evaluation import PlainEvaluationMixin
from rgd_hf.gradients import check_gradients_can_be_rescaled, rescale_gradients
from rgd_hf.heads import bare_model
from rgd_hf.hub import ModelCardMixin
from rgd_hf.loss_sources import BatchLosses, CustomLosses, HeadLosses, PerSampleLossFn, find_loss_source
from rgd_hf.training_args import ReweightingArguments, check_reweighting, with_settings
from rgd_hf.weighting import (
    Items,
    clips_at_tau,
    compares_items,
    item_weights,
    losses_at_level,
    reference_at_level,
)

__all__ = ["NonFiniteLossError", "ReweightedSeq2SeqTrainer", "ReweightedTrainer", "ReweightingMixin"]


class ReweightingMixin(ModelCardMixin, PlainEvaluationMixin):
    """Re-weighted gradient descent for any class that derives from `transformers.Trainer`.

    Put it first: `class MyTrainer(ReweightingMixin, Seq2SeqTrainer)`. All arguments of the Trainer are kept.

    Args:
        per_sample_loss_fn: `(outputs, labels) -> losses` for models whose losses the library cannot un-reduce.
            `outputs` is what the model's forward returned without labels; `labels` is the tensor of the batch (a dict
            of tensors where the Trainer has several `label_names`). Return the losses before any reduction, one
            element an item: `[batch]` or `[batch, tokens]`; or a pair of them and a bool tensor of the same shape
            that says which items count.
        **settings: fields of `ReweightingArguments` (`reweighting`, `tau`, `target_ess`, `normalize_weights`, ...); each
            overrides that of `args`. `class_weights` may be a list or tensor of one non-negative number a class.

    Attributes:
        stop_on_non_finite_loss: whether a NaN or infinite training loss ends the run with an error. None, the default,
            does so wherever losses are re-weighted; with `reweighting="none"` the run then goes on, as the stock
            Trainer's would.

    Raises:
        NotImplementedError: the model's head is not known and no `per_sample_loss_fn` is given
            (with `reweighting="none"` such a model trains as with the stock Trainer).
        ValueError: a setting is not allowed, or cannot hold exactly in this set-up.
        NonFiniteLossError: in training, at the next log, checkpoint or end after a loss was NaN or infinite. No
            checkpoint is written from then on.

    References:
        Kumar, Majmundar, Nagaraj, Suggala: Stochastic Re-weighted Gradient Descent via Distributionally Robust
        Optimization. TMLR 2024, arXiv 2306.09222.
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *rest: Any,
        per_sample_loss_fn: PerSampleLossFn | None = None,
        **settings: Any,
    ):
        names = ReweightingArguments.__dataclass_fields__
        given = {name: value for name, value in settings.items() if name in names and value is not None}
        if "class_weights" in given:
            given["class_weights"] = as_setting(given["class_weights"])
        of_the_trainer = {name: value for name, value in settings.items() if name not in names}
        self.args: Any
        self.data_collator: Any
        self.per_sample_loss_fn = per_sample_loss_fn
        self.stop_on_non_finite_loss: bool | None = None
        # Whether the loss of the micro-batch is the objective of this class, not of a subclass that leaves it out.
        self._weighed = True
        self._source_found_for: tuple[Any, str | None] = (None, None)
        self._source: HeadLosses | CustomLosses | None = None
        super().__init__(model, args, *rest, **of_the_trainer)
        self.args = with_settings(self.args, given)
        self._step_mass: Tensor
        self._step_loss: Tensor
        self._reset_step_state()
        self._check_set_up()

    # --- settings and where the losses come from --------------------------------------------------------------------

    def _check_set_up(self) -> None:
        args = self.args
        check_reweighting(args)
        if max(self.get_cp_size(), self.get_sp_size(), self.get_tp_size()) > 1:
            raise NotImplementedError(
                "Re-weighting is not written for context, sequence or tensor parallelism, where one process sees a "
                "part of a sample or several see the same: use data parallelism (DDP, FSDP, DeepSpeed ZeRO)."
            )
        source = self._loss_source()
        if source is None:
            if args.reweighting != "none" or args.class_weights is not None:
                raise self._cannot_unreduce()
            return
        level = self._level()
        if compares_items(args) and level == "sample" and args.train_batch_size == 1:
            raise ValueError(
                "target_ess, tilted and cvar compare the samples of one micro-batch with one another, but it has a single "
                "one: raise per_device_train_batch_size (and lower gradient_accumulation_steps)."
            )
        if self.per_sample_loss_fn is None and getattr(args, "loss_type", "nll") == "dft":
            raise ValueError(
                "loss_type='dft' of TRL's SFTTrainer weights tokens in a way of its own, which re-weighted training "
                "would silently leave out: set loss_type='nll'."
            )
        if self.per_sample_loss_fn is not None and args.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor does not reach a per_sample_loss_fn: smooth the labels inside that function "
                "and leave label_smoothing_factor at 0."
            )
        if self._rescales:
            asked_by = "normalize_weights" if args.normalize_weights else "per_sample_loss_fn"
            check_gradients_can_be_rescaled(args, self.is_deepspeed_enabled, asked_by)

    def _cannot_unreduce(self) -> Exception:
        if self.compute_loss_func is not None:
            return ValueError(
                "compute_loss_func returns a loss that is already reduced, so it cannot be re-weighted. Pass "
                "per_sample_loss_fn=(outputs, labels) -> un-reduced losses instead, or set reweighting='none'."
            )
        return NotImplementedError(
            f"rgd_hf cannot un-reduce the loss of {type(self._bare_model()).__name__}: it is no task head of "
            "transformers that rgd_hf knows. Pass per_sample_loss_fn=(outputs, labels) -> un-reduced losses, one "
            "element a sample or token; or set reweighting='none' to train on the model's own loss."
        )

    def _bare_model(self) -> nn.Module:
        return bare_model(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))

    def _loss_source(self) -> HeadLosses | CustomLosses | None:
        """What un-reduces the losses; None where everything is the stock Trainer's."""
        found_for = (self.model, self.args.class_weights)
        if self._source_found_for != found_for:
            self._source_found_for = found_for
            self._source = find_loss_source(
                self.accelerator.unwrap_model(self.model, keep_torch_compile=False),
                self.per_sample_loss_fn,
                self.label_names,
                self.args.class_weights,
                self.train_dataset,
                self.args.device,
            )
        # A loss function of the user's without un-reduced losses is the stock Trainer's affair.
        return self._source if self.compute_loss_func is None or self.per_sample_loss_fn is not None else None

    @property
    def _rescales(self) -> bool:
        """Whether the step's scale is known only after its forward passes, so that gradients are rescaled."""
        source = self._loss_source()
        return source is not None and (self.args.normalize_weights or not source.counted_ahead)

    @property
    def loss_is_scaled_for_ga(self) -> bool | None:  # type: ignore[override]
        """Tells the Trainer that the loss is already divided by the items of the whole optimizer step."""
        return True if self._weighed and self._loss_source() is not None else None

    def _level(self) -> str:
        level, source = self.args.reweighting_level, self._loss_source()
        by_token = source is not None and source.token_level
        if level == "auto":
            return "token" if by_token else "sample"
        if level == "token" and source is not None and not by_token:
            raise ValueError(
                f"reweighting_level='token' needs a loss for every token, but {source.name} has one loss a sample: "
                "use 'sample' or 'auto'."
            )
        return level

    # --- data: sample weights ---------------------------------------------------------------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if SAMPLE_WEIGHT not in columns:
            columns.append(SAMPLE_WEIGHT)

    def _get_dataloader(self, *args: Any, **kwargs: Any):
        collator = self.data_collator
        self.data_collator = SampleWeightCollator(collator)
        try:
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.data_collator = collator

    # --- batch -> model -> un-reduced losses -> weights -> one scalar -----------------------------------------------

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The re-weighted objective in training, the plain loss in evaluation (no gradient and `model.eval()`).

        Args:
            model: the model, wrapped or not.
            inputs: a batch with its labels, and optionally `sample_weight` `[batch]`.
            return_outputs: whether to return the model's outputs too.
            num_items_in_batch: items of the whole optimizer step, all processes, as the Trainer counts them; None to
                average over this batch alone.

        Returns:
            0-dimensional float32 loss, or `(loss, outputs)`.
        """
        source = self._loss_source()
        if source is None:
            if self.args.reweighting != "none":
                raise self._cannot_unreduce()
            inputs = {k: v for k, v in inputs.items() if k != SAMPLE_WEIGHT}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        evaluating = not model.training and not torch.is_grad_enabled()
        batch = source.run(model, inputs, 0.0 if evaluating else self.args.label_smoothing_factor)
        if evaluating:
            loss = self.plain_loss(
                torch.where(batch.valid, batch.losses.float(), 0.0), batch.valid, batch.auxiliary
            )
        else:
            loss = self._objective(batch, inputs, num_items_in_batch)
        outputs = batch.outputs
        if isinstance(outputs, tuple):
            # The Trainer takes the first element of a tuple to be the loss.
            outputs = (loss, *outputs)
        return (loss, outputs) if return_outputs else loss

    def weigh(self, items: Items, inputs: Any) -> Tensor:
        """Weights of the items of a training micro-batch; override it to weight them in another way.

        Args:
            items: un-reduced losses and reference weights, `[batch]` or `[batch, tokens]`.
            inputs: the batch they belong to, labels and `sample_weight` included.

        Returns:
            Detached float32 weights of the shape of `items.losses`, without the reference weights.
        """
        args, step, steps = self.args, self.state.global_step, self.state.max_steps
        started = step >= args.reweighting_warmup_ratio * steps
        stopped = args.reweighting_stop_ratio < 1 and step >= args.reweighting_stop_ratio * steps
        return item_weights(items, args, started and not stopped)

    def _objective(self, batch: BatchLosses, inputs: Any, num_items: Any) -> Tensor:
        self._weighed = True
        level = self._level()
        reference = reference_at_level(batch.reference, level, inputs.get(SAMPLE_WEIGHT))
        losses = losses_at_level(batch.losses, batch.reference, level)
        items = Items(torch.where(reference > 0, losses, 0.0), reference)
        weights = self.weigh(items, inputs)
        mass = (reference * weights).sum() if self.args.normalize_weights else reference.sum()
        total = (reference * weights * items.losses).sum()
        if batch.auxiliary is not None:
            # It belongs to the micro-batch, so a step has the mean of its micro-batches', by their share of the step.
            total = total + batch.auxiliary * mass.detach()
        if self.is_in_train and torch.is_grad_enabled():
            limit = self.args.tau if clips_at_tau(self.args) else math.inf
            self._statistics.add(items, weights, limit, self.state.global_step + 1)
        if num_items is None:
            return total / _at_least_one_item(mass)
        if self._rescales:
            self._step_mass = self._step_mass + mass.detach() / num_items
        # Wrappers average the gradients over the processes; num_items counts the items of all of them.
        return total * self.accelerator.num_processes / num_items

    # --- the optimizer step -----------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        source = self._loss_source()
        if source is None:
            return super()._get_num_items_in_batch(batch_samples, device)
        if not batch_samples or not torch.is_grad_enabled():
            return None
        drop_repeats(
            batch_samples[-1],
            self.accelerator.gradient_state,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        if self._rescales:
            # Any constant that is the same on every process will do: the gradients are rescaled afterwards.
            args = self.args
            samples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            # Not torch.tensor, which waits for the device to copy.
            return torch.full((), float(samples), device=device)
        head, level = cast(HeadLosses, source), self._level()
        counts = [
            reference_at_level(head.reference(batch), level, batch.get(SAMPLE_WEIGHT)).sum().to(device)
            for batch in batch_samples
        ]
        return _at_least_one_item(self.accelerator.reduce(torch.stack(counts).sum(), reduction="sum"))

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch forward and backward; after a step's last one, its gradients get their exact scale."""
        self._weighed = False
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not self._weighed and self.args.reweighting != "none":
            raise NotImplementedError(
                f"The compute_loss of {type(self).__name__} never calls that of ReweightingMixin, so nothing is "
                "re-weighted. Call super().compute_loss in it, pass per_sample_loss_fn=(outputs, labels) -> un-reduced "
                "losses in its stead, or set reweighting='none'."
            )
        if not (self._weighed and self._rescales):
            return loss
        so_far = self._step_loss
        self._step_loss = so_far + loss
        if not self.accelerator.sync_gradients:
            return loss
        mass = self.accelerator.reduce(self._step_mass, reduction="sum")
        factor = torch.where(mass > 0, 1 / mass, 0.0)
        rescale_gradients(model.parameters(), factor)
        # The Trainer sums what this method returns over the step: make that sum the rescaled objective.
        corrected = self._step_loss * factor - so_far
        self._reset_step()
        return corrected

    def _reset_step(self) -> None:
        self._step_mass = torch.zeros((), device=self.args.device)
        self._step_loss = torch.zeros((), device=self.args.device)

    def _reset_step_state(self) -> None:
        self._reset_step()
        self._statistics = WeightStatistics(self.args.device)
        self._warned_of_saturation = False

    # --- logs, checkpoints, and what stops a run --------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any):
        """As the Trainer's.

        Raises:
            NonFiniteLossError: a loss was NaN or infinite; checkpoints written before are kept.
        """
        result = super().train(*args, **kwargs)
        self._stop_if_not_finite()
        return result

    def _inner_training_loop(self, *args: Any, **kwargs: Any):
        # Only here a search's trial has its model and settings; a batch size that did not fit begins here again.
        self._reset_step_state()
        self._check_set_up()
        return super()._inner_training_loop(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's; training logs also carry what the weights did since the last one."""
        # Every process comes here with a training log, which the Trainer itself gathers the loss for.
        if "loss" in logs and self._loss_source() is not None:
            self._stop_if_not_finite()
            if self.args.reweighting != "none":
                statistics = self._statistics.collect(self.accelerator.gather)
                logs.update(statistics)
                # At the start every loss is at chance level, which says nothing about the rest of the run.
                settled = (
                    self.state.global_step
                    >= max(0.1, self.args.reweighting_warmup_ratio) * self.state.max_steps
                )
                if settled and not self._warned_of_saturation:
                    self._warned_of_saturation = warn_of_saturation(statistics, self.args.tau)
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._stop_if_not_finite()
        super()._save_checkpoint(*args, **kwargs)

    def _stop_if_not_finite(self) -> None:
        stops = self.stop_on_non_finite_loss
        if stops or (stops is None and self.args.reweighting != "none"):
            first_bad_step = self._statistics.first_bad_step(self.accelerator.gather)
            stop_if_not_finite(first_bad_step, self.args.output_dir)


def _at_least_one_item(mass: Tensor) -> Tensor:
    """`mass`, but 1 where it is 0, so that a step without items has loss 0 and not 0 / 0."""
    return torch.where(mass > 0, mass, 1.0)


class ReweightedTrainer(ReweightingMixin, Trainer):
    """`transformers.Trainer` with re-weighted gradient descent; see `ReweightingMixin` for what it adds."""


class ReweightedSeq2SeqTrainer(ReweightingMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` with re-weighted gradient descent; see `ReweightingMixin` for what it adds."""
