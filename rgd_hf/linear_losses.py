"""Un-reduced token losses of a linear head, without its logits.

The logits of a language model, `[tokens, vocabulary]`, are the largest tensor of a training step. Here they exist one
tile of the vocabulary at a time: the forward pass keeps a running logsumexp and the logit of each target, and the
backward pass turns each tile into the gradient of its logits. The memory that the gradient of the weight will need holds
as many tiles as fit until then (all but one or two where there are no more tokens than hidden units); the others are
computed a second time. A frozen head is cut by tokens instead: what its gradient of the hidden states is per unit of a
token's loss is known as soon as the token's logits are. Products and dtypes are those of `torch.nn.Linear` followed by a
float32 `cross_entropy`.

Why not `torch.nn.functional.linear_cross_entropy` (torch 2.13 and later) with `reduction="none"`: its losses have the
dtype of the hidden states (bfloat16 losses make bfloat16 weights), it smooths no labels without the full logits, and it
cuts the tokens, not the vocabulary, so that every piece reads and writes the whole gradient of the weight.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rgd_hf.logit_tiles import Folded, Transform, fold, gradient

_TILE_ELEMENTS = {"cpu": 2**20, "cuda": 2**25}
"""Logits of a tile. On a CPU what a core's caches hold: 2**20 and 2**21 are fastest; on an H100 2**25 to 2**28 are alike."""
_MIN_WIDTH = _MIN_CHUNK = 256
_HAS_OUT_DTYPE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)


def linear_token_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """Cross-entropy of each token under the logits `softcap * tanh(scale * (hidden @ weight.T + bias) / softcap)`.

    Args:
        hidden: input of the head, `[tokens, hidden size]`, any floating-point dtype.
        weight: `[vocabulary, hidden size]`. Inside autocast both are cast, as those of `torch.nn.Linear` are.
        targets: token ids `[tokens]`, none of them ignored.
        bias: `[vocabulary]`.
        label_smoothing: share of the target mass spread evenly over the vocabulary.
        scale: factor of the logits after the projection.
        softcap: smooth bound of the scaled logits; None for no bound.

    Returns:
        float32 `[tokens]`. Differentiable once, with respect to `hidden`, `weight` and `bias`.

    Raises:
        IndexError: a target is not a row of `weight` (on a GPU, a device-side assertion).
    """
    trains = torch.is_grad_enabled()
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    if trains and frozen and hidden.requires_grad:
        return _FrozenLinearTokenLosses.apply(
            hidden, weight, targets, bias, label_smoothing, Transform(scale, softcap)
        )
    return _LinearTokenLosses.apply(
        hidden,
        weight,
        targets,
        bias,
        label_smoothing,
        Transform(scale, softcap),
        trains and weight.requires_grad,
    )


