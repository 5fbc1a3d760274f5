"""Models that are trained: any of timm or transformers, with weights of the Hub, a directory, a package, or none."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

from recipe_lib.domains.features import classifier_of
from recipe_lib.efficientnet_lite import ARCHITECTURE, efficientnet_lite0_weights
from recipe_lib.embedded import minilm_directory
from recipe_lib.errors import UserError
from recipe_lib.hub import load_pretrained

EFFICIENTNET_LITE0 = "efficientnet-lite0"
MINILM = "minilm"
CLASSIFIERS = ("classifier.weight", "classifier.bias")


@dataclass(frozen=True)
class Backbone:
    """A kind of model and what its inputs look like.

    Attributes:
        build: makes a new model for so many classes; only the classifier is untrained.
        mean: of the normalization of images, one number a channel.
        std: of the normalization.
        tokenizer: for texts.
    """

    build: Callable[[int], nn.Module]
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    tokenizer: PreTrainedTokenizerBase | None = None


def image_backbone(name: str, pretrained: bool = True) -> Backbone:
    """A backbone for images.

    Args:
        name: `"efficientnet-lite0"` (weights from a package); else with `pretrained` an image classifier of the Hub
            (`timm/...` included) or a directory with one, and without it an architecture of timm.
        pretrained: False for random weights.

    Raises:
        UserError: there is no such model or architecture, or the package is not installed.
    """
    if name == EFFICIENTNET_LITE0 and pretrained:
        weights = efficientnet_lite0_weights()
        return Backbone(lambda classes: _from_timm(ARCHITECTURE, classes, weights))
    if not pretrained:
        architecture = ARCHITECTURE if name == EFFICIENTNET_LITE0 else name
        if not timm.is_model(architecture):
            raise UserError(
                f"--pretrained false: timm has no architecture {name!r}; see timm.list_models(), e.g. 'resnet18'."
            )
        return Backbone(lambda classes: _from_timm(architecture, classes, None))
    processor = load_pretrained(AutoImageProcessor.from_pretrained, name)
    config = getattr(processor, "data_config", {})  # timm's processor keeps its numbers there
    return Backbone(
        lambda classes: _channels_last(
            load_pretrained(
                AutoModelForImageClassification.from_pretrained,
                name,
                num_labels=classes,
                ignore_mismatched_sizes=True,
            )
        ),
        mean=tuple(config.get("mean") or processor.image_mean),
        std=tuple(config.get("std") or processor.image_std),
    )


def text_backbone(name: str) -> Backbone:
    """A backbone for texts.

    Args:
        name: `"minilm"` (a six-layer BERT from a package), a model of the Hub, or a directory with one.

    Raises:
        UserError: there is no such model, or the package is not installed.
    """
    where = minilm_directory() if name == MINILM else name
    return Backbone(
        lambda classes: load_pretrained(
            AutoModelForSequenceClassification.from_pretrained, where, num_labels=classes
        ),
        tokenizer=load_pretrained(AutoTokenizer.from_pretrained, where),
    )


def _from_timm(architecture: str, classes: int, weights: dict[str, torch.Tensor] | None) -> nn.Module:
    config = TimmWrapperConfig(architecture=architecture)
    config.num_labels = classes
    model = TimmWrapperForImageClassification(config)
    if weights is not None:
        kept = {name: tensor for name, tensor in weights.items() if name not in CLASSIFIERS}
        model.timm_model.load_state_dict({**model.timm_model.state_dict(), **kept})
    return _channels_last(model)


def _channels_last(model: Any) -> nn.Module:
    return model.to(
        memory_format=torch.channels_last
    )  # several times as fast on a CPU, and in half precision


def add_dropout(model: nn.Module, rate: float) -> None:
    """Drop features with probability `rate` before the classifier, in training, as DomainBed does.

    Raises:
        UserError: the model has no classifier that is a linear layer.
    """
    if rate > 0:
        classifier_of(model).register_forward_pre_hook(
            lambda layer, inputs: (nn.functional.dropout(inputs[0], rate, layer.training), *inputs[1:])
        )


def freeze_batch_norm(model: nn.Module) -> None:
    """Keep the running statistics of all batch normalizations as they are, and use them in training too.

    Their scales and shifts are trained, as DomainBed does.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # The Trainer calls model.train() before every step.
            module.register_forward_pre_hook(_in_evaluation_mode)


def _in_evaluation_mode(module: nn.Module, inputs: Any) -> None:
    module.eval()
