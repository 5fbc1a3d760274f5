"""The Trainer of all algorithms: per-domain batches, and a penalty on the features where an algorithm has one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers.trainer_utils import EvalLoopOutput

from rgd_hf import ReweightedTrainer
from rgd_hf.scripts.domains.batches import DOMAIN
from rgd_hf.scripts.domains.predictions import CheckpointPredictions
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.metrics import predicted_labels
from rgd_hf.scripts.predictions import PredictionsMixin
from rgd_hf.scripts.weight_histogram import WeightHistogramMixin


class DomainTrainer(WeightHistogramMixin, PredictionsMixin, ReweightedTrainer):
    """Empirical risk minimization over the training domains, with whatever re-weighting its arguments say.

    `eval_dataset` is a dict of one data set a split, named `<domain>_in` and `<domain>_out`.

    Args:
        sampler: of the training batches.
        hyper_parameters: those of the algorithm, by name.
        training_domains: names of the domains that are trained on, by their number in a batch.
        kept: is given what every evaluation predicts; None to keep nothing.
    """

    hidden_columns = (DOMAIN,)

    def __init__(
        self,
        *args: Any,
        sampler: Sampler,
        hyper_parameters: Mapping[str, Any],
        training_domains: list[str],
        kept: CheckpointPredictions | None = None,
        **kwargs: Any,
    ):
        self.domain_sampler, self.kept = sampler, kept
        self.hyper_parameters, self.training_domains = hyper_parameters, training_domains
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        return self.domain_sampler

    def predicted(self, outputs: Any) -> np.ndarray:
        """Class numbers int64 `[samples]`, whatever the model's `problem_type`."""
        return predicted_labels(outputs, "single_label_classification")

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As the Trainer's; what it predicted goes to `kept`."""
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if self.kept is not None:
            split, table = metric_key_prefix.removeprefix("eval_"), self.predictions[metric_key_prefix]
            self.kept.add(self.state.global_step, split, table, dataloader.dataset.numbers)
        return output

    def finish(self) -> bool:
        """Make `self.model` what the algorithm returns after training; whether that is another than the last one."""
        return False


class PenaltyTrainer(DomainTrainer):
    """Adds a penalty on a batch's features to the (re-weighted) mean of its losses.

    The penalty belongs to the batch, not to a sample, so it is never re-weighted. A step of several micro-batches has
    the mean of their penalties, by their share of the step; each holds all domains.
    """

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective of the Trainer plus the penalty; in evaluation the plain loss."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

        def forward() -> tuple[Tensor, Any]:
            return super(PenaltyTrainer, self).compute_loss(model, inputs, True, num_items_in_batch)

        (loss, outputs), penalty = self.with_penalty(forward, inputs)
        loss = loss + penalty
        return (loss, outputs) if return_outputs else loss

    def with_penalty(self, forward: Any, inputs: Mapping[str, Any]) -> tuple[tuple[Tensor, Any], Tensor]:
        """Run `forward()` while recording features; its result and the penalty, 0-dimensional, times its weight.

        Args:
            forward: runs the model on `inputs`.
            inputs: a batch, the domains of its samples under `DOMAIN`.
        """
        raise NotImplementedError

    def bare_model(self) -> nn.Module:
        """The model without the wrappers of distributed training."""
        return self.accelerator.unwrap_model(self.model)


def by_domain(features: Tensor, domains: Tensor, count: int) -> list[Tensor]:
    """The rows of each of `count` domains that the batch has at least one sample of."""
    groups = [features[domains == number] for number in range(count)]
    return [group for group in groups if len(group)]


def check_one_row_a_sample(features: Tensor, domains: Tensor) -> Tensor:
    """`features` if they are `[batch, features]`.

    Raises:
        UserError: they are not.
    """
    if features.dim() != 2 or features.shape[0] != domains.shape[0]:
        raise UserError(
            f"the classifier of this backbone is given features of shape {list(features.shape)}, not one row a sample: "
            "choose another backbone, or another of --algorithms."
        )
    return features
