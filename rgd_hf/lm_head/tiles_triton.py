"""The two operations of `rgd_hf.lm_head.tiles` as Triton kernels: a tile is read once, and its gradient takes its place.

All arithmetic is in float32, whatever the dtype of the logits.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_FOLD_BLOCK, _GRADIENT_BLOCK = 2048, 1024


@triton.jit
def _transformed(z, scale, softcap, CAPPED: tl.constexpr):
    """The transformed logits, and the slope of the soft cap there."""
    z = z * scale
    slope = tl.zeros_like(z) + 1.0
    if CAPPED:
        decay = tl.exp(-2.0 * tl.abs(z) / softcap)
        tanh = (1.0 - decay) / (1.0 + decay)
        slope = 1.0 - tanh * tanh
        z = tl.where(z < 0, -tanh, tanh) * softcap
    return z, slope


@triton.jit
def _fold_kernel(
    logits, targets, logsumexp, target_logits, logits_sum, row_stride, start, width, scale, softcap,
    CAPPED: tl.constexpr, SMOOTHED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a token. The logsumexp so far is one more term of it: `exp(logsumexp)` is `total * exp(largest)`."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    so_far = tl.load(logsumexp + row)
    # finfo(float32).min, and not minus infinity, which is all that a tile may hold: -inf - -inf would be NaN.
    largest = tl.maximum(so_far, -3.4028234663852886e38)
    total = tl.exp(so_far - largest)
    logits_total = 0.0
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < width
        z, _ = _transformed(
            tl.load(logits + column, mask=inside, other=0.0).to(tl.float32), scale, softcap, CAPPED
        )
        if SMOOTHED:
            logits_total += tl.sum(tl.where(inside, z, 0.0), axis=0)
        z = tl.where(inside, z, float("-inf"))
        before, largest = largest, tl.maximum(largest, tl.max(z, axis=0))
        total = total * tl.exp(before - largest) + tl.sum(tl.exp(z - largest), axis=0)
    tl.store(logsumexp + row, largest + tl.log(total))
    if SMOOTHED:
        tl.store(logits_sum + row, tl.load(logits_sum + row) + logits_total)
    target = tl.load(targets + row) - start
    here = (target >= 0) & (target < width)
    z, _ = _transformed(tl.load(logits + target, mask=here, other=0.0).to(tl.float32), scale, softcap, CAPPED)
    tl.store(target_logits + row, z, mask=here)


@triton.jit
def _gradient_kernel(
    logits, targets, logsumexp, factor, row_stride, start, width, scale, softcap, target_mass, mass_of_each,
    CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a token and block of columns."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    z, slope = _transformed(
        tl.load(logits + column, mask=inside, other=0.0).to(tl.float32), scale, softcap, CAPPED
    )
    target = tl.load(targets + row) - start
    grad = tl.exp(z - tl.load(logsumexp + row)) - mass_of_each
    grad = tl.where(column == target, grad - target_mass, grad)
    grad = grad * slope * (tl.load(factor + row) * scale)
    tl.store(logits + column, grad.to(logits.dtype.element_ty), mask=inside)


def fold(logits: Tensor, start: int, targets: Tensor, transform: Any, folded: Any) -> None:
    """As `rgd_hf.lm_head.tiles.fold`."""
    scale, softcap = transform
    tokens, width = logits.shape
    if not tokens:
        return
    smoothed = folded.logits_sum is not None
    with torch.cuda.device_of(logits):  # Triton launches on the current device
        _fold_kernel[(tokens,)](
            logits, targets, folded.logsumexp, folded.target_logits, folded.logits_sum if smoothed else logits,
            logits.stride(0), start, width, float(scale), float(softcap or 1.0),
            CAPPED=softcap is not None, SMOOTHED=smoothed, BLOCK=_FOLD_BLOCK, num_warps=8,
        )  # fmt: skip


def gradient(
    logits: Tensor,
    start: int,
    targets: Tensor,
    transform: Any,
    logsumexp: Tensor,
    factor: Tensor,
    smoothing: float,
    vocabulary: int,
) -> Tensor:
    """As `rgd_hf.lm_head.tiles.gradient`."""
    scale, softcap = transform
    tokens, width = logits.shape
    if tokens:
        with torch.cuda.device_of(logits):  # Triton launches on the current device
            _gradient_kernel[(tokens, triton.cdiv(width, _GRADIENT_BLOCK))](
                logits, targets, logsumexp, factor, logits.stride(0), start, width, float(scale), float(softcap or 1.0),
                1.0 - smoothing, smoothing / vocabulary,
                CAPPED=softcap is not None, BLOCK=_GRADIENT_BLOCK, num_warps=4,
            )  # fmt: skip
    return logits
