"""MIRO: the features keep their mutual information with those of the pretrained model."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rgd_hf.batches.columns import SAMPLE_WEIGHT
from rgd_hf.contrib.checkpoints import is_checkpoint, state_file
from rgd_hf.contrib.errors import SetupError
from rgd_hf.contrib.features import recorded_outputs, stages_of
from rgd_hf.contrib.penalty import Forward, PenaltyMixin
from rgd_hf.loss_sources.user import withheld_columns

MIRO_NAME = "miro.safetensors"
LEARNING_RATE_FACTOR = 10
INITIAL_VARIANCE = 0.1
SMALLEST_VARIANCE = 1e-5


class Variances(nn.Module):
    """A trained variance for every channel of every stage: `softplus(b) + 1e-5`, 0.1 at the start.

    Args:
        channels: number of channels of each stage.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        start = math.log(math.expm1(INITIAL_VARIANCE - SMALLEST_VARIANCE))
        self.b = nn.ParameterList(torch.full((count,), start) for count in channels)

    def of(self, stage: int) -> Tensor:
        """Variances of a stage, `[channels]`."""
        return F.softplus(self.b[stage]) + SMALLEST_VARIANCE


def channel_axis(features: Tensor) -> int:
    """Images are `[batch, channels, height, width]`, tokens `[batch, tokens, channels]`."""
    return 1 if features.dim() == 4 else features.dim() - 1


def miro_penalty(features: Sequence[Tensor], pretrained: Sequence[Tensor], variances: Variances) -> Tensor:
    """Sum over the stages of the mean of `((f - z)**2 / variance + log variance) / 2`.

    Source: Cha, Lee, Park, Chun, "Domain Generalization by Mutual-Information Regularization with Pre-trained Models", ECCV
    2022, Equation 4 (arXiv 2203.10789), with the identity as the mean encoder.

    Args:
        features: f of each stage, float, `[batch, channels, height, width]` or with the channels last.
        pretrained: z, the same of the frozen model.
        variances: one per channel.

    Returns:
        0-dimensional; may be negative.
    """
    bounds = []
    for stage, (feature, frozen) in enumerate(zip(features, pretrained, strict=True)):
        shape = [1] * feature.dim()
        shape[channel_axis(feature)] = -1
        variance = variances.of(stage).reshape(shape)
        bounds.append(((feature - frozen).square() / variance + variance.log()).mean() / 2)
    return torch.stack(bounds).sum()


def _home_of(model: Any) -> Any:
    # transformers' wrapper of timm loads no names but those of the model in it.
    return getattr(model, "timm_model", model)


