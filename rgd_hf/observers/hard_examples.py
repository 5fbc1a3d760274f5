"""The training samples that carried the most weight: those that are hard, and those that are mislabelled."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rgd_hf.batches.columns import SAMPLE_INDEX
from rgd_hf.batches.datasets import check_numbered
from rgd_hf.items import Items, losses_at_level, reference_at_level
from rgd_hf.observers.base import Observer


@dataclass(frozen=True)
class HardExample:
    """The mean weight and loss of a training sample over a training.

    Attributes:
        index: index of the sample in `trainer.train_dataset`, from 0.
        weight: its weight (the mean over its tokens), averaged over its visits; always 1 with `reweighting="none"`.
        loss: its loss, averaged in the same way.
        seen: how often the sample was trained on.
    """

    index: int
    weight: float
    loss: float
    seen: int


class HardExamples(Observer):
    """Remembers which training samples carried the most weight.

    The weights, losses and visits of every sample are summed on the device in the steps, without waiting for it, and
    read when `most_weighted` is called. Besides hard samples the list contains mislabelled ones, which keep a large loss
    while the model learns the others.

        examples = HardExamples()
        trainer = ReweightedTrainer(model, args, train_dataset=train, reweighting="kl")
        trainer.add_observer(examples)
        trainer.train()
        for example in examples.most_weighted(50):
            print(example.weight, example.loss, trainer.train_dataset[example.index])

    The training set must be map-style, with examples that are dicts. Batches carry the index of each sample in a column
    `sample_index`, which the model is not shown; examples may bring that column themselves, if the sampler's keys are
    not the indices of samples. Indices are those of `trainer.train_dataset`, from which a Trainer that prepares its data
    (TRL's) may have dropped rows that were given: a warning says so. Under mixup or another collator that blends samples, a loss is attributed to the sample
    at the same position in the batch.

    Raises:
        ValueError: in training: the training set has no indices (an `IterableDataset`), the losses are not this
            library's (see `ReweightingMixin`), a batch lacks the column, or does not hold one loss (or row of losses) per
            sample.
    """

    name = "hard_examples"
    columns = (SAMPLE_INDEX,)
    kept = ("sums",)

    def __init__(self) -> None:
        self.samples = 0
        self._accelerator: Any = None

    def start(self, trainer: Any) -> None:
        """Check that the samples have indices and unreduced losses."""
        check_numbered(trainer.train_dataset)
        if not trainer.unreduces_losses:
            raise ValueError(
                "The loss of this model is the stock Trainer's, which is not known per sample: pass "
                "per_sample_loss_fn, or leave hard examples out."
            )
        self.samples, self._accelerator = len(trainer.train_dataset), trainer.accelerator

    def initial_state(self) -> dict[str, Tensor]:
        """Sums per sample, `[samples, 3]`: mean weights, mean losses, and visits."""
        # float32 would lose digits over a long training.
        return {"sums": torch.zeros(self.samples, 3, dtype=torch.float64)}

    def observe(self, items: Items, weights: Tensor, step: int) -> None:
        """Add one micro-batch to the sums of its samples."""
        indices = items.batch.get(SAMPLE_INDEX)
        if indices is None:
            raise ValueError(
                f"HardExamples needs the column {SAMPLE_INDEX!r} (the index of each sample in the training set) in every "
                f"training batch, but this batch has only {', '.join(sorted(items.batch))}. The Trainer's own "
                "get_train_dataloader adds it; for another one, give the training examples this column and keep it in the "
                "data collator, or leave hard examples out."
            )
        add_by_sample(self.state["sums"], indices, items, weights)

    def missing(self, checkpoint: str) -> None:
        """Refuse: the list would cover only a part of the training."""
        raise ValueError(
            f"{checkpoint} should hold sums of {self.samples} training samples in {self.name}.safetensors, but has none: "
            "resume without hard examples, or from a checkpoint that was written with them."
        )

    def load(self, state: Mapping[str, Tensor], is_main_process: bool) -> None:
        """Restore the sums of a checkpoint."""
        found = len(state["sums"])
        if found != self.samples:
            raise ValueError(
                f"The checkpoint should hold sums of {self.samples} training samples in {self.name}.safetensors, but has "
                f"those of {found} samples: resume without hard examples, or with the training set "
                "that it was written with."
            )
        super().load(state, is_main_process)

    def most_weighted(self, count: int) -> list[HardExample]:
        """The `count` samples with the largest mean weight over the last training, the heaviest first.

        Equal weights (all of them with `reweighting="none"`) are ordered by the mean loss. Samples that were never
        trained on are not listed. Waits for the device; every process has to call it, and gets the same list.

        Raises:
            RuntimeError: nothing was recorded, because there was no training.
        """
        if self._accelerator is None:
            raise RuntimeError("No examples were recorded: call train() first.")
        weights, losses, seen = self.merged(self._accelerator)["sums"].double().cpu().numpy().T
        indices = np.flatnonzero(seen)
        weights, losses, seen = (
            weights[indices] / seen[indices],
            losses[indices] / seen[indices],
            seen[indices],
        )
        order = np.lexsort((indices, -losses, -weights))[:count]
        return [
            HardExample(int(indices[i]), float(weights[i]), float(losses[i]), int(seen[i])) for i in order
        ]


def add_by_sample(sums: Tensor, indices: Tensor, items: Items, weights: Tensor) -> None:
    """Add one micro-batch to the sums per sample, without waiting for the device.

    Args:
        sums: `[samples, 3]`: sums of mean weights, of mean losses, and of visits; changed in place.
        indices: indices of the samples in the batch, int64 `[batch]`.
        items: their losses and reference weights, `[batch]` or `[batch, tokens]`. Means are taken over the items of a
            sample by their reference weights; a sample without items is not counted.
        weights: weight of each item, of the shape of `items.losses`.

    Raises:
        ValueError: the losses do not have one row per sample.
    """
    if items.losses.shape[0] != indices.numel():
        raise ValueError(
            f"The batch has {indices.numel()} samples, but losses of shape {list(items.losses.shape)}: if samples "
            "are packed into one row, the loss of each sample is not known. Turn packing off, or leave hard examples out."
        )
    seen = (reference_at_level(items.reference, "sample") > 0).to(items.losses.dtype)
    means = [losses_at_level(values, items.reference, "sample") for values in (weights, items.losses)]
    added = torch.stack([*(seen * mean for mean in means), seen], dim=1)
    sums.index_add_(0, indices.to(sums.device), added.to(sums.dtype))
