"""Batches of one row that holds several samples, end to end: padding-free and packed training of language models."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rgd_hf.losses import IGNORE_INDEX

SAMPLE_LENGTHS = "_rgd_hf_sample_lengths"
"""The column that holds the number of tokens of each sample of a batch's only row, int64 `[samples]`; no user's name."""


class SampleLengthsCollator:
    """Tell how many tokens each sample has where a collator puts several into one row.

    Args:
        collator: turns a list of examples into a batch.
    """

    def __init__(self, collator: Callable[[list[Any]], Any]):
        self.collator = collator

    def __call__(self, examples: list[Any]) -> Any:
        """The batch of `collator`, with `SAMPLE_LENGTHS` where its one row is the examples' tokens, end to end."""
        # A collator may take columns out of the examples.
        tokens = [e.get("input_ids") if isinstance(e, Mapping) else None for e in examples]
        batch = self.collator(examples)
        row = batch.get("input_ids") if isinstance(batch, Mapping) else None
        if len(examples) < 2 or not isinstance(row, Tensor) or row.dim() != 2 or len(row) != 1:
            return batch
        if any(sample is None for sample in tokens):
            return batch
        samples = [torch.as_tensor(sample, device=row.device) for sample in tokens]
        flat = torch.cat([sample.reshape(-1) for sample in samples])
        if torch.equal(row[0, : len(flat)], flat.to(row.dtype)):
            batch[SAMPLE_LENGTHS] = torch.tensor([sample.numel() for sample in samples])
        return batch


def labels_of_row(batch: Mapping[str, Any], label_names: Sequence[str]) -> list[str]:
    """The columns of a batch that are labels of the tokens of its only row, `[1, tokens]`."""
    names = dict.fromkeys([*label_names, "labels", "shift_labels"])
    labels = {name: batch[name] for name in names if isinstance(batch.get(name), Tensor)}
    return [name for name, label in labels.items() if label.dim() == 2 and len(label) == 1]


def ignore_after(batch: Any, label_names: Sequence[str], tokens: Tensor | int) -> None:
    """Give the tokens of a row that follow its first `tokens` the label that is ignored.

    Args:
        batch: changed in place.
        label_names: columns `[1, tokens]`; `shift_labels` hold the label of the next position.
        tokens: number of tokens that keep their labels; a tensor is not waited for.
    """
    for name in label_names:
        label = batch[name]
        position = torch.arange(label.shape[1], device=label.device) + (name == "shift_labels")
        batch[name] = label.masked_fill(position >= tokens, IGNORE_INDEX)


def has_several_samples(batch: Mapping[str, Any], counted: Tensor) -> bool:
    """Whether a batch has one row with items of several samples, as far as it tells; waits for the device.

    Args:
        batch: with `seq_idx`, `cu_seq_lens_q` or `position_ids`, if it tells.
        counted: the items that have a loss, `[1, tokens]`; false at each sample's end, as with a loss of the next token.
    """
    if counted.dim() != 2 or len(counted) != 1:
        return False
    items = counted.shape[1]
    index, ends, positions = (batch.get(name) for name in ("seq_idx", "cu_seq_lens_q", "position_ids"))
    if isinstance(index, Tensor):
        sample = index
    elif isinstance(ends, Tensor):
        sample = torch.searchsorted(
            ends, torch.arange(items, device=ends.device, dtype=ends.dtype), right=True
        )
    elif isinstance(positions, Tensor) and positions.dim() == 2 and batch.get("attention_mask") is None:
        starts = positions[:, 1:] <= positions[:, :-1]
        sample = torch.nn.functional.pad(starts.cumsum(dim=1), (1, 0))
    else:
        return False
    sample = sample.reshape(-1)
    if len(sample) != items:
        return False
    return len(sample[counted[0].to(sample.device)].unique()) > 1
