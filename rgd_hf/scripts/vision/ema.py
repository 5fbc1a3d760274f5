"""Exponential moving average of the weights (timm's): evaluated, saved as the model, kept in checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import PredictionOutput

from rgd_hf.scripts.errors import UserError

if TYPE_CHECKING:
    from transformers import Trainer as TrainerBase
else:
    TrainerBase = object

EMA_NAME = "ema.safetensors"


class _UpdateEma(TrainerCallback):
    def __init__(self, ema: ModelEmaV3, model: nn.Module):
        self.ema = ema
        self.model = model

    def on_step_end(self, args, state, control, **kwargs):
        self.ema.update(self.model, step=state.global_step)


class EmaMixin(TrainerBase):
    """Averages the weights over the optimizer steps, for any class that derives from `transformers.Trainer`.

    `evaluate` reports the averaged weights under its usual names and the last ones under `eval_last_...`; `predict` uses
    and `save_model` saves the averaged ones; checkpoints hold both, so that a resumed run is the same.

    Args:
        ema_decay: of the average an optimizer step; None for no average.
        ema_warmup: start at a decay of 0 and approach `ema_decay`, for runs that are short against `1 / (1 - decay)`.

    Raises:
        UserError: the set-up splits the weights over processes, or asks for the best of several checkpoints.
    """

    def __init__(self, *args: Any, ema_decay: float | None = None, ema_warmup: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.ema: ModelEmaV3 | None = None
        self.model: Any
        if ema_decay is None:
            return
        if not 0 < ema_decay < 1:
            raise UserError(f"--ema_decay must lie between 0 and 1, not {ema_decay:g}.")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UserError(
                "--ema_decay averages whole weights: it works with DDP, not with FSDP or DeepSpeed."
            )
        if self.args.load_best_model_at_end:
            raise UserError(
                "--load_best_model_at_end would discard the averaged weights: leave out --ema_decay."
            )
        self.ema = ModelEmaV3(self.model, decay=ema_decay, use_warmup=ema_warmup)
        self.add_callback(_UpdateEma(self.ema, self.model))

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        assert self.ema is not None
        averaged = self.ema.module.state_dict()
        for name, tensor in self.model.state_dict().items():
            kept = tensor.clone()
            tensor.copy_(averaged[name])
            averaged[name].copy_(kept)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As the Trainer's, of both the averaged and the last weights."""
        if self.ema is None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        last = super().evaluate(eval_dataset, ignore_keys, f"{metric_key_prefix}_last")
        with self._averaged():
            return {**last, **super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)}

    def predict(self, *args: Any, **kwargs: Any) -> PredictionOutput:
        """As the Trainer's, with the averaged weights."""
        if self.ema is None:
            return super().predict(*args, **kwargs)
        with self._averaged():
            return super().predict(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the averaged weights; a checkpoint gets the last ones, with the averaged ones beside them."""
        if self.ema is None:
            return super().save_model(output_dir, _internal_call)
        if output_dir is not None and Path(output_dir).name.startswith("checkpoint-"):
            super().save_model(output_dir, _internal_call)
            if self.args.should_save:
                weights = {name: tensor.contiguous() for name, tensor in self.ema.module.state_dict().items()}
                save_file(weights, str(Path(output_dir) / EMA_NAME))
            return None
        with self._averaged():
            return super().save_model(output_dir, _internal_call)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any):
        """As the Trainer's; a resumed average goes on too.

        Raises:
            UserError: the checkpoint has no averaged weights.
        """
        if self.ema is not None and resume_from_checkpoint:
            path = Path(str(resume_from_checkpoint)) / EMA_NAME
            if not path.is_file():
                raise UserError(
                    f"{resume_from_checkpoint} was written without --ema_decay: it lacks {EMA_NAME}."
                )
            self.ema.module.load_state_dict(load_file(str(path), device=str(self.args.device)))
        return super().train(resume_from_checkpoint, *args, **kwargs)
