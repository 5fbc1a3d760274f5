"""Checks, on the first batch, that the unreduced losses of a model class newer than this release give its own loss.

transformers lists new classes for a task with every release. Most compute the task's loss; some shift the labels, add a
second loss, or average differently, which only their source, or a batch, can tell.
"""

from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, nn

from rgd_hf.heads.base import Head, Inputs, transformers_class
from rgd_hf.losses import IGNORE_INDEX

READ = frozenset(files("rgd_hf.heads").joinpath("read_classes.txt").read_text().split())
"""Classes of transformers whose source was read: their loss is the one of their head in the table."""


def is_read(model: nn.Module) -> bool:
    """Whether `model` (bare, see `bare_model`) is of a class whose source was read for this release."""
    cls = transformers_class(model)
    return cls is not None and cls.__name__ in READ


def verify(head: Head, bare: nn.Module, model: nn.Module, inputs: Inputs) -> bool:
    """Compare the mean of the unreduced losses, plus the auxiliary loss, with the model's own loss.

    Two forward passes without gradient, in evaluation mode, with labels and without. Random states and the mode of
    every module are restored. One sample of a token-level batch gets fewer labels than it has, so that a mean of
    per-sample means is not mistaken for the mean over tokens.

    Args:
        head: the head of the task that transformers lists the model's class for.
        bare: the model without wrappers.
        model: the model as training calls it. Every process has to call this function, as for any forward pass.
        inputs: a batch with its labels.

    Returns:
        Whether this batch was conclusive: False if it has no item with a loss, or a loss is not finite.

    Raises:
        NotImplementedError: the two differ by more than rounding, or the model returns no loss.
    """
    batch = _ragged(inputs) if head.token_level else dict(inputs)
    items = int(head.valid(batch, bare.config).sum())
    if not items:
        return False
    with torch.no_grad(), _evaluation_mode(model):
        with _random_state_kept():
            outputs = model(**batch)
            own = outputs.get("loss") if isinstance(outputs, dict) else outputs[0]
        withheld = {*head.label_names, *head.optional_label_names}
        forward = {name: value for name, value in batch.items() if name not in withheld}
        with _random_state_kept():
            outputs = model(**forward, **head.prepare(bare, batch))
            found = head.losses(outputs, batch, bare.config, 0.0).float().sum() / items
            auxiliary = head.auxiliary(outputs, bare.config, bare)
    if auxiliary is not None:
        found = found + auxiliary
    if not isinstance(own, Tensor) or own.dim():
        raise NotImplementedError(_message(head, bare, found, "returns no loss when it is given labels"))
    if not (found.isfinite() and own.isfinite()):
        return False
    # Sums of float32 in another order; a loss in half precision is rounded to it.
    tolerance = max(1e-4, 2 * torch.finfo(own.dtype).eps)
    if not torch.isclose(found, own.float(), rtol=tolerance, atol=tolerance):
        raise NotImplementedError(_message(head, bare, found, f"itself says {own.item():.6g}"))
    return True


def _message(head: Head, bare: nn.Module, found: Tensor, says: str) -> str:
    return (
        f"{type(bare).__name__} is newer than this release of rgd_hf. transformers lists it for {head.name}, whose losses "
        f"average to {found.item():.6g} on the first batch, but the model {says}. Pass per_sample_loss_fn=(outputs, labels) "
        "-> unreduced losses, one element per sample or token; or write a compute_per_sample_losses(self, model, inputs) "
        "(docs/subclasses.md shows how); or train on the model's own loss with transformers.Trainer."
    )


@contextmanager
def _evaluation_mode(model: nn.Module):
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _random_state_kept():
    return torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else [])


def _ragged(inputs: Inputs) -> dict[str, Any]:
    """The batch with half of the first sample's labels ignored; unchanged if labels are not per token."""
    batch = dict(inputs)
    if batch["labels"].dim() == 2 and batch.get("shift_labels") is None:
        batch["labels"] = batch["labels"].clone()
        first = batch["labels"][0]
        valid = (first != IGNORE_INDEX).nonzero().flatten()
        first[valid[: len(valid) // 2]] = IGNORE_INDEX
    return batch
