"""The training samples that carried the most weight: those that are hard, and those that are mislabelled."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from rgd_hf.data import SAMPLE_INDEX, ColumnCollator
from rgd_hf.overrides import check_order
from rgd_hf.weighting import Items

if TYPE_CHECKING:
    from rgd_hf.trainer import ReweightedTrainer as TrainerBase
else:
    TrainerBase = object

SUMS_NAME = "hard_examples.safetensors"


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


class HardExamplesMixin(TrainerBase):
    """Remembers which training samples carried the most weight, for any class that derives from `ReweightingMixin`.

    The weights, losses and visits of every sample are summed on the device in the steps, without waiting for it, and
    read when `hard_examples` is called. The sums are kept in checkpoints (`hard_examples.safetensors`). Beside samples
    that are hard the list has samples with a wrong label, which keep a large loss while the model learns the others.

        class MyTrainer(HardExamplesMixin, ReweightedTrainer): ...

        trainer = MyTrainer(model, args, train_dataset=train, reweighting="kl")
        trainer.train()
        for example in trainer.hard_examples(50):
            print(example.weight, example.loss, train[example.index])

    The training set has to be map-style, with examples that are dicts. Batches carry its numbers in a column
    `sample_index`, which the model is not shown; examples may have that column themselves, where the sampler's keys are
    not the numbers of samples. Under mixup or another collator that blends samples, a loss counts for the sample at
    its place in the batch.

    Args:
        record_examples: False for a Trainer without any of this.

    Raises:
        ValueError: the training set has no numbers to call its samples by (an `IterableDataset`), the losses are
            not this library's (see `ReweightingMixin`), or a batch does not hold one loss (or row of them) a sample.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        check_order(cls, HardExamplesMixin)

    def __init__(self, *args: Any, record_examples: bool = True, **kwargs: Any):
        self.record_examples = record_examples
        self._indices: Tensor | None = None
        self._example_sums: Tensor | None = None
        super().__init__(*args, **kwargs)
        if record_examples and self.train_dataset is not None:
            _check_numbered(self.train_dataset)

    def hard_examples(self, count: int) -> list[HardExample]:
        """The `count` samples with the largest mean weight over the last training, the heaviest first.

        Equal weights (all of them with `reweighting="none"`) are ordered by the mean loss. Samples that were never
        trained on are left out. Waits for the device; every process has to call it, and gets the same list.

        Raises:
            RuntimeError: nothing was recorded: no training, or `record_examples=False`.
        """
        if self._example_sums is None:
            raise RuntimeError("No examples were recorded: call train() with record_examples=True first.")
        weights, losses, seen = self._sums_of_all_processes().double().cpu().numpy().T
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

    # --- the number of a sample: from the data set to the batch, not to the model -----------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if SAMPLE_INDEX not in columns:
            columns.append(SAMPLE_INDEX)

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ):
        rest = is_training, dataloader_key
        if not (self.record_examples and is_training):
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, *rest)
        if isinstance(dataset, datasets.Dataset):
            dataset = self._remove_unused_columns(dataset, description=description)
        collator = self.data_collator
        self.data_collator = ColumnCollator(collator, SAMPLE_INDEX, torch.int64)
        try:
            return super()._get_dataloader(
                _NumberedExamples(dataset),
                description,
                batch_size,
                # The sampler may look for columns in the data set.
                None if sampler_fn is None else lambda _: sampler_fn(dataset),
                *rest,
            )
        finally:
            self.data_collator = collator

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As the Trainer's; the model is not shown the samples' numbers."""
        self._indices = inputs.get(SAMPLE_INDEX)
        inputs = {name: value for name, value in inputs.items() if name != SAMPLE_INDEX}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    # --- sums -------------------------------------------------------------------------------------------------------

    def weigh(self, items: Items, inputs: Any) -> Tensor:
        """As the Trainer's; weights and losses of training batches are added up by sample."""
        weights = super().weigh(items, inputs)
        if self._indices is not None and self._example_sums is not None and self.is_in_train:
            add_by_sample(self._example_sums, self._indices, items, weights)
        return weights

    def _inner_training_loop(self, *args: Any, **kwargs: Any):
        if self.record_examples:
            dataset: Any = self.train_dataset
            _check_numbered(dataset)
            if self._loss_source() is None:
                raise ValueError(
                    "The losses of this model are the stock Trainer's affair, so they are not known by sample: pass "
                    "per_sample_loss_fn, or record_examples=False."
                )
            # float32 would lose digits over a long training; MPS knows no float64.
            dtype = torch.float32 if self.args.device.type == "mps" else torch.float64
            self._example_sums = torch.zeros(len(dataset), 3, device=self.args.device, dtype=dtype)
        return super()._inner_training_loop(*args, **kwargs)

    def _sums_of_all_processes(self) -> Tensor:
        assert self._example_sums is not None
        return self.accelerator.reduce(self._example_sums.clone(), reduction="sum")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._example_sums is not None:
            sums = self._sums_of_all_processes()
            if self.args.should_save:
                save_file({"sums": sums}, str(Path(output_dir) / SUMS_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self._example_sums is None:
            return
        path = Path(checkpoint) / SUMS_NAME
        sums = load_file(str(path))["sums"] if path.is_file() else None
        if sums is None or sums.shape != self._example_sums.shape:
            found = "none" if sums is None else f"those of {len(sums)} samples"
            raise ValueError(
                f"{checkpoint} should hold sums of {len(self._example_sums)} training samples in {SUMS_NAME}, but has "
                f"{found}: resume with record_examples=False, or from a checkpoint that was written with it."
            )
        # One process goes on with the sums of all, so that they are counted once.
        if self.accelerator.is_main_process:
            self._example_sums.copy_(sums)


class _NumberedExamples(Dataset):
    """The examples of a map-style data set, each with its number."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        return _with_number(self.dataset[key], key)

    def __getitems__(self, keys: list[Any]) -> list[dict[str, Any]]:
        fetch = getattr(self.dataset, "__getitems__", None)
        examples = fetch(keys) if fetch is not None else [self.dataset[key] for key in keys]
        return [_with_number(example, key) for example, key in zip(examples, keys, strict=True)]


def _with_number(example: Any, key: Any) -> dict[str, Any]:
    if not isinstance(example, Mapping):
        raise ValueError(
            f"Hard examples are found in training sets whose examples are dicts, not {type(example).__name__}."
        )
    return {**example, SAMPLE_INDEX: example.get(SAMPLE_INDEX, key)}


def _check_numbered(dataset: Any) -> None:
    streamed = isinstance(dataset, IterableDataset | datasets.IterableDataset)
    if streamed or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise ValueError(
            f"Hard examples are called by their number in the training set, but {type(dataset).__name__} has none: give "
            "a map-style data set (with __getitem__ and __len__), or record_examples=False."
        )


@torch.no_grad()
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
            "are packed into one row, what a sample lost is not known. Turn packing off, or set record_examples=False."
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
