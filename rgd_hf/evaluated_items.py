"""The losses of an evaluation set from the batches of all processes, every sample once."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher, DataLoaderStateMixin
from torch import Tensor

from rgd_hf.batches.repeats import Share, cannot_leave_out, share_of_dispatched_batch, share_of_last_batch

_ONE_ROW_PER_SAMPLE = (
    "Return losses as [batch, tokens], one row for each sample; or set per_device_eval_batch_size=1, or evaluate on one "
    "process."
)


class EvaluatedItems:
    """Sums and counts of the losses of each row of the batches of one evaluation.

    Repeats that accelerate fills the last batch of several processes up with are left out, by its own count of the
    samples. Where it has none (a stream that every process reads by itself, a dataloader that was not prepared by
    accelerate), all that the processes evaluate counts.

    Args:
        accelerator: the Trainer's.
        dataloader: what the evaluation iterates over; on one process nothing of it is ever left out.
    """

    def __init__(self, accelerator: Accelerator, dataloader: Any):
        self.accelerator, self.dataloader = accelerator, dataloader
        # In training, the loader of the training: maybe at its end, while an evaluation is not.
        self.outer = accelerator.gradient_state.active_dataloader
        self.batches: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.batches)

    def add(self, items: Tensor, changed: Tensor, in_row: bool = False) -> None:
        """Keep what a batch of this process adds.

        Args:
            items: sums and counts of the losses of each row, `[rows, 2]`.
            changed: bool, 0-dimensional: whether an override changed the loss of the batch.
            in_row: whether repeats inside the batch have been ignored, as it is one row of several samples.

        Raises:
            ValueError: a batch of several processes holds repeats among its samples, but its losses have other rows.
        """
        items = items[: self._rows_to_keep(len(items), in_row)]
        columns = [changed.to(items.dtype), torch.full_like(changed, len(self.batches), dtype=items.dtype)]
        self.batches.append(torch.cat([items, torch.stack(columns).expand(len(items), 2)], dim=1))

    def of_all_processes(self) -> Tensor:
        """Sums, counts and changes of the rows of all processes, in the order of the predictions: `[rows, 3]` on the CPU."""
        table = torch.cat(self.batches)
        if self.accelerator.num_processes > 1:
            table = self.accelerator.pad_across_processes(table, dim=0, pad_index=-1)
            table = self.accelerator.gather(table)
        table = table.cpu()
        table = table[table[:, 3] >= 0]
        return table[table[:, 3].argsort(stable=True), :3]

    def _rows_to_keep(self, rows: int, in_row: bool) -> int:
        share = self.share()
        if share is None:
            return rows
        samples_are_rows = rows == share.samples and not in_row
        if share.divides and not samples_are_rows and not in_row:
            raise cannot_leave_out(share, f"losses of {rows} rows", _ONE_ROW_PER_SAMPLE)
        if not self.at_end:
            return rows
        return share.kept if samples_are_rows else rows * (share.kept > 0)

    def share(self) -> Share | None:
        """What this process has of the last batch of the loader; None where nothing is repeated, or that is not known."""
        loader, processes = self._loader(), self.accelerator.num_processes
        if processes == 1:
            return None
        if isinstance(loader, DataLoaderDispatcher):
            samples = -(-loader.remainder // processes)
            return share_of_dispatched_batch(loader, samples, self.accelerator.process_index, processes)
        return share_of_last_batch(loader)

    @property
    def at_end(self) -> bool:
        """Whether the batch in use is the last."""
        loader = self._loader()
        return loader is not None and loader.end_of_dataloader

    def _loader(self) -> Any:
        """The loader of accelerate's that the evaluation's batches come from; None where they come from another."""
        if isinstance(self.dataloader, DataLoaderStateMixin):
            return self.dataloader
        # One of accelerate's may be inside it.
        active = self.accelerator.gradient_state.active_dataloader
        return None if active is self.outer else active
