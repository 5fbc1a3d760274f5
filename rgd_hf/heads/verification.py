"""Checks, on the first batch, that the unreduced losses give the model's own loss, where it is not known how the model computes it.

transformers lists new classes for a task with every release, and users derive their own, replace a forward, add hooks or
adapters. Most compute the task's loss; some shift the labels, add a second loss, or average differently, which only their
source, or a batch, can tell.
"""

import random
from collections.abc import Mapping
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather
from torch import Tensor, nn

from rgd_hf.heads.base import Head, Inputs, transformers_class, without_peft
from rgd_hf.heads.question_answering import QUESTION_ANSWERING, with_whole_answers
from rgd_hf.losses import IGNORE_INDEX

VERIFIED_CLASSES = frozenset(files("rgd_hf.heads").joinpath("verified_classes.txt").read_text().split())
"""Classes of transformers whose source was read: their loss is the one of their head in the table."""

# Their hooks and wrappers leave a model's loss as it is.
_LIBRARIES = ("torch.", "accelerate.", "deepspeed.", "rgd_hf.")


def why_unverified(model: nn.Module) -> str | None:
    """Why the loss of a model whose head is in the table may be another; None where its source was read for this release.

    Args:
        model: without wrappers except PEFT's.

    Returns:
        What follows the name of its class in a sentence: `"derives from LlamaForCausalLM"`.
    """
    base = without_peft(model)
    # FSDP derives a class of its own from the model's.
    cls = next(cls for cls in type(base).__mro__ if not cls.__module__.startswith(_LIBRARIES))
    known = transformers_class(base)
    if known is None or known.__name__ not in VERIFIED_CLASSES:
        return "is newer than this release of rgd_hf"
    if cls is not known:
        return f"derives from {known.__name__}"
    forward: Any = getattr(known, "forward", None)
    if not getattr(forward, "__module__", "").startswith("transformers.") or not _is_of_class(base):
        return "has another forward than that of transformers"
    if hooks_on_outputs(model):
        return "has forward hooks"
    loss_type = getattr(base, "loss_type", None)
    if loss_type is not None and loss_type not in cls.__name__:
        return f"has the loss type {loss_type!r}"
    tuner = getattr(model, "base_model", None) if base is not model else None
    owner = next((cls for cls in type(tuner).__mro__ if "forward" in vars(cls)), None)
    if (
        owner is not None
        and owner.__module__.startswith("peft.")
        and not owner.__module__.endswith(".tuners_utils")
    ):
        return f"is inside a {type(tuner).__name__} of PEFT"
    return None


def hooks_on_outputs(model: nn.Module) -> bool:
    """Whether the user has hooks on the outputs of `model` (without wrappers except PEFT's)."""
    hooks = {**model._forward_hooks, **without_peft(model)._forward_hooks}
    return any(
        not (getattr(hook, "__module__", None) or "").startswith(_LIBRARIES) for hook in hooks.values()
    )


def _is_of_class(model: nn.Module) -> bool:
    """Whether the forward of `model` is that of its class, but for what accelerate and TRL put around it."""
    own = vars(model)
    forward = own.get("_old_forward", own.get("_original_forward", own.get("forward")))
    function = getattr(forward, "__func__", None)
    if function is not None and getattr(function, "__globals__", {}).get("__name__", "").startswith("trl."):
        # Without labels TRL's calls the one that it found.
        found = dict(zip(function.__code__.co_freevars, function.__closure__ or ()))
        forward = found["original_forward"].cell_contents if "original_forward" in found else forward
    return forward is None or getattr(forward, "__func__", None) is type(model).forward


def verify(head: Head, base: nn.Module, model: nn.Module, inputs: Inputs, why: str) -> bool:
    """Compare the mean of the unreduced losses, plus the auxiliary loss, with the model's own loss.

    Two forward passes without gradient, in evaluation mode, with labels and without; of a model in training mode a third
    one, with labels, whose own loss is compared with the losses of the same outputs, as dropout draws anew in every pass.
    Random states, buffers and the mode of every module are restored. The labels are changed where they could hide a
    difference: one sample of a token-level batch gets fewer than it has (a mean of per-sample means), and classes come in
    turn (class weights, where all labels of the batch are the same).

    Args:
        head: the head of the task that transformers lists the model's class for.
        base: the model without wrappers.
        model: the model as training calls it. Every process has to call this function, as for any forward pass; all make
            the same passes and come to the same end, whatever their batches.
        inputs: a batch with its labels.
        why: what `why_unverified` says.

    Returns:
        Whether a batch of any process was conclusive: one that has no item with a loss, or whose loss is not finite, is not.

    Raises:
        NotImplementedError: the two differ by more than rounding on any process, or the model returns no loss.
    """
    if isinstance(model, nn.DataParallel):
        model = model.module  # its loss would be one for each device
    batch = _comparable(head, inputs, base.config)
    items = head.valid(batch, base.config).sum()

    def mean_of(outputs: Any) -> Tensor:
        mean = head.losses(outputs, batch, base.config, 0.0).float().sum() / items
        auxiliary = head.auxiliary(outputs, base.config, base)
        return mean if auxiliary is None else mean + auxiliary

    with torch.no_grad():
        with _evaluation_mode(model):
            with _state_kept(model):
                own, _ = _loss_and_outputs(model(**batch))
            withheld = {*head.label_names, *head.optional_label_names}
            forward = {name: value for name, value in batch.items() if name not in withheld}
            with _state_kept(model):
                outputs = model(**forward, **head.prepare(base, batch))
            pairs, shape = [(own, mean_of(outputs), "")], _logits_shape(outputs)
            del outputs  # logits may be all that the memory has room for
        if base.training:
            with _state_kept(model):
                own, outputs = _loss_and_outputs(model(**batch))
            # A fused loss, or logits of labelled tokens alone, leave nothing to compare.
            if _logits_shape(outputs) == shape:
                pairs.append((own, mean_of(outputs), " in training mode"))
    compared = [(_compared(own, found, mode), found) for own, found, mode in pairs]
    problem = next(((says, found) for (_, says), found in compared if says), None)
    told = torch.tensor([[problem is not None, all(conclusive for (conclusive, _), _ in compared)]])
    differs, conclusive = gather(told.int().to(PartialState().device)).amax(0).tolist()
    if problem is not None:
        raise NotImplementedError(_message(head, base, why, *problem))
    if differs:
        raise NotImplementedError(
            f"{type(base).__name__} {why}, and on another process the two losses differ: the error of that process says how."
        )
    return bool(conclusive)


