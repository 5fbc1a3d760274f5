"""Length-grouped batches whose order depends on the seed and the epoch alone."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from rgd_hf import ReweightedTrainer
from rgd_hf.scripts.training.predictions import PredictionsMixin


class SeededLengthGroupedSampler(LengthGroupedSampler):
    """`LengthGroupedSampler` drawn from `seed + epoch`.

    The stock one draws from the global random state, which dropout advances by another amount on every process
    (batches then overlap from the second epoch on) and which differs after a resume in the middle of an epoch.

    Args:
        batch_size: batch size of an optimizer step, all processes together.
        lengths: the length of every sample.
        seed: random seed of the order.
        epoch: tells the current epoch, from 0.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int, epoch: Callable[[], int]):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch())
        return super().__iter__()


class LengthGroupedTrainer(PredictionsMixin, ReweightedTrainer):
    """`ReweightedTrainer` whose `train_sampling_strategy="group_by_length"` is reproducible.

    With it the training set needs a column of lengths, named by `length_column_name`; evaluation begins with the
    longest samples, where the stock Trainer draws groups from the global random state that training continues with.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        # The argument has lost its column of lengths with the others that the model does not take.
        dataset: Any = self.train_dataset
        column = self.args.length_column_name
        return SeededLengthGroupedSampler(
            self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            lengths=list(dataset[column]),
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    def evaluation_order(self, dataset: Any) -> np.ndarray | None:
        """The longest first, where samples are grouped by length."""
        if self.args.train_sampling_strategy != "group_by_length":
            return None
        lengths = np.array([len(ids) for ids in dataset["input_ids"]])
        return np.argsort(-lengths, kind="stable")
