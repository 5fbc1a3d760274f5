"""Samples that are repeated where several processes share out an epoch's last batch; they must not count twice."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from accelerate.data_loader import BatchSamplerShard, IterableDatasetShard, SkipBatchSampler
from torch import Tensor
from torch.utils.data import BatchSampler
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import has_length

from rgd_hf.batches.columns import SAMPLE_WEIGHT
from rgd_hf.batches.datasets import number_of_samples
from rgd_hf.batches.flattened import ignore_after, labels_of_row


class Share(NamedTuple):
    """What a process has of an epoch's last batch: accelerate repeats samples of the epoch's start to fill it up.

    Attributes:
        samples: number of samples of this process's batch, repeats included.
        kept: how many of them, the first ones, are not repeats.
        divides: whether the batch of some process has both; the same on every process.
    """

    samples: int
    kept: int
    divides: bool


def share_of_last_batch(loader: Any) -> Share | None:
    """The share of this process in the last batch of a data loader, known from its first batch on.

    Args:
        loader: the data loader in use; None tells nothing.

    Returns:
        None where no sample is repeated, or where the data loader does not tell.
    """
    dataset, batch_sampler = getattr(loader, "dataset", None), _batch_sampler(loader)
    shard: Any
    if isinstance(dataset, IterableDatasetShard):
        shard, drawn = dataset, number_of_samples(dataset.dataset)
    elif isinstance(batch_sampler, BatchSamplerShard) and batch_sampler.even_batches:
        shard, drawn = batch_sampler, _samples_drawn(batch_sampler.batch_sampler, dataset)
    else:
        return None
    processes = shard.num_processes
    if not shard.batch_size or shard.drop_last or processes == 1 or drawn is None:
        return None
    samples = shard.batch_size // (processes if shard.split_batches else 1)
    return _share(drawn % (samples * processes), samples, processes, shard.process_index)


def _samples_drawn(batch_sampler: Any, dataset: Any) -> int | None:
    """The samples of an epoch; None where that is not known.

    A user's batch sampler may draw as many as it likes: where its number of batches is not that of its sampler or data set,
    its batches are taken to be full.
    """
    size, sampler = getattr(batch_sampler, "batch_size", None), getattr(batch_sampler, "sampler", None)
    drawn = number_of_samples(sampler if has_length(sampler) else dataset)
    batches = number_of_samples(batch_sampler)
    if batches is None or not size or (drawn is not None and math.ceil(drawn / size) == batches):
        return drawn
    return batches * size


def _batch_sampler(loader: Any) -> Any:
    batch_sampler = getattr(loader, "sampler", None)
    if not isinstance(batch_sampler, BatchSampler):
        batch_sampler = getattr(loader, "batch_sampler", None)
    while isinstance(batch_sampler, SkipBatchSampler):
        batch_sampler = batch_sampler.batch_sampler
    return batch_sampler


def _share(real: int, samples: int, processes: int, index: int) -> Share | None:
    """The share of process `index` in a batch of `real` samples, filled up to `samples` on each process."""
    if not 0 < real < samples * processes:
        return None
    return Share(samples, min(max(real - index * samples, 0), samples), real % samples > 0)


def share_of_dispatched_batch(loader: Any, rows: int, process_index: int, processes: int) -> Share | None:
    """As `share_of_last_batch`, of a last batch that one process has read, by rows, and dealt out."""
    if loader is None or isinstance(_batch_sampler(loader), BatchSamplerShard):
        return None
    return _share(getattr(loader, "remainder", -1), rows, processes, process_index)


def leave_out_repeats(
    batch: Any, share: Share, lengths: Tensor | None, label_names: Sequence[str], remedy: str
) -> bool:
    """Make the repeats of a batch count nothing: they get `sample_weight` 0, or ignored labels within a row.

    Args:
        batch: the batch of this process, which is changed in place.
        share: what of it counts.
        lengths: tokens of each sample, `[samples]`, where the batch is one row of several; None if not known.
        label_names: columns of labels.
        remedy: what to do where the samples are not told apart, for the message.

    Returns:
        Whether `batch` now has a `sample_weight` of `share.samples` elements.

    Raises:
        ValueError: it is not known which rows or tokens are of repeats.
    """
    rows = find_batch_size(batch)
    if rows is None:
        return False
    size = share.samples
    if rows != size:
        in_row = labels_of_row(batch, label_names) if size > 1 else []
        if in_row:
            ignore_repeats_in_row(batch, share, lengths, in_row, remedy)
            return False
        labels = [batch[name] for name in label_names if isinstance(batch.get(name), Tensor)]
        size = next((len(label) for label in labels if label.dim()), size)
        if share.divides and size != share.samples:
            raise cannot_leave_out(share, f"{size} rows of labels", remedy)
    if size != share.samples and share.kept:
        return False
    device = next((v.device for v in batch.values() if isinstance(v, Tensor)), torch.device("cpu"))
    mask = (torch.arange(size) < share.kept).to(device=device, dtype=torch.float32)
    weight = batch.get(SAMPLE_WEIGHT)
    batch[SAMPLE_WEIGHT] = mask if weight is None else mask * weight
    return True


def ignore_repeats_in_row(
    batch: Any, share: Share, lengths: Tensor | None, label_names: Sequence[str], remedy: str
) -> None:
    """Ignore the labels of the repeats in the only row of a batch.

    Args:
        batch: changed in place.
        share: what of it counts.
        lengths: tokens of each sample, `[samples]`; None if not known.
        label_names: columns of labels of the tokens, `[1, tokens]`.
        remedy: as for `leave_out_repeats`.

    Raises:
        ValueError: the row is divided, and the lengths are not known.
    """
    if share.divides and (lengths is None or len(lengths) != share.samples):
        raise cannot_leave_out(share, "a single row, in which their borders are not known", remedy)
    if share.kept == share.samples:
        return
    ignore_after(batch, label_names, lengths[: share.kept].sum() if lengths is not None else 0)


def cannot_leave_out(share: Share, found: str, remedy: str) -> ValueError:
    """The error of a batch in which samples cannot be told apart.

    Args:
        share: what this process has of the last batch.
        found: what the batch has in place of one row for each sample.
        remedy: what to do.
    """
    return ValueError(
        "The processes share out the last batch of an epoch and fill it up with samples of its start, which must not "
        f"count twice. They cannot be told apart: a batch of {share.samples} samples has {found}. {remedy}"
    )
