"""How a training leaves out the samples that several processes repeat in an epoch's last batch."""

from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from torch import Tensor
from transformers.trainer_pt_utils import find_batch_size

from rgd_hf.batches.flattened import SAMPLE_LENGTHS
from rgd_hf.batches.repeats import (
    Share,
    cannot_leave_out,
    leave_out_repeats,
    share_of_dispatched_batch,
    share_of_last_batch,
)
from rgd_hf.trainer_base import TrainerBase

_REMEDY = (
    "Set dataloader_drop_last=True (drop_last of a DataLoader of your own), or per_device_train_batch_size=1 with more "
    "gradient_accumulation_steps."
)
"""What to do where repeats cannot be left out of a training batch."""


class LastBatchMixin(TrainerBase):
    """Leaves out the repeats of an epoch's last batch, and refuses in its first what the last would be refused for."""

    # The share of the step's last batch where this package gave its samples weights, to leave out repeats.
    _left_out: Share | None = None
    # The share of the epoch's last batch, where that will hold samples and repeats; set in the first step.
    _divided_later: Share | None = None

    if TYPE_CHECKING:
        _steps_begun: int

    def _begin_step(self, batch_samples: list) -> None:
        """Called once per optimizer step with all its micro-batches, before their forward passes."""
        batches = [batch for batch in batch_samples if isinstance(batch, MutableMapping)]
        lengths = [batch.pop(SAMPLE_LENGTHS, None) for batch in batches]
        self._left_out = None
        if not batch_samples or self.accelerator.num_processes == 1:
            return
        batch, state = batch_samples[-1], self.accelerator.gradient_state
        share = share_of_last_batch(state.active_dataloader)
        if not state.end_of_dataloader:
            # What the last batch would be refused for is found out in the first.
            if share is None or self._steps_begun > 1 or (batches and not share.divides):
                return
            self._divided_later = share if share.divides else None
            batch = dict(batch) if batches else batch
            share = share._replace(kept=share.samples - 1)
        elif share is None:
            accelerator, rows = self.accelerator, find_batch_size(batch) or 0
            share = share_of_dispatched_batch(
                state.active_dataloader, rows, accelerator.process_index, accelerator.num_processes
            )
        if share is not None and not isinstance(batch, MutableMapping):
            raise cannot_leave_out(
                share, f"no columns, as a {type(batch).__name__}", "Set dataloader_drop_last=True, or return a dict "
                "from the data collator.",
            )  # fmt: skip
        if share is not None:
            weighed = leave_out_repeats(batch, share, lengths[-1], self.label_names, _REMEDY)
            self._left_out = share if weighed and state.end_of_dataloader else None

    def _check_rows_can_be_left_out(self, samples: int, losses: Tensor) -> None:
        """Raise in the first batch what the last one of the epoch would be refused for."""
        if self._divided_later is not None and len(losses) != samples:
            self._counts_or_not(self._divided_later, losses)

    def _counts_or_not(self, share: Share, losses: Tensor) -> bool:
        """Whether a last batch counts whose losses have other rows than samples: all of it is repeats, or none.

        Raises:
            ValueError: it has both, on this process or another.
        """
        if share.divides:
            raise cannot_leave_out(share, f"losses of shape {list(losses.shape)}", _REMEDY)
        return share.kept > 0
