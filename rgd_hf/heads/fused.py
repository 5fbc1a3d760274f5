"""Token losses computed inside the LM head, so that a model's forward pass makes no logits.

For one forward pass the head (the model's output embedding) returns the losses of its tokens. Everything else is
the model's own forward, so that adapters, tuned prompts, auxiliary losses, gradient checkpointing, and the hooks by which
DDP, FSDP and DeepSpeed gather weights and count gradients work as they do with logits.

Whether that is exact is measured, not looked up by the model's class. The first batch goes through the model once more,
without gradients and in evaluation mode (no dropout, no random numbers, no batch norm statistics), and the head returns
known numbers: a ramp over the vocabulary, zeros, and a large constant. What the model returns as logits then reveals what
it does after its head: nothing, a constant bias (BART), a factor (Cohere, Granite), a soft cap (Gemma), or a factor and a
cap; these are applied to the tiles too. In all other cases (another operation, a head that is not called exactly once or
does not treat tokens independently, an error) the full logits are kept, with an info in the log.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from transformers.utils import logging

from rgd_hf.heads.base import logits_of, replace_logits
from rgd_hf.lm_head.losses import chunked_token_losses, linear_token_losses
from rgd_hf.losses import IGNORE_INDEX, positions_in_front

logger = logging.get_logger(__name__)

_RAMP, _LARGE = 64.0, 1e4


@dataclass(frozen=True)
class AfterHead:
    """What a model does to the logits of its head: `softcap * tanh(scale * (logits + bias) / softcap)`.

    Attributes:
        vocabulary: number of logits per token.
        scale: factor of the logits; 1 for none.
        softcap: bound of the logits; None for none.
        bias: float32 `[vocabulary]`, or None.
    """

    vocabulary: int
    scale: float = 1.0
    softcap: float | None = None
    bias: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """float32 logits as the model would return them, of any shape `[..., vocabulary]`."""
        logits = logits.float()
        if self.bias is not None:
            logits = logits + self.bias
        logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class _NotExactError(Exception):
    """Why the head of a model cannot give its losses."""


@dataclass
class _Pass:
    """The record of one forward pass.

    Attributes:
        answer: function of the head, hidden states `[batch, positions, hidden size]` -> losses `[batch, tokens]`.
        vocabulary: number of logits per token.
        calls: number of calls of the head.
        losses: the losses that the head returned, and `through` its hooks.
        returned: what the model returned in place of logits.
    """

    answer: Callable[[Tensor], Tensor]
    vocabulary: int = 0
    calls: int = 0
    losses: Tensor | None = None
    through: Tensor | None = None
    returned: Tensor | None = None


class FusedHead:
    """The LM head of a model, asked for token losses in place of logits.

    Args:
        model: the model without wrappers; its `get_output_embeddings()` is the head.
        positions_after: number of positions of the head's input after that of the last target.
    """

    def __init__(self, model: Any, positions_after: int = 0):
        self.model, self.positions_after = model, positions_after
        self._after: AfterHead | None = None
        self._keeps_logits = False
        self._pass: _Pass | None = None
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        self._head: Any = head
        if not isinstance(head, nn.Module):
            self._give_up("it has no module for its output embedding")
        # The same objects at every pass, because a compiled model is compiled again where one is new; and out of
        # the compiler's sight, but for the model's own forward.
        self._answering_head = torch.compiler.disable(self._answer)
        self._hook = torch.compiler.disable(self._after_answer)

        @functools.wraps(type(model).forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._call_model(*args, **kwargs)

        self._answering_model = torch.compiler.disable(forward, recursive=False)

    def run(
        self, wrapped: nn.Module, inputs: dict[str, Any], targets: Tensor, label_smoothing: float = 0.0
    ) -> tuple[Any, Tensor | None]:
        """One forward pass of `wrapped`.

        Args:
            wrapped: the model with its wrappers.
            inputs: inputs of the model, without labels.
            targets: token ids that the last positions predict, `[batch, tokens]`, -100 where ignored.
            label_smoothing: as in `linear_token_losses`.

        Returns:
            The model's outputs without logits, and the losses, float32 `[batch, tokens]`, 0 where ignored; or, where
            the model needs its logits, the outputs with them, and None.

        Raises:
            RuntimeError: the model uses its head in a different way than in the first batch.
            ValueError: there are more targets than positions.
            torch.OutOfMemoryError: the batch is too large, as from any forward pass.
        """
        if self._after is None and not self._keeps_logits:
            try:
                self._after = self._measure(wrapped, inputs)
            except Exception as error:
                # It says nothing about the model: auto_find_batch_size tries again with a smaller batch.
                if isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error):
                    raise
                self._give_up(
                    str(error) if isinstance(error, _NotExactError) else f"{error!r} in the attempt"
                )
        if self._after is None:
            return wrapped(**inputs), None
        after, count = self._after, _HostCount(targets != IGNORE_INDEX)

        def answer(hidden: Tensor) -> Tensor:
            return self._losses(hidden, after, targets.to(hidden.device), count, label_smoothing)

        with self._answers(_Pass(answer, after.vocabulary)) as seen:
            outputs = wrapped(**inputs)
        if seen.losses is None:
            return outputs, None
        losses = logits_of(outputs)
        if seen.calls > 1 or losses.shape != seen.losses.shape:
            raise RuntimeError(
                f"{type(self.model).__name__} uses its LM head in a different way than in the first batch. Set "
                "fused_lm_head=False."
            )
        if losses.dtype != torch.float32:
            # What casts the outputs (FSDP with mixed precision) must not round the losses.
            losses = seen.losses + (losses - losses.detach()).float()
        return replace_logits(outputs, None), losses

    def _give_up(self, reason: str) -> None:
        self._keeps_logits = True
        logger.info(f"{type(self.model).__name__} is trained through its full logits: {reason}.")

    # --- one forward pass with another answer of the head -----------------------------------------------------------

    @contextmanager
    def _answers(self, one_pass: _Pass) -> Iterator[_Pass]:
        head, model = self._head, self.model
        self._pass = one_pass
        # Other libraries replace a module's forward too, by an attribute of the instance.
        before = [(module, vars(module).get("forward")) for module in (head, model)]
        self._head_forward, self._model_forward = head.forward, model.forward
        # The hooks of FSDP and DeepSpeed, which came first, see the losses; the model sees what replaces its logits.
        hook = head.register_forward_hook(self._hook)
        head.forward, model.forward = self._answering_head, self._answering_model
        try:
            yield one_pass
        finally:
            hook.remove()
            for module, forward in before:
                del module.forward
                if forward is not None:
                    module.forward = forward
            self._pass = self._head_forward = self._model_forward = None

    def _answer(self, hidden: Tensor) -> Tensor:
        assert self._pass is not None
        losses = self._pass.answer(hidden)
        self._pass.losses = losses.detach()
        self._pass.calls += 1
        return losses

    def _after_answer(self, head: nn.Module, args: Any, output: Tensor) -> Tensor:
        assert self._pass is not None
        self._pass.through = output
        return _known(self._pass.vocabulary, output)

    def _call_model(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self._model_forward(*args, **kwargs)
        assert self._pass is not None
        if self._pass.through is None:
            return outputs
        self._pass.returned = logits_of(outputs)
        return replace_logits(outputs, self._pass.through)

    def _losses(
        self, hidden: Tensor, after: AfterHead, targets: Tensor, count: "_HostCount", label_smoothing: float
    ) -> Tensor:
        end = hidden.shape[1] - self.positions_after
        states = hidden[:, positions_in_front(end, targets.shape[1]) : end].flatten(0, 1)
        wanted, rows = targets.flatten().long(), None
        if count.wait() < len(wanted):
            # The indices of a mask, without waiting for the device to tell how many they are.
            rows = (
                (wanted != IGNORE_INDEX).to(torch.uint8).argsort(descending=True, stable=True)[: count.wait()]
            )
            states, wanted = states.index_select(0, rows), wanted.index_select(0, rows)
        head, forward = self._head, self._head_forward
        if self._is_linear():
            bias = head.bias
            if after.bias is not None:
                bias = after.bias if bias is None else bias + after.bias
            losses = linear_token_losses(
                states, head.weight, wanted, bias, label_smoothing, after.scale, after.softcap
            )
        else:
            losses = chunked_token_losses(
                lambda x: after(forward(x)), states, wanted, after.vocabulary, label_smoothing
            )
        if rows is not None:
            losses = torch.zeros(targets.numel(), device=losses.device).scatter(0, rows, losses)
        return losses.view(targets.shape)

    def _is_linear(self) -> bool:
        """Whether the head is what `linear_token_losses` computes: no subclass, no adapter, no forward of its own."""
        return (
            type(self._head) is nn.Linear
            and getattr(self._head_forward, "__func__", None) is nn.Linear.forward
        )

    # --- what the model does behind its head ------------------------------------------------------------------------

    def _measure(self, wrapped: nn.Module, inputs: dict[str, Any]) -> AfterHead:
        dtypes: list[torch.dtype] = []

        def answer(hidden: Tensor) -> Tensor:
            if hidden.dim() != 3:
                raise _NotExactError(f"its head has an input of shape {list(hidden.shape)}")
            logits, alone = (self._head_forward(hidden[:, at]).detach() for at in (slice(2), slice(1, 2)))
            atol = 16 * torch.finfo(logits.dtype).eps * float(logits.abs().max())
            if not torch.allclose(alone, logits[:, 1:2], rtol=0.0, atol=atol):
                raise _NotExactError("its head does not treat tokens one by one")
            one_pass.vocabulary = logits.shape[-1]
            dtypes.append(logits.dtype)
            # From here on, so that parameters behind the head that are trained show themselves.
            torch.set_grad_enabled(True)
            positions = hidden.shape[0] * hidden.shape[1]
            return torch.arange(1.0, positions + 1, device=hidden.device).view(hidden.shape[:2])

        one_pass = _Pass(answer)
        device = next(self.model.parameters()).device
        training = [module for module in wrapped.modules() if module.training]
        try:
            wrapped.eval()
            with (
                torch.random.fork_rng([device] if device.type == "cuda" else []),
                torch.no_grad(),
                torch.compiler.set_stance("force_eager"),
                self._answers(one_pass),
            ):
                wrapped(**inputs)
        finally:
            for module in training:
                module.training = True
        losses, through, found = one_pass.losses, one_pass.through, one_pass.returned
        if one_pass.calls != 1 or losses is None or through is None or found is None:
            raise _NotExactError(f"its head is called {one_pass.calls} times in a forward pass, not once")
        if through.shape != losses.shape or not torch.allclose(through.float(), losses, rtol=0.01):
            raise _NotExactError("its head has a hook that changes its output")
        if found.requires_grad:
            raise _NotExactError("it has parameters that are trained behind its head")
        if found.dtype not in (torch.float32, dtypes[0]):
            raise _NotExactError(f"it casts its logits to {found.dtype}")
        return _recognized(found.detach(), one_pass.vocabulary)


def _known(vocabulary: int, like: Tensor) -> Tensor:
    """What goes through the rest of the forward in place of logits: float32 `[batch, 3, vocabulary]`, one row per view."""
    ramp = torch.linspace(-_RAMP, _RAMP, vocabulary, device=like.device)
    return torch.stack([torch.zeros_like(ramp), ramp, torch.full_like(ramp, _LARGE)]).expand(
        len(like), -1, -1
    )


def _recognized(found: Tensor, vocabulary: int) -> AfterHead:
    """The `AfterHead` that makes `found` of what `_known` gave.

    Raises:
        _NotExactError: there is none.
    """
    known = _known(vocabulary, found)
    if found.shape != known.shape:
        raise _NotExactError(f"it makes {list(found.shape)} of logits of shape {list(known.shape)}")
    eps = torch.finfo(found.dtype).eps
    found = found.float()
    offset, large = found[0, 0], float(found[0, 2, 0])
    # The middle of the positive half of the ramp: large enough for its slope, small enough not to be capped.
    at = int(vocabulary * 0.55)
    x, y = float(known[0, 1, at]), float(found[0, 1, at])
    candidates = [AfterHead(vocabulary)]
    if bool(offset.any()):
        candidates = [AfterHead(vocabulary, bias=offset.clone())]
    elif x and y:
        candidates.append(AfterHead(vocabulary, scale=large / _LARGE))
        if abs(y) < abs(large):
            slope = large * math.atanh(y / large) / x
            candidates += [AfterHead(vocabulary, scale, large) for scale in (1.0, slope)]
    for candidate in candidates:
        if torch.allclose(candidate(known), found, rtol=16 * eps, atol=16 * eps):
            return candidate
    raise _NotExactError("it does something else to its logits than to add a bias, to scale and to cap them")


class _HostCount:
    """The number of true elements of a mask, copied to the host while the device continues.

    Args:
        mask: bool, any shape.
    """

    def __init__(self, mask: Tensor):
        self._event = None
        self._count = mask.sum()
        if mask.is_cuda:
            self._count = self._count.to("cpu", non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> int:
        """Waits for the copy alone, not for what was queued on the device after it."""
        if self._event is not None:
            self._event.synchronize()
        return int(self._count.numpy() if self._count.device.type == "cpu" else self._count)
