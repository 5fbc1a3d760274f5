"""Reading a model's features while it runs: what the classifier sees, or what its stages give."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rgd_hf.contrib.errors import SetupError


def classifier_of(model: nn.Module) -> nn.Module:
    """The last linear layer with one output per class, whose input are the features of a sample.

    Raises:
        SetupError: the model has none, or does not say how many classes there are (`config.num_labels`).
    """
    classes = getattr(getattr(model, "config", None), "num_labels", None)
    if classes is None:
        raise SetupError(
            f"{type(model).__name__} has no config.num_labels, the number of classes by which its classifier is found: set "
            "model.config = transformers.PreTrainedConfig(num_labels=...)."
        )
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not found:
        raise SetupError(
            f"{type(model).__name__} has no linear layer with {classes} outputs, whose input would be the features of a "
            "sample: choose another model, or another method."
        )
    return found[-1]


def stages_of(model: nn.Module) -> list[nn.Module]:
    """The parts of a model whose outputs are its intermediate features, from the first to the last.

    timm says what they are; else they are the largest list of layers, as every model of transformers has one.

    Raises:
        SetupError: neither is there.
    """
    backbone = getattr(model, "timm_model", None)
    if backbone is not None and getattr(backbone, "feature_info", None):
        names = [info["module"] for info in backbone.feature_info]
        return [backbone.get_submodule(name) for name in names]
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise SetupError(
            f"{type(model).__name__} has no list of layers, whose outputs would be its intermediate features: choose "
            "another model, or another method."
        )
    longest: Any = max(lists, key=len)
    return list(longest)


@contextmanager
def recorded_inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """Within the context, the list gets what `module` is called with, float32."""
    record: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: record.append(inputs[0].float()))
    try:
        yield record
    finally:
        handle.remove()


@contextmanager
def recorded_outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Within the context, the list gets what each of `modules` returns, float32."""
    record: list[Tensor] = []

    def append(module: nn.Module, inputs: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple | list) else output
        record.append(tensor.float() if torch.is_tensor(tensor) else tensor)

    handles = [module.register_forward_hook(append) for module in modules]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()