class MIROMixin(PenaltyMixin):
    """MIRO for any class that derives from `ReweightingMixin` and a Trainer; list it before them.

    The Trainer is given the pretrained model, of which it keeps a frozen copy (and runs it on every training batch); the
    penalty is `miro_penalty` between the stages of the two: those that timm names, else the outputs of the longest list
    of layers. The variances are trained with the model, ten times as fast and without weight decay. Checkpoints have them
    (`miro.safetensors`), and a training resumes exactly if the Trainer is given the pretrained model again; the model that
    `save_model` writes at the end is without them.

    The variances and the frozen copy belong to a model: with `model_init` every training has new ones, and without it a
    second training continues with those of the first, as it does with the weights.

    Args:
        miro_weight: weight of the penalty (default 0.1).

    Raises:
        SetupError: `miro_weight` is negative, an optimizer object is passed, the weights are split over processes, or the
            model has no list of layers; in training: a checkpoint to resume from has no state of MIRO.
    """

    def __init__(self, *args: Any, miro_weight: float = 0.1, **kwargs: Any):
        if miro_weight < 0:
            raise SetupError(f"miro_weight must be at least 0, not {miro_weight:g}.")
        self.miro_weight = miro_weight
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise SetupError("MIRO compares whole models: it works with DDP, not with FSDP or DeepSpeed.")
        if self.optimizer is not None:
            raise SetupError(
                "MIRO adds parameters of its own to the optimizer, so the Trainer has to make it: pass "
                "optimizer_cls_and_kwargs instead of optimizers=(...)."
            )
        self._begin_at(self.bare_model())

    def call_model_init(self, trial: Any = None) -> Any:
        """As the Trainer's; the new model is the pretrained one, and has variances of its own."""
        model = super().call_model_init(trial)
        if hasattr(self, "pretrained"):  # the first is called before the Trainer has its data
            self._begin_at(model)
        return model

    def _begin_at(self, model: Any) -> None:
        self.pretrained = copy.deepcopy(model).eval().requires_grad_(False)
        if not self.is_model_parallel:
            self.pretrained.to(self.args.device)
        features = self._pretrained_features(self._prepare_inputs(self.example_batch()))
        channels = [feature.shape[channel_axis(feature)] for feature in features]
        # Part of the model, so that it is moved and synchronized with it.
        _home_of(model).miro_variances = Variances(channels).to(self.args.device)
        if self.accelerator.num_processes > 1:
            # No method, of which a copy of the model would have a copy of the Trainer.
            model.register_forward_hook(lambda _, inputs, output: self._with_variances_in_the_graph(output))

    @property
    def variances(self) -> Variances:
        """The trained variances of the stages."""
        return _home_of(self.bare_model()).miro_variances

    def _with_variances_in_the_graph(self, output: Any) -> Any:
        # DDP takes parameters that the outputs do not depend on for unused, and fails when they have a gradient.
        nothing = 0.0 * torch.stack([b.sum() for b in self.variances.b]).sum()
        values: Any = dict(enumerate(output)) if isinstance(output, tuple) else output
        name = next(n for n, v in values.items() if torch.is_tensor(v) and v.is_floating_point())
        values[name] = values[name] + nothing.to(values[name].dtype)
        return tuple(values.values()) if isinstance(output, tuple) else output

    def example_batch(self) -> Any:
        """A batch of one training sample, from which the channels of the stages are read."""
        dataset: Any = self.train_dataset
        if isinstance(dataset, datasets.Dataset | datasets.IterableDataset):
            dataset = self._remove_unused_columns(dataset, description="training")
        sample = dataset[0] if hasattr(dataset, "__getitem__") else next(iter(dataset))
        # Of other data sets the Trainer removes what the model does not take only here.
        return self._get_collator_with_removed_columns(self.data_collator, "training")([sample])

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As the Trainer's; the variances learn ten times as fast, without weight decay."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(*args, **kwargs)
        own = list(self.variances.parameters())
        known = {id(parameter) for parameter in own}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in known]
        rate = self.args.learning_rate * LEARNING_RATE_FACTOR
        optimizer.add_param_group({"params": own, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def with_penalty(self, forward: Forward, inputs: Mapping[str, Any]) -> tuple[tuple[Tensor, Any], Tensor]:
        """See `PenaltyMixin`."""
        with recorded_outputs(stages_of(self.bare_model())) as features:
            result, others = super().with_penalty(forward, inputs)
        penalty = miro_penalty(features, self._pretrained_features(inputs), self.variances)
        return result, others + self.miro_weight * penalty

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's; the variances go into checkpoints alone."""
        if is_checkpoint(output_dir, _internal_call):
            return super().save_model(output_dir, _internal_call)
        with self._without_variances():
            return super().save_model(output_dir, _internal_call)

    @contextmanager
    def _without_variances(self) -> Iterator[None]:
        home = _home_of(self.bare_model())
        variances = home.miro_variances
        del home.miro_variances
        try:
            yield
        finally:
            home.miro_variances = variances

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            state = {name: value.contiguous() for name, value in self.variances.state_dict().items()}
            save_file(state, str(Path(output_dir) / MIRO_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = state_file(checkpoint, MIRO_NAME, "MIRO")
        # Not from the model's file: a checkpoint of PEFT has the adapter's weights alone.
        self.variances.load_state_dict(load_file(str(path)))

    @torch.no_grad()
    def _pretrained_features(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        withheld = {*withheld_columns(self.label_names or ["labels"], self.pretrained), SAMPLE_WEIGHT}
        shown = {name: value for name, value in self._without_columns(inputs).items() if name not in withheld}
        with recorded_outputs(stages_of(self.pretrained)) as features, self.accelerator.autocast():
            self.pretrained(**shown)
        return features