def chunked_token_losses(
    logits_of: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    vocabulary: int,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of each token under any head that treats tokens independently, a chunk of tokens at a time.

    The backward pass recomputes the logits of each chunk (`torch.utils.checkpoint`, dropout included).

    Args:
        logits_of: hidden states `[n, hidden size]` to logits `[n, vocabulary]`.
        hidden: `[tokens, hidden size]`.
        targets: token ids `[tokens]`, none of them ignored.
        vocabulary: number of logits per token; decides how many tokens a chunk has.
        label_smoothing: as in `linear_token_losses`.

    Returns:
        float32 `[tokens]`.
    """

    def chunk_losses(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits_of(x).float(), y, reduction="none", label_smoothing=label_smoothing)

    size = _chunk_size(hidden, vocabulary)
    losses = [
        checkpoint(chunk_losses, x, y, use_reentrant=False)
        for x, y in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    return torch.cat(losses)


class _LinearTokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        label_smoothing: float,
        transform: Transform,
        keeps_logits: bool,
    ) -> Tensor:
        dtype = _product_dtype(hidden)
        ctx.dtype, ctx.label_smoothing, ctx.transform = dtype, label_smoothing, transform
        x = hidden.to(dtype)
        folded = Folded.nothing(targets, len(weight), bool(label_smoothing))
        tiles = _tiles(x, weight)
        ctx.kept = _KeptLogits(x, weight, tiles) if keeps_logits else None
        for number, tile in enumerate(tiles):
            memory = None if ctx.kept is None else ctx.kept.tile(number)
            logits = _logits(x, weight[tile].to(dtype), bias, tile, memory)
            fold(logits, tile.start, targets, transform, folded)
        ctx.save_for_backward(hidden, weight, targets, bias, folded.logsumexp)
        return folded.losses(label_smoothing, len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, bias, logsumexp = ctx.saved_tensors
        wants_hidden, wants_weight, _, wants_bias, *_ = ctx.needs_input_grad
        x, factor = hidden.to(ctx.dtype), grad_losses.float().contiguous()
        grad_hidden = (
            torch.zeros(hidden.shape, dtype=torch.float32, device=x.device) if wants_hidden else None
        )
        # Whoever comes a second time (retain_graph) finds no logits any more, and must not find the gradient handed out.
        kept, ctx.kept = ctx.kept, None
        grad_weight = None
        if wants_weight:
            grad_weight = torch.empty_like(weight) if kept is None else kept.grad_weight
        grad_bias = torch.empty_like(bias) if wants_bias else None
        with torch.autocast(x.device.type, enabled=False):
            for number, tile in enumerate(_tiles(x, weight)):
                w = weight[tile].to(ctx.dtype)
                logits = None if kept is None else kept.tile(number)
                if logits is None:
                    logits = _logits(x, w, bias, tile)
                grad = gradient(
                    logits, tile.start, targets, ctx.transform, logsumexp, factor, ctx.label_smoothing, len(weight)
                )  # fmt: skip
                if grad_bias is not None:
                    grad_bias[tile] = grad.sum(dim=0, dtype=torch.float32)
                if grad_hidden is not None:
                    _add_product(grad_hidden, grad, w)
                if grad_weight is not None:
                    _write_product(grad_weight[tile], grad.T, x)
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, None, grad_bias, None, None, None


class _FrozenLinearTokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        label_smoothing: float,
        transform: Transform,
    ) -> Tensor:
        dtype, vocabulary = _product_dtype(hidden), len(weight)
        w, everything = weight.to(dtype), slice(vocabulary)
        folded = Folded.nothing(targets, vocabulary, bool(label_smoothing))
        one = torch.ones_like(folded.logsumexp)
        grad_hidden = torch.empty(hidden.shape, dtype=torch.float32, device=hidden.device)
        # Products want many tokens, and all that is done to a logit its processor's cache.
        size, rows = _chunk_size(hidden, vocabulary), max(1, _tile_elements(hidden) // vocabulary)
        memory = torch.empty(min(size, len(hidden)), vocabulary, dtype=dtype, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for chunk in _slices(0, len(hidden), size):
                x = hidden[chunk].to(dtype)
                logits = _logits(x, w, bias, everything, memory[: len(x)])
                for tokens in _slices(chunk.start, chunk.stop, rows):
                    few = logits[tokens.start - chunk.start : tokens.stop - chunk.start]
                    part, wanted = folded.of(tokens), targets[tokens]
                    fold(few, 0, wanted, transform, part)
                    gradient(
                        few, 0, wanted, transform, part.logsumexp, one[tokens], label_smoothing, vocabulary
                    )
                _write_product(grad_hidden[chunk], logits, w)
        ctx.save_for_backward(grad_hidden)
        ctx.dtype = hidden.dtype
        return folded.losses(label_smoothing, vocabulary)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        (grad_hidden,) = ctx.saved_tensors
        grad_hidden = (grad_hidden * grad_losses.float().unsqueeze(1)).to(ctx.dtype)
        return grad_hidden, None, None, None, None, None


class _KeptLogits:
    """Logits of the first tiles in the memory of the weight's gradient, until its rows take their place.

    The tiles are at the end of it in their order, so many that the rows of each tile end before its logits begin: the
    logits are read before, or while, their rows are written.

    Args:
        x: input of the head, `[tokens, hidden size]`, of the logits' dtype.
        weight: weight of the head.
        tiles: slices of the vocabulary; all but the last have the same width.
    """

    def __init__(self, x: Tensor, weight: Tensor, tiles: list[slice]):
        self.grad_weight = torch.empty_like(weight)
        self._shape, self._count = (len(x), tiles[0].stop), 0
        if not (len(x) and weight.is_contiguous() and weight.element_size() >= x.element_size()):
            return
        self._memory = self.grad_weight.view(-1).view(x.dtype)
        self._size, room = math.prod(self._shape), len(self._memory)
        rows = room // len(weight) * tiles[0].stop
        self._count = max(0, min(len(tiles) - 1, (room - rows) // self._size, (room - self._size) // rows))

    def tile(self, number: int) -> Tensor | None:
        """The memory of a tile's logits, `[tokens, columns]`, or None where there is no room for them."""
        if number >= self._count:
            return None
        start = len(self._memory) - (self._count - number) * self._size
        return self._memory[start : start + self._size].view(self._shape)


def _product_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _chunk_size(hidden: Tensor, vocabulary: int) -> int:
    """Tokens of a chunk whose logits are computed at once."""
    return max(_MIN_CHUNK, _tile_elements(hidden) // vocabulary // 64 * 64)


def _tile_elements(hidden: Tensor) -> int:
    return _TILE_ELEMENTS["cpu" if hidden.device.type == "cpu" else "cuda"]


def _tiles(hidden: Tensor, weight: Tensor) -> list[slice]:
    width = max(_MIN_WIDTH, _tile_elements(hidden) // max(len(hidden), 1) // 64 * 64)
    return _slices(0, len(weight), width)


def _slices(start: int, stop: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


def _logits(
    x: Tensor, weight: Tensor, bias: Tensor | None, tile: slice, memory: Tensor | None = None
) -> Tensor:
    if bias is None:
        return torch.mm(x, weight.T, out=memory)
    return torch.addmm(bias[tile].to(x.dtype), x, weight.T, out=memory)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right` in float32: rounded per tile, the sum of the tiles would be less exact than one product."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    elif left.device.type != "cuda":
        total.addmm_(left.float(), right.float())
    elif _HAS_OUT_DTYPE:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total += left @ right


def _write_product(product: Tensor, left: Tensor, right: Tensor) -> None:
    """`product[:] = left @ right`."""
    if product.dtype == left.dtype:
        torch.mm(left, right, out=product)
    elif product.dtype == torch.float32 and product.device.type == "cuda" and _HAS_OUT_DTYPE:
        torch.mm(left, right, out_dtype=torch.float32, out=product)
    else:
        product.copy_(left @ right)
