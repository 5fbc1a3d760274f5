"""The training samples that carried the most weight: those that are hard, and those that are mislabelled."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rgd_hf.data import SAMPLE_INDEX, check_numbered
from rgd_hf.observers.base import Observer
from rgd_hf.weighting import Items


@dataclass(frozen=True)
class HardExample:
    """What a training sample did over a training.

    Attributes:
        index: its number in the training set, from 0.
        weight: mean of its weights, each over the sample's items; 1 throughout with `reweighting="none"`.
        loss: mean of its losses, likewise.
        seen: how often it was trained on.
    """

    index: int
    weight: float
    loss: float
    seen: int


class HardExamples(Observer):
    """Remembers which training samples carried the most weight.

    The weights, losses and visits of every sample are summed on the device in the steps, without waiting for it, and
    read when `most_weighted` is called. Beside samples that are hard the list has samples with a wrong label, which keep a
    large loss while the model learns the others.

        examples = HardExamples()
        trainer = ReweightedTrainer(model, args, train_dataset=train, reweighting="kl")
        trainer.add_observer(examples)
        trainer.train()
        for example in examples.most_weighted(50):
            print(example.weight, example.loss, train[example.index])

    The training set has to be map-style, with examples that are dicts. Batches carry its numbers in a column
    `sample_index`, which the model is not shown; examples may have that column themselves, where the sampler's keys are
    not the numbers of samples. Under mixup or another collator that blends samples, a loss counts for the sample at
    its place in the batch.

    Raises:
        ValueError: in training: the training set has no numbers to call its samples by (an `IterableDataset`), the losses
            are not this library's (see `ReweightingMixin`), or a batch does not hold one loss (or row of them) a sample.
    """

    name = "hard_examples"
    columns = (SAMPLE_INDEX,)
    kept = ("sums",)

    def __init__(self) -> None:
        self.samples = 0
        self._accelerator: Any = None

    def start(self, trainer: Any) -> None:
        """Check that the samples have numbers, and losses of their own."""
        check_numbered(trainer.train_dataset)
        if not trainer.unreduces_losses:
            raise ValueError(
                "The losses of this model are the stock Trainer's affair, so they are not known by sample: pass "
                "per_sample_loss_fn, or do not ask for hard examples (record_examples=False)."
            )
        self.samples, self._accelerator = len(trainer.train_dataset), trainer.accelerator

    def initial_state(self) -> dict[str, Tensor]:
        """Sums by sample, `[samples, 3]`: of mean weights, of mean losses, and of visits."""
        # float32 would lose digits over a long training.
        return {"sums": torch.zeros(self.samples, 3, dtype=torch.float64)}

    def observe(self, items: Items, weights: Tensor, step: int) -> None:
        """Add one micro-batch to the sums of its samples."""
        indices = items.batch.get(SAMPLE_INDEX)
        if indices is not None:
            add_by_sample(self.state["sums"], indices, items, weights)

    def missing(self, checkpoint: str) -> None:
        """Refuse to list the samples of a part of the training."""
        raise ValueError(
            f"{checkpoint} should hold sums of {self.samples} training samples in {self.name}.safetensors, but has none: "
            "resume without hard examples (record_examples=False), or from a checkpoint that was written with them."
        )

    def load(self, state: Mapping[str, Tensor], is_main_process: bool) -> None:
        """Go on with the sums of a checkpoint."""
        found = len(state["sums"])
        if found != self.samples:
            raise ValueError(
                f"The checkpoint should hold sums of {self.samples} training samples in {self.name}.safetensors, but has "
                f"those of {found} samples: resume without hard examples (record_examples=False), or with the training set "
                "that it was written with."
            )
        super().load(state, is_main_process)

    def most_weighted(self, count: int) -> list[HardExample]:
        """The `count` samples with the largest mean weight over the last training, the heaviest first.

        Equal weights (all of them with `reweighting="none"`) are ordered by the mean loss. Samples that were never
        trained on are left out. Waits for the device; every process has to call it, and gets the same list.

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
    """Add one micro-batch to sums by sample, without waiting for the device.

    Args:
        sums: `[samples, 3]`: of mean weights, of mean losses, and of visits; changed in place.
        indices: the samples of the batch, int64 `[batch]`.
        items: their losses and reference weights, `[batch]` or `[batch, tokens]`. A sample's means are over its items,
            by their reference weight; one without any is not counted.
        weights: of the shape of `items.losses`.

    Raises:
        ValueError: the losses are not one row a sample.
    """
    if items.losses.shape[0] != indices.numel():
        raise ValueError(
            f"The batch has {indices.numel()} samples, but losses of shape {list(items.losses.shape)}: where samples "
            "are packed into one row, what a sample lost is not known. Turn packing off, or do not ask for hard examples (record_examples=False)."
        )
    if items.losses.dim() == 1:
        # One item a sample: half the operations, which small models notice.
        seen = (items.reference > 0).to(items.losses.dtype)
        means = torch.stack([seen * weights, seen * items.losses, seen], dim=1)
    else:
        rows = indices.numel()
        reference = items.reference.reshape(rows, -1)
        mass = reference.sum(dim=1)
        share = reference / torch.where(mass > 0, mass, 1.0)[:, None]
        losses, weights = items.losses.reshape(rows, -1), weights.reshape(rows, -1)
        means = torch.stack(
            [(share * weights).sum(dim=1), (share * losses).sum(dim=1), (mass > 0).to(share.dtype)], dim=1
        )
    sums.index_add_(0, indices.to(sums.device), means.to(sums.dtype))
