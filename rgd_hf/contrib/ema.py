"""Exponential moving average of the weights: evaluated, saved as the model, kept in checkpoints."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback
from transformers.trainer_utils import PredictionOutput

from rgd_hf.contrib.checkpoints import is_checkpoint, state_file
from rgd_hf.contrib.errors import SetupError
from rgd_hf.contrib.swad import SWADMixin
from rgd_hf.overrides import check_class, set_on
from rgd_hf.trainer_base import TrainerBase

EMA_NAME = "ema.safetensors"
WARMUP_POWER = 2 / 3

Tensors = list[Tensor] | tuple[Tensor, ...]


class EMAMixin(TrainerBase):
    """Averages the weights over the optimizer steps, for any class that derives from `transformers.Trainer`; list it before the Trainer.

    The average of each training begins with the weights after its first step; then
    `average = d * average + (1 - d) * weights` after every step, buffers included (integers are copied), by
    `torch.optim.swa_utils.AveragedModel`. `evaluate` reports the averaged weights under its usual names and the last ones
    under `eval_last_...`, to callbacks as `on_evaluate` and `on_predict`; `predict` uses and `save_model` saves the averaged
    ones; checkpoints hold both (`ema.safetensors`), so that a resumed run is the same.

    The average of floating-point weights is kept in float32, or more precisely where they are, and has their dtype where it is
    evaluated and saved: in bfloat16 a step of `(1 - d) * difference` would round away. It takes 4 bytes a weight; while the
    averaged weights are in use, the last ones are kept beside them.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM J. Control Optim. 1992;
    exponential as in Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, Equation 2
    (arXiv 1703.01780).

    Args:
        ema_decay: decay d of the average, between 0 and 1; None (default) for no average.
        ema_warmup: use `min(d, 1 - step**(-2/3))` as the decay after each step, from 1, for runs that are short compared with
            `1 / (1 - d)` steps.

    Attributes:
        ema: the average as a model in float32, `ema.module`; None before the first training.

    Raises:
        SetupError: `ema_decay` is not between 0 and 1, the class also has SWAD, the weights are split over processes (FSDP,
            DeepSpeed), or `load_best_model_at_end` would put the weights of one step in the average's place; in training:
            a checkpoint to resume from has no averaged weights.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        check_class(cls, EMAMixin)

    def __init__(self, *args: Any, ema_decay: float | None = None, ema_warmup: bool = False, **kwargs: Any):
        if ema_decay is not None and isinstance(self, SWADMixin):
            raise SetupError(
                f"{type(self).__name__} has two averages of the weights: SWAD ends the training with its own, and EMA would "
                "evaluate and save another. Choose one: leave out SWADMixin or ema_decay."
            )
        super().__init__(*args, **kwargs)
        self.ema: AveragedModel | None = None
        self._averaged = self._evaluates_both = False
        self.ema_decay, self.ema_warmup = ema_decay, ema_warmup
        self.model: Any
        if ema_decay is None:
            return
        if not 0 < ema_decay < 1:
            raise SetupError(f"ema_decay must lie between 0 and 1, not {ema_decay:g}.")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise SetupError(
                "ema_decay averages whole weights: it works with DDP, not with FSDP or DeepSpeed."
            )
        if self.args.load_best_model_at_end:
            raise SetupError(
                "load_best_model_at_end would discard the averaged weights: leave out one of it and ema_decay."
            )
        self.add_callback(_Update(self))

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        # Only here a search's trial has its model; a batch size that did not fit begins here again.
        self.ema = None  # so that there are never two
        if self.ema_decay is not None:
            self.ema = _Float32Average(self.model, self._average)
        return super()._inner_training_loop(*args, **kwargs)

    def decay(self, step: int) -> float:
        """The factor of the average after optimizer step `step`, from 1."""
        assert self.ema_decay is not None
        if not self.ema_warmup:
            return self.ema_decay
        return min(self.ema_decay, 1 - step**-WARMUP_POWER)

    def _average(self, averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            get_ema_multi_avg_fn(self.decay(self.state.global_step))(averaged, current, count)
        else:  # positions, counters: a mean of them, cut to integers, would be wrong
            for mean, value in zip(averaged, current, strict=True):
                mean.copy_(value)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the averaged weights, if a step was taken; inside of it another changes nothing."""
        if self._averaged or self.ema is None or not self.ema.n_averaged:
            yield
            return
        self._averaged = True
        weights = self.model.state_dict()
        names = {tensor.data_ptr(): name for name, tensor in weights.items()}.values()  # tied weights once
        # Kept apart from the average, because evaluation may leave the model in another precision (bf16_full_eval).
        last = {name: weights[name].clone() for name in names}
        self._put(self.ema.module.state_dict(), names)
        try:
            yield
        finally:
            self._put(last, names)
            self._averaged = False

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor], names: Iterable[str]) -> None:
        own = self.model.state_dict()
        for name in names:
            own[name].copy_(weights[name])

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
        **kwargs: Any,
    ) -> dict[str, float]:
        """As the Trainer's, of both the averaged and the last weights; inside `averaged()` of the averaged ones alone."""
        # The Trainer calls this again for each of several evaluation sets.
        if self.ema_decay is None or self._averaged or self._evaluates_both:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **kwargs)
        handler = self.callback_handler
        self._evaluates_both = True
        try:
            # What callbacks take for an evaluation has the names that they know, and comes once.
            with set_on(handler, "on_evaluate", lambda *given: handler.on_predict(*given)):
                last = super().evaluate(eval_dataset, ignore_keys, f"{metric_key_prefix}_last", **kwargs)
            with self.averaged():
                return {**last, **super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **kwargs)}
        finally:
            self._evaluates_both = False

    def predict(self, *args: Any, **kwargs: Any) -> PredictionOutput:
        """As the Trainer's, with the averaged weights."""
        with self.averaged():
            return super().predict(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the averaged weights; a checkpoint gets the last ones, with the averaged ones beside them."""
        if not is_checkpoint(output_dir, _internal_call):
            with self.averaged():
                return super().save_model(output_dir, _internal_call)
        super().save_model(output_dir, _internal_call)
        if self.ema is not None and self.args.should_save:
            save_model(self.ema.module, str(Path(str(output_dir)) / EMA_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.ema is None or checkpoint is None:
            return
        path = state_file(checkpoint, EMA_NAME, "ema_decay")
        load_model(self.ema.module, path)
        self.ema.n_averaged.fill_(1)  # any but 0, with which the average would start again


class _Float32Average(AveragedModel):
    """The average of a model; in float32 where the model is in half precision.

    Args:
        model: the model.
        average: as `multi_avg_fn` of torch's class.
    """

    def __init__(self, model: nn.Module, average: Callable[[Tensors, Tensors, Tensor | int], None]):
        # Without a device: else the count of steps would lie there, and be waited for in every step.
        super().__init__(model, multi_avg_fn=average, use_buffers=True)
        self._average, self._raised = average, False
        for tensor in _tensors_of(self.module):
            if tensor.is_floating_point() and tensor.itemsize < torch.float32.itemsize:
                tensor.data, self._raised = tensor.data.float(), True

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """As that of torch, which takes no two dtypes at once."""
        if not self._raised:
            super().update_parameters(model)
            return
        # One by one, so that there is never a second copy of the model in float32.
        for mean, value in zip(_tensors_of(self.module), _tensors_of(model), strict=True):
            if self.n_averaged:
                self._average([mean.detach()], [value.detach().to(mean)], self.n_averaged)
            else:
                mean.copy_(value)
        self.n_averaged += 1


def _tensors_of(model: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(model.parameters(), model.buffers())


class _Update(TrainerCallback):
    def __init__(self, trainer: EMAMixin):
        self.trainer = trainer

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        assert self.trainer.ema is not None
        self.trainer.ema.update_parameters(self.trainer.model)
