"""CORAL: the training domains' features get the same mean and covariance."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rgd_hf.contrib.errors import SetupError
from rgd_hf.contrib.features import classifier_of, recorded_inputs
from rgd_hf.contrib.penalty import Forward, PenaltyMixin


def coral_penalty(features: Tensor, domains: Tensor, num_domains: int) -> Tensor:
    """Mean over all pairs of domains of the squared differences of their features' means and covariances.

    For domains a and b, the mean over elements of `(mean_a - mean_b)**2`, plus that of `(cov_a - cov_b)**2` with n - 1 in
    the covariance (a single sample has the covariance 0). Nothing waits for the device.

    Source: Sun and Saenko, "Deep CORAL: Correlation Alignment for Deep Domain Adaptation", ECCV 2016 Workshops, Equation 1
    (arXiv 1607.01719), between every two training domains and with their means, as in DomainBed (Gulrajani and Lopez-Paz,
    ICLR 2021, arXiv 2007.01434).

    Args:
        features: float `[samples, features]`.
        domains: domain of each sample, int `[samples]`, from 0 to `num_domains - 1`.
        num_domains: number of domains; those without a sample are ignored.

    Returns:
        0-dimensional; 0 for fewer than two domains.
    """
    member = (torch.arange(num_domains, device=domains.device)[:, None] == domains).to(features.dtype)
    counts = member.sum(dim=1)
    means = member @ features / counts.clamp(min=1)[:, None]
    covariances = []
    for number in range(num_domains):
        centred = (features - means[number]) * member[number][:, None]
        covariances.append(centred.T @ centred / (counts[number] - 1).clamp(min=1))
    present = (counts > 0).to(features.dtype)
    total, pairs = features.sum() * 0.0, counts.new_zeros(())
    for a in range(num_domains):
        for b in range(a + 1, num_domains):
            both = present[a] * present[b]
            distance = (means[a] - means[b]).square().mean() + (
                covariances[a] - covariances[b]
            ).square().mean()
            total, pairs = total + both * distance, pairs + both
    return total / pairs.clamp(min=1)


class CORALMixin(PenaltyMixin):
    """Deep CORAL for any class that derives from `ReweightingMixin` and a Trainer; list it before them.

        class CORALTrainer(CORALMixin, ReweightedTrainer): ...

        CORALTrainer(model, args, train_dataset=train, num_domains=3, reweighting="kl")

    The features are the input of the classifier, the last linear layer with one output per class, in float32. The
    penalty is `coral_penalty`; a batch should have several samples of each domain.

    Args:
        num_domains: number of training domains; each sample's domain is an integer from 0 to `num_domains - 1`.
        coral_weight: weight of the penalty (default 1).
        domain_column: the column of the batches that holds the domains, int `[batch]` (default `"domain"`). The model never
            sees it.

    Raises:
        SetupError: `num_domains` is below 1, `coral_weight` negative, or the model has no such layer or no `config.num_labels`; in training: the layer
            does not get one row per sample, a batch lacks the column, or the first has a domain not below `num_domains`.
    """

    def __init__(
        self,
        *args: Any,
        num_domains: int,
        coral_weight: float = 1.0,
        domain_column: str = "domain",
        **kwargs: Any,
    ):
        if num_domains < 1 or coral_weight < 0:
            raise SetupError(
                f"CORAL needs at least one domain and a weight of at least 0, not num_domains={num_domains} and "
                f"coral_weight={coral_weight}."
            )
        self.num_domains, self.coral_weight, self.domain_column = num_domains, coral_weight, domain_column
        self.hidden_columns = (*getattr(self, "hidden_columns", ()), domain_column)
        self._domains_checked = False
        super().__init__(*args, **kwargs)
        classifier_of(self.bare_model())

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._domains_checked = False
        return super()._inner_training_loop(*args, **kwargs)

    def with_penalty(self, forward: Forward, inputs: Mapping[str, Any]) -> tuple[tuple[Tensor, Any], Tensor]:
        """See `PenaltyMixin`."""
        domains = self._domains(inputs)
        with recorded_inputs(classifier_of(self.bare_model())) as recorded:
            result, others = super().with_penalty(forward, inputs)
        features = recorded[-1]
        if features.dim() != 2 or features.shape[0] != domains.shape[0]:
            raise SetupError(
                f"the classifier of {type(self.bare_model()).__name__} is given features of shape {list(features.shape)}, "
                "not one row per sample: choose another model, or another method."
            )
        return result, others + self.coral_weight * coral_penalty(features, domains, self.num_domains)

    def _domains(self, inputs: Mapping[str, Any]) -> Tensor:
        if self.domain_column not in inputs:
            raise SetupError(
                f"CORAL needs the column {self.domain_column!r} (a domain's number for every sample) in every training batch, "
                f"but this batch has only {', '.join(sorted(inputs))}. Set domain_column, and keep the column in the data "
                "collator."
            )
        domains = torch.as_tensor(inputs[self.domain_column], device=self.args.device).reshape(-1).long()
        if not self._domains_checked:  # of the first batch alone, because it waits for the device
            low, high = int(domains.min()), int(domains.max())
            if low < 0 or high >= self.num_domains:
                raise SetupError(
                    f"The column {self.domain_column!r} of the first batch has domains from {low} to {high}, but "
                    f"num_domains={self.num_domains} allows 0 to {self.num_domains - 1}."
                )
            self._domains_checked = True
        return domains
