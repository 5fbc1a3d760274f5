"""The Trainer that weights every sample's gradient by a function of its own loss.

One way through: batch -> model -> un-reduced losses -> weights -> one scalar -> backward. A step's objective is
`sum_i w_i * loss_i / N`, where `w_i` is the detached weight of item i (a sample or a token) and N the number of items
of the WHOLE optimizer step: all its micro-batches, all processes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Trainer

from rgd_hf.data import SAMPLE_WEIGHT, SampleWeightCollator, drop_repeats
from rgd_hf.diagnostics import NonFiniteLossError, WeightStatistics, stop_if_not_finite, warn_of_saturation
from rgd_hf.evaluation import PlainEvaluationMixin
from rgd_hf.gradients import check_gradients_can_be_rescaled, rescale_gradients
from rgd_hf.heads import Head, find_head
from rgd_hf.hub import ModelCardMixin
from rgd_hf.training_args import check_reweighting, with_settings
from rgd_hf.weighting import Items, item_weights, losses_at_level, reference_weights

__all__ = ["NonFiniteLossError", "ReweightedSeq2SeqTrainer", "ReweightedTrainer", "ReweightingMixin"]

PerSampleLossFn = Callable[[Any, Any], Tensor | tuple[Tensor, Tensor]]


class ReweightingMixin(ModelCardMixin, PlainEvaluationMixin):
    """Re-weighted gradient descent for any class that derives from `transformers.Trainer`.

    Put it first: `class MyTrainer(ReweightingMixin, Seq2SeqTrainer)`. All arguments of the Trainer are kept.

    Args:
        per_sample_loss_fn: `(outputs, labels) -> losses` for models whose losses the library cannot un-reduce.
            `outputs` is what the model's forward returned without labels; `labels` is the tensor of the batch (a dict
            of tensors where the Trainer has several `label_names`). Return the losses before any reduction, one
            element an item: `[batch]` or `[batch, tokens]`; or a pair of them and a bool tensor of the same shape
            that says which items count.
        reweighting: divergence of the weights; overrides `args.reweighting` (default `"kl"`).
        tau: loss from which on weights stop growing; overrides `args.tau` (default 1.0).
        reweighting_level: `"auto"`, `"sample"` or `"token"`; overrides the field of `args` (default `"auto"`).
        normalize_weights: scale weights to mean one over each step; overrides the field of `args` (default False).
        reweighting_warmup_ratio: fraction of the steps, from the start, with weights of 1; overrides the field of
            `args` (default 0.0).

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
        reweighting: str | None = None,
        tau: float | None = None,
        reweighting_level: str | None = None,
        normalize_weights: bool | None = None,
        reweighting_warmup_ratio: float | None = None,
        **kwargs: Any,
    ):
        given = {
            "reweighting": reweighting,
            "tau": tau,
            "reweighting_level": reweighting_level,
            "normalize_weights": normalize_weights,
            "reweighting_warmup_ratio": reweighting_warmup_ratio,
        }
        self.args: Any
        self.data_collator: Any
        self.per_sample_loss_fn = per_sample_loss_fn
        self._found_head: tuple[nn.Module | None, Head | None] = (None, None)
        self._checked_head_of: nn.Module | None = None
        super().__init__(model, args, *rest, **kwargs)
        self.args = with_settings(
            self.args, {name: value for name, value in given.items() if value is not None}
        )
        self._step_mass: Tensor
        self._step_loss: Tensor
        self._reset_step_state()
        self._check_set_up()

    # --- settings and the model's head ------------------------------------------------------------------------------

    def _check_set_up(self) -> None:
        args = self.args
        check_reweighting(args)
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        if parallelism is not None and (
            self.get_cp_size() > 1 or self.get_sp_size() > 1 or self.get_tp_size() > 1
        ):
            raise NotImplementedError(
                "Re-weighting is not written for context, sequence or tensor parallelism, where one process sees a "
                "part of a sample or several see the same: use data parallelism (DDP, FSDP, DeepSpeed ZeRO)."
            )
        if not self._unreduces:
            if args.reweighting != "none":
                raise self._cannot_unreduce()
            return
        self._level()
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

    @property
    def _unreduces(self) -> bool:
        """Whether the losses are un-reduced here; otherwise everything is the stock Trainer's."""
        if self.per_sample_loss_fn is not None:
            return True
        return self.compute_loss_func is None and self._head() is not None

    @property
    def _rescales(self) -> bool:
        """Whether the step's scale is known only after its forward passes, so that gradients are rescaled."""
        return self.args.normalize_weights or self.per_sample_loss_fn is not None

    @property
    def loss_is_scaled_for_ga(self) -> bool | None:  # type: ignore[override]
        """Tells the Trainer that the loss is already divided by the items of the whole optimizer step."""
        return True if self._unreduces else None

    def _bare_model(self) -> nn.Module:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _head(self) -> Head | None:
        if self._found_head[0] is not self.model:
            self._found_head = (self.model, find_head(self._bare_model()))
        return self._found_head[1]

    def _known_head(self) -> Head:
        head = self._head()
        if head is None:
            raise self._cannot_unreduce()
        return head

    def _level(self) -> str:
        level, head = self.args.reweighting_level, self._head()
        by_token = self.per_sample_loss_fn is not None or (head is not None and head.token_level)
        if level == "auto":
            return "token" if by_token else "sample"
        if level == "token" and not by_token and head is not None:
            raise ValueError(
                f"reweighting_level='token' needs a loss for every token, but {head.name} has one loss a sample: "
                "use 'sample' or 'auto'."
            )
        return level

    # --- data: sample weights ---------------------------------------------------------------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns or []
        self._signature_columns = columns if SAMPLE_WEIGHT in columns else [*columns, SAMPLE_WEIGHT]

    def _get_dataloader(self, *args: Any, **kwargs: Any):
        collator = self.data_collator
        self.data_collator = SampleWeightCollator(collator)
        try:
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.data_collator = collator

    # --- batch -> un-reduced losses ---------------------------------------------------------------------------------

    def _valid_items(self, head: Head, inputs: Any) -> Tensor:
        """The items of a batch that have a loss."""
        model = self._bare_model()
        missing = [name for name in head.label_names if inputs.get(name) is None]
        if missing:
            raise ValueError(
                f"{head.name} needs {', '.join(map(repr, missing))} in every batch, but this batch has only "
                f"{', '.join(sorted(inputs))}. Check the dataset's columns, the data collator and `label_names`."
            )
        if self._checked_head_of is not model:
            head.check(inputs, model.config)
            self._checked_head_of = model
        return head.valid(inputs, model.config)

    def _forward(self, model: nn.Module, inputs: Any, label_smoothing: float) -> tuple[Any, Tensor, Tensor]:
        """Run the model without labels; return its outputs, the un-reduced losses, and which of them count."""
        if self.per_sample_loss_fn is not None:
            labels = {name: inputs[name] for name in self.label_names if name in inputs}
            outputs = model(**{k: v for k, v in inputs.items() if k not in labels and k != SAMPLE_WEIGHT})
            returned = self.per_sample_loss_fn(
                outputs, labels if len(labels) > 1 else next(iter(labels.values()), None)
            )
            losses, valid = returned if isinstance(returned, tuple) else (returned, None)
            _check_returned(losses, valid)
            return outputs, losses, torch.ones_like(losses, dtype=torch.bool) if valid is None else valid
        head = self._known_head()
        valid = self._valid_items(head, inputs)
        withheld = {*head.label_names, SAMPLE_WEIGHT}
        outputs = model(**{k: v for k, v in inputs.items() if k not in withheld})
        losses = head.losses(outputs, inputs, self._bare_model().config, label_smoothing)
        return outputs, losses, valid.to(losses.device)

    # --- un-reduced losses -> one scalar ----------------------------------------------------------------------------

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
        if not self._unreduces:
            if self.args.reweighting != "none":
                raise self._cannot_unreduce()
            inputs = {k: v for k, v in inputs.items() if k != SAMPLE_WEIGHT}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        evaluating = not model.training and not torch.is_grad_enabled()
        smoothing = 0.0 if evaluating else self.args.label_smoothing_factor
        outputs, losses, valid = self._forward(model, inputs, smoothing)
        if evaluating:
            loss = self.plain_loss(torch.where(valid, losses.float(), 0.0), valid)
        else:
            loss = self._objective(losses, valid, inputs.get(SAMPLE_WEIGHT), num_items_in_batch)
        if isinstance(outputs, tuple):
            # The Trainer takes the first element of a tuple to be the loss.
            outputs = (loss, *outputs)
        return (loss, outputs) if return_outputs else loss

    def _objective(
        self, losses: Tensor, valid: Tensor, sample_weight: Tensor | None, num_items: Any
    ) -> Tensor:
        args, level = self.args, self._level()
        reference = reference_weights(valid, level, sample_weight)
        items = Items(torch.where(reference > 0, losses_at_level(losses, valid, level), 0.0), reference)
        weights = item_weights(items.losses, args.reweighting, args.tau, self._warming_up())
        weighted_loss = (reference * weights * items.losses).sum()
        mass = (reference * weights).sum() if args.normalize_weights else reference.sum()
        if self.is_in_train and torch.is_grad_enabled():
            self._statistics.add(items, weights, args.tau, self.state.global_step + 1)
        if num_items is None:
            return weighted_loss / _at_least_one_item(mass)
        if self._rescales:
            self._step_mass = self._step_mass + mass.detach() / num_items
        # Wrappers average the gradients over the processes; num_items counts the items of all of them.
        return weighted_loss * self.accelerator.num_processes / num_items

    def _warming_up(self) -> bool:
        return self.state.global_step < self.args.reweighting_warmup_ratio * self.state.max_steps

    # --- the optimizer step -----------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        if not self._unreduces:
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
            samples = (
                self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            )
            return torch.tensor(float(samples), device=device)
        head, level = self._known_head(), self._level()
        counts = [
            reference_weights(self._valid_items(head, batch), level, batch.get(SAMPLE_WEIGHT))
            .sum()
            .to(device)
            for batch in batch_samples
        ]
        return _at_least_one_item(self.accelerator.reduce(torch.stack(counts).sum(), reduction="sum"))

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch forward and backward; after a step's last one, its gradients get their exact scale."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not (self._unreduces and self._rescales):
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
        self._reset_step_state()
        self._check_set_up()
        result = super().train(*args, **kwargs)
        stop_if_not_finite(self._statistics.first_bad_step(self.accelerator.gather), self.args.output_dir)
        return result

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's; training logs also carry what the weights did since the last one."""
        # Every process comes here with a training log, which the Trainer itself gathers the loss for.
        if "loss" in logs and self._unreduces:
            statistics = self._statistics.collect(self.accelerator.gather)
            stop_if_not_finite(statistics.pop("first_bad_step"), self.args.output_dir)
            if self.args.reweighting != "none":
                logs.update(statistics)
                # At the start every loss is at chance level, which says nothing about the rest of the run.
                settled = not self._warming_up() and self.state.global_step >= self.state.max_steps / 10
                if settled and not self._warned_of_saturation:
                    self._warned_of_saturation = warn_of_saturation(statistics, self.args.tau)
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        stop_if_not_finite(self._statistics.first_bad_step(self.accelerator.gather), self.args.output_dir)
        super()._save_checkpoint(*args, **kwargs)


