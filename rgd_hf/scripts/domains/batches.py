"""Training batches: the same number of samples of every training domain, one after the other."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset, Sampler

from rgd_hf.batches.columns import SAMPLE_INDEX
from rgd_hf.scripts.domains.environments import seed_hash
from rgd_hf.scripts.domains.views import View

DOMAIN = "domain"
"""The column of a batch that holds the number of each sample's training domain."""


class Draw(NamedTuple):
    """One drawn sample: the number of its training domain, its number there, the seed of its augmentation."""

    domain: int
    sample: int
    seed: int


class TrainingDomains(Dataset):
    """The training samples as one data set that is read by `Draw`, or by number for a sample that is not augmented.

    Samples are numbered from 0, domain by domain, in the order of the splits.

    Args:
        views: one a training domain.
        splits: the sample numbers of each one's `in` split.
        labels: classes of all samples, int `[samples]`: what balanced class weights count.
    """

    def __init__(self, views: Sequence[View], splits: Sequence[np.ndarray], labels: np.ndarray):
        self.views, self.splits, self.labels = views, splits, labels
        self._starts = np.cumsum([0, *(len(numbers) for numbers in splits)])
        self._positions = [np.argsort(numbers) for numbers in splits]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Draw | int) -> dict[str, Any]:
        domain, sample, seed = key if isinstance(key, Draw) else (*self.place(key), None)
        return {
            **self.views[domain].sample(sample, seed),
            DOMAIN: domain,
            SAMPLE_INDEX: self._index(domain, sample),
        }

    def place(self, index: int) -> tuple[int, int]:
        """Domain, and number in its environment, of the sample with this number."""
        domain = int(np.searchsorted(self._starts, index, side="right")) - 1
        return domain, int(self.splits[domain][index - self._starts[domain]])

    def _index(self, domain: int, sample: int) -> int:
        position = np.searchsorted(self.splits[domain], sample, sorter=self._positions[domain])
        return int(self._starts[domain] + self._positions[domain][position])


class DomainSampler(Sampler[Draw]):
    """Draws with replacement, `per_domain` samples of each training domain in turn.

    Every domain draws from a generator of its own, seeded by the trial and the domain alone: all algorithms, and all
    choices of what to hold out, see the same samples in the same order with the same augmentations.

    Args:
        splits: the sample numbers of each training domain's `in` split.
        positions: the number of each training domain among all environments.
        trial: number of the trial.
        per_domain: samples of a domain in a batch.
        batches: number of batches.
    """

    def __init__(
        self,
        splits: Sequence[np.ndarray],
        positions: Sequence[int],
        trial: int,
        per_domain: int,
        batches: int,
    ):
        self.splits, self.positions, self.trial = splits, positions, trial
        self.per_domain, self.batches = per_domain, batches

    def __len__(self) -> int:
        return self.batches * len(self.splits) * self.per_domain

    def __iter__(self) -> Iterator[Draw]:
        random = [np.random.default_rng(seed_hash(self.trial, "batches", place)) for place in self.positions]
        for _ in range(self.batches):
            for domain, numbers in enumerate(self.splits):
                for _ in range(self.per_domain):
                    sample = int(numbers[random[domain].integers(len(numbers))])
                    yield Draw(domain, sample, int(random[domain].integers(2**31)))
