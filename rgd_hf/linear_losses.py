"""Un-reduced token losses of a linear head, without its logits.

The logits of a language model, `[tokens, vocabulary]`, are the largest tensor of a training step. Here they exist one
tile of the vocabulary at a time: the forward pass keeps a running logsumexp and the logit of each target, and the
backward pass recomputes each tile, this time as the gradient of its logits. Products and dtypes are those of
`torch.nn.Linear` followed by a float32 `cross_entropy` on the same tile.

Why not `torch.nn.functional.linear_cross_entropy` (torch 2.13 and later) with `reduction="none"`: its losses have the
dtype of the hidden states (bfloat16 losses make bfloat16 weights), it smooths no labels without the full logits, and it
cuts the tokens, not the vocabulary, so that every piece reads and writes the whole gradient of the weight.
"""

from collections.abc import Callable, Iterator
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
    return _LinearTokenLosses.apply(hidden, weight, targets, bias, label_smoothing, scale, softcap)


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

    size = max(_MIN_CHUNK, _tile_elements(hidden) // vocabulary)
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
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        ctx.dtype, ctx.label_smoothing, ctx.transform = dtype, label_smoothing, Transform(scale, softcap)
        x = hidden.to(dtype)
        # As cross_entropy does, this fails on a target outside the vocabulary.
        zeros = torch.zeros((), device=hidden.device).expand(weight.shape[0]).gather(0, targets)
        folded = Folded(zeros - torch.inf, zeros, zeros.clone() if label_smoothing else None)
        for tile in _tiles(x, weight):
            logits = _logits(x, weight[tile].to(dtype), bias, tile)
            fold(logits, tile.start, targets, ctx.transform, folded)
        ctx.save_for_backward(hidden, weight, targets, bias, folded.logsumexp)
        losses = folded.logsumexp - (1 - label_smoothing) * folded.target_logits
        if folded.logits_sum is not None:
            losses -= label_smoothing / len(weight) * folded.logits_sum
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, bias, logsumexp = ctx.saved_tensors
        wants_hidden, wants_weight, _, wants_bias, *_ = ctx.needs_input_grad
        x, factor = hidden.to(ctx.dtype), grad_losses.float().contiguous()
        grad_hidden = (
            torch.zeros(hidden.shape, dtype=torch.float32, device=x.device) if wants_hidden else None
        )
        grad_weight = torch.empty_like(weight) if wants_weight else None
        grad_bias = torch.empty_like(bias) if wants_bias else None
        with torch.autocast(x.device.type, enabled=False):
            for tile in _tiles(x, weight):
                w = weight[tile].to(ctx.dtype)
                grad = gradient(
                    _logits(x, w, bias, tile), tile.start, targets, ctx.transform, logsumexp, factor,
                    ctx.label_smoothing, len(weight),
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


def _tile_elements(hidden: Tensor) -> int:
    return _TILE_ELEMENTS["cpu" if hidden.device.type == "cpu" else "cuda"]


def _tiles(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    width = max(_MIN_WIDTH, _tile_elements(hidden) // max(len(hidden), 1) // 64 * 64)
    for start in range(0, len(weight), width):
        yield slice(start, min(start + width, len(weight)))


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None, tile: slice) -> Tensor:
    return F.linear(x, weight, None if bias is None else bias[tile].to(x.dtype))


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