def _check_returned(losses: Any, valid: Any) -> None:
    if not isinstance(losses, Tensor) or losses.dim() == 0:
        found = (
            "a 0-dimensional loss, one already reduced over the batch"
            if isinstance(losses, Tensor)
            else repr(losses)
        )
        raise ValueError(
            f"per_sample_loss_fn returned {found}. Weighting it would only rescale the step: return the un-reduced "
            "losses, one element a sample or token (`reduction='none'` in torch)."
        )
    if valid is not None and (valid.dtype != torch.bool or valid.shape != losses.shape):
        raise ValueError(
            f"per_sample_loss_fn returned losses of shape {list(losses.shape)} with a mask of shape "
            f"{list(valid.shape)} and {valid.dtype}: the mask must be bool and of the same shape."
        )


def _at_least_one_item(mass: Tensor) -> Tensor:
    """`mass`, but 1 where it is 0, so that a step without items has loss 0 and not 0 / 0."""
    return torch.where(mass > 0, mass, 1.0)


class ReweightedTrainer(ReweightingMixin, Trainer):
    """`transformers.Trainer` with re-weighted gradient descent; see `ReweightingMixin` for what it adds."""


class ReweightedSeq2SeqTrainer(ReweightingMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` with re-weighted gradient descent; see `ReweightingMixin` for what it adds."""
