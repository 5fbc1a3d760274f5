"""Models that are trained: any of timm or transformers, with weights of the Hub, a directory, a file, a package, or none."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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

from rgd_hf.contrib.features import classifier_of
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.files.hub import load_pretrained
from rgd_hf.scripts.text.embedded import minilm_directory
from rgd_hf.scripts.vision.efficientnet_lite import ARCHITECTURE, PACKAGE
from rgd_hf.scripts.vision.models import normalization_of
from rgd_hf.scripts.vision.timm_weights import (
    classifiers,
    first_line,
    number_of_classes,
    pretrained_cfg,
    read_weights,
    with_weights,
)

EFFICIENTNET_LITE0 = "efficientnet-lite0"
MINILM = "minilm"
NO_WEIGHTS = "none"
# timm renames older tensors before it loads them, which stumbles in many ways over those of another architecture.
_MISFITS = (RuntimeError, LookupError, ValueError, TypeError, AttributeError, AssertionError)


@dataclass
class BackboneArguments:
    """Model."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": f"Model of the Hugging Face Hub (timm/... included) or a directory; {EFFICIENTNET_LITE0} (images) "
            f"and {MINILM} (texts), the defaults, come with packages. With --weights, the name of an architecture of timm."
        },
    )
    weights: str | None = field(
        default=None,
        metadata={
            "help": "Pretrained weights for the timm architecture --model_name_or_path from a local file (.safetensors, "
            f".pth, .pt), or `{NO_WEIGHTS}` for random ones. Without it, the model's own. A classifier for another number of "
            "classes is replaced by a new one."
        },
    )
    freeze_batch_norm: bool = field(
        default=True,
        metadata={"help": "Do not update the running statistics of batch normalization in training."},
    )


@dataclass(frozen=True)
class Backbone:
    """A kind of model and what its inputs look like.

    Attributes:
        build: creates a new model for a number of classes; its classifier is untrained if it had a different number.
        mean: mean of the normalization of images, one number per channel.
        std: standard deviation of the normalization, one number per channel.
        tokenizer: tokenizer, for texts.
        processor: image processor, if the model comes with one; saved with it.
    """

    build: Callable[[int], nn.Module]
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    tokenizer: PreTrainedTokenizerBase | None = None
    processor: Any = None


def load_backbone(args: BackboneArguments, kind: str) -> Backbone:
    """The model for `"image"` or `"text"` that the options name.

    Raises:
        UserError: there is no such model, or the options do not go together.
    """
    name, weights = args.model_name_or_path, args.weights
    if kind == "image":
        if weights not in (None, NO_WEIGHTS) and name is None:
            raise UserError(
                "--weights needs the timm architecture that they are for: --model_name_or_path timm/NAME."
            )
        random = weights == NO_WEIGHTS
        return image_backbone(name or EFFICIENTNET_LITE0, not random, None if random else weights)
    if weights is not None:
        raise UserError("--weights is for images: a text model brings its own, leave the option out.")
    return text_backbone(name or MINILM)


def image_backbone(name: str, pretrained: bool = True, weights: str | None = None) -> Backbone:
    """A backbone for images.

    Args:
        name: `"efficientnet-lite0"` (weights from a package); else with `pretrained` an image classifier of the Hub
            (`timm/...` included) or a directory with one, and without it or with `weights` an architecture of timm,
            with or without `timm/` before its name.
        pretrained: False for random weights, where there are no `weights`.
        weights: a local file (.safetensors, .pth, .pt) with all tensors of the architecture; its classifier is left
            out where the data has another number of classes. None (default) for those that `name` brings.

    Raises:
        UserError: there is no such model, architecture or file, the file's weights are of another architecture, or
            the package is not installed.
    """
    if weights is not None or (name == EFFICIENTNET_LITE0 and pretrained):
        architecture = _architecture(
            name,
            "--weights: those of a file are for an architecture of timm; a model of transformers or a directory "
            "brings its own, without --weights",
        )
        return _trained_backbone(architecture, PACKAGE if weights is None else weights)
    if not pretrained:
        architecture = _architecture(name, "--weights none: an architecture of timm is needed")
        return Backbone(lambda classes: _from_timm(architecture, classes))
    processor = load_pretrained(AutoImageProcessor.from_pretrained, name)
    config = getattr(processor, "data_config", None)  # timm's processor keeps its numbers there
    mean, std = (config["mean"], config["std"]) if config else normalization_of(processor)
    return Backbone(
        lambda classes: _channels_last(
            load_pretrained(
                AutoModelForImageClassification.from_pretrained,
                name,
                num_labels=classes,
                ignore_mismatched_sizes=True,
            )
        ),
        mean=tuple(mean),
        std=tuple(std),
        processor=processor,
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
            AutoModelForSequenceClassification.from_pretrained,
            where,
            num_labels=classes,
            ignore_mismatched_sizes=True,
        ),
        tokenizer=load_pretrained(AutoTokenizer.from_pretrained, where),
    )


def _architecture(name: str, need: str) -> str:
    """The name that timm has of a model; `need` begins the message where it has none."""
    architecture = ARCHITECTURE if name == EFFICIENTNET_LITE0 else name.removeprefix("timm/")
    if not timm.is_model(architecture):
        raise UserError(
            f"{need}. timm has no architecture {name!r}; see timm.list_models(), e.g. 'resnet18'."
        )
    pretrained_cfg(architecture)  # raises where the name ends in a tag that is not there
    return architecture


def _trained_backbone(architecture: str, source: str) -> Backbone:
    """Every tensor of a timm model from a file or the package, but a classifier of another number of classes."""
    read = read_weights(source, architecture, "--model_name_or_path")
    try:
        weights = with_weights(architecture, read).state_dict()
    except _MISFITS as error:
        raise UserError(
            f"{source} does not hold the weights of timm's {architecture}: {first_line(error)} Name their "
            "architecture with --model_name_or_path."
        ) from error
    trained_classes = number_of_classes(architecture, weights)
    heads = {f"{module}.{kind}" for module in classifiers(architecture) for kind in ("weight", "bias")}
    features = {name: tensor for name, tensor in weights.items() if name not in heads}
    cfg = pretrained_cfg(architecture)

    def build(classes: int) -> nn.Module:
        return _from_timm(architecture, classes, weights if classes == trained_classes else features)

    return Backbone(build, mean=cfg.mean, std=cfg.std)


def _from_timm(
    architecture: str, classes: int, weights: Mapping[str, torch.Tensor] | None = None
) -> nn.Module:
    config = TimmWrapperConfig(architecture=architecture)
    config.num_labels = classes
    model = TimmWrapperForImageClassification(config)
    model.timm_model.load_state_dict({**model.timm_model.state_dict(), **(weights or {})})
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