def _compared(own: Any, found: Tensor, mode: str) -> tuple[bool, str | None]:
    """Whether the two could be compared, and what the model does where they differ."""
    if not isinstance(own, Tensor) or own.dim():
        return True, " returns no loss when it is given labels"
    if not (found.isfinite() and own.isfinite()):
        return False, None
    # Sums of float32 in another order; a loss in half precision is rounded to it.
    tolerance = max(1e-4, 2 * torch.finfo(own.dtype).eps)
    same = torch.isclose(found, own.float().to(found.device), rtol=tolerance, atol=tolerance)
    return True, None if same else f"'s own loss is {own.item():.6g}{mode}"


def _loss_and_outputs(returned: Any) -> tuple[Any, Any]:
    """The model's own loss, and its outputs as they are without labels."""
    if isinstance(returned, Mapping):
        return returned.get("loss"), returned
    return returned[0], returned[1:]


def _logits_shape(outputs: Any) -> torch.Size | None:
    if isinstance(outputs, Mapping):
        outputs = (outputs.get("logits"), outputs.get("start_logits"))
    return next((value.shape for value in outputs if isinstance(value, Tensor) and value.dim()), None)


def _message(head: Head, base: nn.Module, why: str, says: str, found: Tensor) -> str:
    return (
        f"{type(base).__name__} {why}, so its loss was compared with that of its head, {head.name}, whose losses average to "
        f"{found.item():.6g} on the first batch, but the model{says}. Pass per_sample_loss_fn=(outputs, labels) "
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


@contextmanager
def _state_kept(model: nn.Module):
    """What a forward pass changes without being asked: random states, and buffers such as running means."""
    # Quantized weights are buffers too, and large: on the CPU there is room for them.
    buffers = [
        (module, name, buffer, buffer.detach().to("cpu", copy=True))
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.device.type != "meta"
    ]
    drawn = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
            yield
    finally:
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
        for module, name, buffer, kept in buffers:
            setattr(module, name, buffer)
            buffer.copy_(kept)


def _comparable(head: Head, inputs: Inputs, config: Any) -> dict[str, Any]:
    """The batch with labels for which the task's loss is the mean over items, and others are not."""
    if head is QUESTION_ANSWERING:
        return with_whole_answers(inputs)
    batch = _ragged(inputs) if head.token_level else _with_hard_labels(inputs, config)
    known = head.classes is not None and "labels" in head.label_names
    return _of_all_classes(head, batch, config) if known else batch


def _of_all_classes(head: Head, batch: dict[str, Any], config: Any) -> dict[str, Any]:
    """The batch with every class in turn, as a mean with class weights is the plain one where all labels are the same."""
    labels, valid = batch["labels"], head.valid(batch, config)
    if config.num_labels > 1 and not labels.is_floating_point() and labels.numel() == valid.numel():
        in_turn = torch.arange(labels.numel(), device=labels.device).view(labels.shape) % config.num_labels
        batch["labels"] = torch.where(valid.view(labels.shape), in_turn.to(labels.dtype), labels)
    return batch


def _with_hard_labels(inputs: Inputs, config: Any) -> dict[str, Any]:
    """The batch with the likeliest class in place of soft labels, for which hardly any model has a loss."""
    batch, labels = dict(inputs), inputs.get("labels")
    kind = getattr(config, "problem_type", None)
    if (
        kind not in ("regression", "multi_label_classification")
        and labels is not None
        and labels.is_floating_point()
        and labels.dim() == 2
    ):
        batch["labels"] = labels.argmax(-1)
    return batch


def _ragged(inputs: Inputs) -> dict[str, Any]:
    """The batch with half of the first sample's labels ignored; unchanged if labels are not per token."""
    batch = dict(inputs)
    if batch["labels"].dim() == 2 and batch.get("shift_labels") is None:
        batch["labels"] = batch["labels"].clone()
        first = batch["labels"][0]
        valid = (first != IGNORE_INDEX).nonzero().flatten()
        first[valid[: len(valid) // 2]] = IGNORE_INDEX
    return batch
