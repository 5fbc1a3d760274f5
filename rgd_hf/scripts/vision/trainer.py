"""The Trainer of image classifiers: seeded augmentation, layer-wise learning rates, averaged weights."""

from typing import Any

import numpy as np
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.utils.data import Sampler
from transformers import Trainer

from rgd_hf import ReweightedTrainer
from rgd_hf.contrib import EMAMixin
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.training.predictions import PredictionsMixin
from rgd_hf.scripts.vision.batches import AugmentedImages, SeededDraws


class ImageTrainer(EMAMixin, PredictionsMixin, ReweightedTrainer):
    """`ReweightedTrainer` for `AugmentedImages`.

    Args:
        repeated_augmentation: looks at an image in the same epoch.
        layer_decay: factor of the learning rate from each layer to the one below it; None for one rate.
        ema_decay: see `EMAMixin`.
        ema_warmup: see `EMAMixin`.
    """

    def __init__(
        self, *args: Any, repeated_augmentation: int = 1, layer_decay: float | None = None, **kwargs: Any
    ):
        if layer_decay is not None and not 0 < layer_decay <= 1:
            raise UserError(f"--layer_decay must be above 0 and at most 1, not {layer_decay:g}.")
        self.repeated_augmentation = repeated_augmentation
        self.layer_decay = layer_decay
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(dataset, AugmentedImages):
            return super()._get_train_sampler(train_dataset)
        return SeededDraws(
            len(dataset),
            self.repeated_augmentation,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    def predicted(self, outputs: Any) -> np.ndarray:
        """The first of the best classes, which evaluation keeps (see `metrics.keep_best_classes`)."""
        return np.asarray(outputs[0])[:, 0]

    def confidence(self, outputs: Any) -> np.ndarray:
        """Its probability, which evaluation keeps beside it."""
        return np.asarray(outputs[1])

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer of the arguments over timm's parameter groups.

        One-dimensional parameters and those that the model names (position embeddings, class tokens) have no weight
        decay.
        """
        if self.optimizer is None:
            whole: Any = self.model if model is None else model
            groups = parameter_groups(
                whole, self.args.learning_rate, self.args.weight_decay, self.layer_decay
            )
            optimizer, options = Trainer.get_optimizer_cls_and_kwargs(self.args, whole)
            self.optimizer = optimizer(groups, **options)
        return self.optimizer


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float | None
) -> list[dict[str, Any]]:
    """Groups for an optimizer, with the learning rate of each layer.

    Args:
        model: a transformers image classifier, or one of timm inside transformers' wrapper.
        learning_rate: learning rate of the classifier; layer k of n has `learning_rate * layer_decay**(n - k)`.
        weight_decay: weight decay of matrices and filters.
        layer_decay: None for one learning rate.

    Raises:
        UserError: the layers of the model cannot be told.
    """
    inner: Any = getattr(model, "timm_model", model)
    spared = inner.no_weight_decay() if hasattr(inner, "no_weight_decay") else ()
    if layer_decay is None:
        return param_groups_weight_decay(inner, weight_decay, no_weight_decay_list=spared)
    if not hasattr(inner, "group_matcher"):
        inner = _LayersByName(inner)
    groups = param_groups_layer_decay(inner, weight_decay, spared, layer_decay=layer_decay)
    for group in groups:
        group["lr"] = learning_rate * group.pop("lr_scale")
    return groups


class _LayersByName:
    """What timm needs to know of a model of transformers: its layers, by the numbers in the parameters' names."""

    def __init__(self, model: nn.Module):
        self.named_parameters = model.named_parameters
        layers = group_parameters(self, self.group_matcher(), reverse=True)  # type: ignore[arg-type]
        if max(layers.values()) < 3:
            raise UserError(
                f"--layer_decay: the layers of {type(model).__name__} cannot be told from the names of its parameters. "
                "Use the same architecture from timm (--model_name_or_path timm/NAME)."
            )

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        layer = r"(?:layers?|blocks?|stages)\.(\d+)\."
        return {
            "stem": r".*embeddings",
            "blocks": [
                (rf".*?\.{layer}(?:.*?\.)?{layer}", None),
                (rf".*?\.{layer}", None),
                (r".*norm", (99999,)),  # the norm behind the last layer goes with it
            ],
        }
