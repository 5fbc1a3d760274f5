"""CORAL: the training domains' features get the same mean and covariance."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rgd_hf.scripts.domains.batches import DOMAIN
from rgd_hf.scripts.domains.features import classifier_of, recorded_inputs
from rgd_hf.scripts.domains.training import PenaltyTrainer, by_domain, check_one_row_a_sample


def coral_penalty(groups: list[Tensor]) -> Tensor:
    """Mean over all pairs of domains of the squared differences of their features' means and covariances.

    As in DomainBed (after Sun and Saenko, "Deep CORAL", ECCV-W 2016): the mean over elements of
    `(mean_a - mean_b)**2`, plus that of `(cov_a - cov_b)**2` with n - 1 in the covariance.

    Args:
        groups: features of each domain, float `[samples, features]` with at least one sample.

    Returns:
        0-dimensional; 0 for fewer than two domains.
    """
    moments = []
    for group in groups:
        centred = group - group.mean(dim=0, keepdim=True)
        # One sample has no covariance: 0 instead of 0 / 0.
        moments.append((group.mean(dim=0), centred.T @ centred / max(len(group) - 1, 1)))
    pairs = [
        (mean - other_mean).square().mean() + (covariance - other_covariance).square().mean()
        for number, (mean, covariance) in enumerate(moments)
        for other_mean, other_covariance in moments[number + 1 :]
    ]
    return torch.stack(pairs).mean() if pairs else groups[0].sum() * 0.0


class CoralTrainer(PenaltyTrainer):
    """Deep CORAL. Its hyper-parameter `coral_weight` is the weight of the penalty."""

    def with_penalty(self, forward: Any, inputs: Mapping[str, Any]) -> tuple[tuple[Tensor, Any], Tensor]:
        """See `PenaltyTrainer`."""
        with recorded_inputs(classifier_of(self.bare_model())) as features:
            result = forward()
        rows = check_one_row_a_sample(features[-1], inputs[DOMAIN])
        groups = by_domain(rows, inputs[DOMAIN], len(self.training_domains))
        return result, self.hyper_parameters["coral_weight"] * coral_penalty(groups)
