"""Batches out of a table that lies on the device: one indexing operation a batch instead of one read a row."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset


class TensorTable(Dataset):
    """Columns of equal length as tensors, moved to the device once.

    Args:
        columns: tensors `[rows, ...]` by the name under which the model's forward takes them.
        device: where they are kept.
    """

    def __init__(self, columns: dict[str, Tensor], device: torch.device | str = "cpu"):
        self.columns = {name: values.to(device) for name, values in columns.items()}
        self.rows = len(next(iter(columns.values())))

    @property
    def labels(self) -> Tensor:
        """Class of every row, int64 `[rows]`: what balanced class weights count."""
        return self.columns["labels"]

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int | Tensor | slice) -> dict[str, Tensor]:
        return {name: values[index] for name, values in self.columns.items()}


class BatchLoader:
    """Yields batches of a `TensorTable` by indexing it.

    Args:
        table: the data.
        batch_size: rows per batch, on one process.
        shuffle: a new order each epoch, drawn from `seed + epoch`; else all rows in order.
        seed: random seed of the order; the same on all processes.
        rank: rank of this process among `world_size`. Shuffled rows are dealt out evenly, so up to `world_size - 1` of
            them, other ones each epoch, are left out; in order, every process goes through all rows.
        world_size: number of processes.
    """

    def __init__(
        self,
        table: TensorTable,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.dataset = table
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._device = next(iter(table.columns.values())).device

    @property
    def _rows(self) -> int:
        return len(self.dataset) // self.world_size if self.shuffle else len(self.dataset)

    def __len__(self) -> int:
        batches = -(-self._rows // self.batch_size)
        # Batch normalization cannot train on one row.
        return batches - (self.shuffle and batches > 1 and self._rows % self.batch_size == 1)

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch that the next order belongs to; the Trainer calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if not self.shuffle:
            for start in range(0, len(self.dataset), self.batch_size):
                yield self.dataset[slice(start, start + self.batch_size)]
            return
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.dataset), generator=generator)
        mine = order[self.rank :: self.world_size][: self._rows].to(self._device)
        for index in mine.split(self.batch_size)[: len(self)]:
            yield self.dataset[index]
