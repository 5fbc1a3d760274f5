"""MIRO: the features keep their mutual information with those of the pretrained model."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgd_hf.data import SAMPLE_WEIGHT
from rgd_hf.scripts.domains.batches import DOMAIN
from rgd_hf.scripts.domains.features import recorded_outputs, stages_of
from rgd_hf.scripts.domains.training import PenaltyTrainer

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

    The variational bound of Cha et al., "Domain Generalization by Mutual-Information Regularization with Pre-trained
    Models", ECCV 2022, with the identity as the mean encoder.

    Args:
        features: f of each stage, float, any shape with the channels at `channel_axis`.
        pretrained: z, the same of the frozen model.
        variances: one a channel.

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


class MiroTrainer(PenaltyTrainer):
    """MIRO. Its hyper-parameter `miro_weight` is the weight of the penalty."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        model: Any = self.bare_model()
        self.pretrained = copy.deepcopy(model).eval().requires_grad_(False)
        features = self._pretrained_features(self._one_example())
        channels = [feature.shape[channel_axis(feature)] for feature in features]
        # Part of the model, so that it is moved, synchronized and saved with it.
        model.miro_variances = Variances(channels).to(self.args.device)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As the Trainer's; the variances learn ten times as fast, without weight decay."""
        optimizer = super().create_optimizer(*args, **kwargs)
        own = list(self.bare_model().miro_variances.parameters())  # type: ignore[union-attr]
        known = {id(parameter) for parameter in own}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in known]
        rate = self.args.learning_rate * LEARNING_RATE_FACTOR
        optimizer.add_param_group({"params": own, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def with_penalty(self, forward: Any, inputs: Mapping[str, Any]) -> tuple[tuple[Tensor, Any], Tensor]:
        """See `PenaltyTrainer`."""
        model: Any = self.bare_model()
        with recorded_outputs(stages_of(model)) as features:
            result = forward()
        penalty = miro_penalty(features, self._pretrained_features(inputs), model.miro_variances)
        return result, self.hyper_parameters["miro_weight"] * penalty

    @torch.no_grad()
    def _pretrained_features(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        withheld = {"labels", DOMAIN, SAMPLE_WEIGHT}
        with recorded_outputs(stages_of(self.pretrained)) as features, self.accelerator.autocast():
            self.pretrained(**{name: value for name, value in inputs.items() if name not in withheld})
        return features

    def _one_example(self) -> dict[str, Any]:
        dataset: Any = self.train_dataset
        batch = self.data_collator([dataset[next(iter(self.domain_sampler))]])
        return self._prepare_inputs(batch)
