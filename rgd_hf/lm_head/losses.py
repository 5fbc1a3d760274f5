"""Un-reduced token losses of a linear head, without its logits.

The logits of a language model, `[tokens, vocabulary]`, are the largest tensor of a training step. Here no more than a
tile of the vocabulary is allocated for them: the forward pass keeps a running logsumexp and the logit of each target, and
the backward pass turns each tile into the gradient of its logits. As many tiles as fit wait for it in the memory that the
gradient of the weight will need (all, or all but two, where there are no more tokens than hidden units); the others are
computed a second time. A frozen head is cut by tokens instead: its gradient of the hidden states, per unit of a token's
loss, is known as soon as the token's logits are. Products and dtypes are those of `torch.nn.Linear` followed by a float32
`cross_entropy`.

Why not `torch.nn.functional.linear_cross_entropy` (torch 2.13 and later) with `reduction="none"`: its losses have the
dtype of the hidden states (bfloat16 losses make bfloat16 weights), it smooths no labels without the full logits, and it
cuts the tokens, not the vocabulary, so that every piece reads and writes the whole gradient of the weight.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rgd_hf.lm_head.tiles import Folded, Transform, fold, gradient

_TILE_ELEMENTS = {"cpu": 2**20, "cuda": 2**25}
"""Logits of a tile. On a CPU what a core's caches hold: 2**20 and 2**21 are fastest; on an H100 2**25 to 2**28 are alike."""
_MIN_WIDTH = _MIN_CHUNK = 256
_FROZEN_CHUNK = {"cpu": 256, "cuda": 1024}
"""Tokens for which a frozen weight is read once: a GPU multiplies faster than it reads, by more."""
_FLOAT16_UNIT = 2.0**10
"""The unit of loss in float16, whose smallest number is 6e-8: large vocabularies have smaller probabilities."""
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
        weight: `[vocabulary, hidden size]`. Inside autocast both are cast, as those of `torch.nn.Linear` are. The memory of
            its gradient is allocated here, and is held until the backward pass.
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
        trains_weight: bool,
    ) -> Tensor:
        dtype = _product_dtype(hidden)
        ctx.dtype, ctx.label_smoothing, ctx.transform = dtype, label_smoothing, transform
        x = hidden.to(dtype)
        folded = Folded.nothing(targets, len(weight), bool(label_smoothing))
        tiles = _tiles(x, weight)
        ctx.grad_weight, ctx.kept = _lent_memory(x, weight, tiles) if trains_weight else (None, [])
        for number, tile in enumerate(tiles):
            memory = ctx.kept[number] if number < len(ctx.kept) else None
            logits = _logits(x, weight[tile], None if bias is None else bias[tile], memory)
            fold(logits, tile.start, targets, transform, folded)
        if trains_weight and len(ctx.kept) == len(tiles) - 1:
            ctx.kept.append(logits)  # the backward pass would need as much memory to compute it again
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
        kept, grad_weight = ctx.kept, ctx.grad_weight
        ctx.kept, ctx.grad_weight = [], None
        if not wants_weight:
            grad_weight = None
        elif grad_weight is None:
            grad_weight = torch.empty_like(weight)
        grad_bias = torch.empty_like(bias) if wants_bias else None
        with torch.autocast(x.device.type, enabled=False):
            for number, tile in enumerate(_tiles(x, weight)):
                w = weight[tile].to(ctx.dtype)
                if number < len(kept):
                    logits = kept[number]
                else:
                    logits = _logits(x, w, None if bias is None else bias[tile])
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
        w = weight.to(dtype)
        folded = Folded.nothing(targets, vocabulary, bool(label_smoothing))
        # The gradient of the logits has the dtype of the products, and no loss scale yet that would keep it from underflow.
        unit = _FLOAT16_UNIT if dtype == torch.float16 else 1.0
        factor = torch.full_like(folded.logsumexp, unit / transform.scale)
        grad_hidden = torch.empty(hidden.shape, dtype=torch.float32, device=hidden.device)
        size = rows = max(_FROZEN_CHUNK[_processor(hidden)], _chunk_size(hidden, vocabulary))
        if _processor(hidden) == "cpu":
            rows = max(1, _tile_elements(hidden) // vocabulary)  # what the cache holds between two operations
        memory = torch.empty(min(size, len(hidden)), vocabulary, dtype=dtype, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for chunk in _slices(0, len(hidden), size):
                x = hidden[chunk].to(dtype)
                logits = _logits(x, w, bias, memory[: len(x)])
                for tokens in _slices(chunk.start, chunk.stop, rows):
                    tile = logits[tokens.start - chunk.start : tokens.stop - chunk.start]
                    part, wanted = folded.of(tokens), targets[tokens]
                    fold(tile, 0, wanted, transform, part)
                    gradient(
                        tile, 0, wanted, transform, part.logsumexp, factor[tokens], label_smoothing, vocabulary
                    )  # fmt: skip
                _write_product(grad_hidden[chunk], logits, w)
        ctx.save_for_backward(grad_hidden)
        ctx.dtype, ctx.per_unit = hidden.dtype, transform.scale / unit
        return folded.losses(label_smoothing, vocabulary)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        (grad_hidden,) = ctx.saved_tensors
        factor = (grad_losses.float() * ctx.per_unit).unsqueeze(1)
        product = torch.mul(grad_hidden, factor, out=torch.empty_like(grad_hidden, dtype=ctx.dtype))
        return product, None, None, None, None, None


def _lent_memory(x: Tensor, weight: Tensor, tiles: list[slice]) -> tuple[Tensor | None, list[Tensor]]:
    """The weight's gradient, not yet computed, and its memory as that of the logits of the first tiles.

    The tiles are at its end in their order, so many that the rows of a tile, where they are written, meet neither its own
    logits nor those of later tiles.

    Args:
        x: input of the head, `[tokens, hidden size]`, of the logits' dtype.
        weight: weight of the head.
        tiles: slices of the vocabulary; all but the last have the same width.

    Returns:
        `[vocabulary, hidden size]`, or None where no tile fits, and `[tokens, columns]` of each tile that does.
    """
    lendable = len(x) and weight.is_contiguous() and weight.element_size() >= x.element_size()
    if not lendable or len(tiles) < 2:
        return None, []
    room = weight.numel() * weight.element_size() // x.element_size()
    tile, rows = len(x) * tiles[0].stop, room // len(weight) * tiles[0].stop
    count = min(len(tiles) - 1, (room - rows) // tile, (room - tile) // rows)
    if count <= 0:
        return None, []
    grad_weight = torch.empty_like(weight)
    lent = grad_weight.view(-1).view(x.dtype)[room - count * tile :]
    return grad_weight, list(lent.view(count, len(x), tiles[0].stop).unbind())


def _product_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _chunk_size(hidden: Tensor, vocabulary: int) -> int:
    """Tokens of a chunk whose logits are computed at once."""
    return max(_MIN_CHUNK, _tile_elements(hidden) // vocabulary // 64 * 64)


def _processor(hidden: Tensor) -> str:
    return "cpu" if hidden.device.type == "cpu" else "cuda"


def _tile_elements(hidden: Tensor) -> int:
    return _TILE_ELEMENTS[_processor(hidden)]


def _tiles(hidden: Tensor, weight: Tensor) -> list[slice]:
    width = max(_MIN_WIDTH, _tile_elements(hidden) // max(len(hidden), 1) // 64 * 64)
    return _slices(0, len(weight), width)


def _slices(start: int, stop: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None, memory: Tensor | None = None) -> Tensor:
    weight = weight.to(x.dtype)
    if bias is None:
        return torch.mm(x, weight.T, out=memory)
    return torch.addmm(bias.to(x.dtype), x, weight.T, out=memory)


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
