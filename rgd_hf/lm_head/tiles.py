"""A tile of logits `[tokens, columns]`: folded into what a cross-entropy keeps of it, and turned into its gradient.

On a GPU both are Triton kernels that read the tile once (`rgd_hf.lm_head.tiles_triton`). Elsewhere, and where Triton does not
run, they are torch's operations.
"""

import importlib.util
import warnings
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor


class Transform(NamedTuple):
    """What a model does to its logits after the projection: `softcap * tanh(scale * logits / softcap)`.

    Attributes:
        scale: factor.
        softcap: smooth bound; None for no bound.
    """

    scale: float
    softcap: float | None

    def __call__(self, logits: Tensor) -> Tensor:
        """The transformed logits, or `logits` themselves where there is nothing to do."""
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.softcap is None else (logits / self.softcap).tanh_().mul_(self.softcap)


class Folded(NamedTuple):
    """What is kept of the logits of all tiles so far, float32 `[tokens]` each.

    Attributes:
        logsumexp: logsumexp of the logits; minus infinity before the first tile.
        target_logits: the logit of each target, 0 until its tile comes.
        logits_sum: sum of the logits; None where labels are not smoothed.
    """

    logsumexp: Tensor
    target_logits: Tensor
    logits_sum: Tensor | None

    @classmethod
    def nothing(cls, targets: Tensor, vocabulary: int, smoothed: bool) -> "Folded":
        """What is kept before the first tile; a target outside the vocabulary is an error, as of `cross_entropy`."""
        zeros = torch.zeros((), device=targets.device).expand(vocabulary).gather(0, targets)
        return cls(zeros - torch.inf, zeros, zeros.clone() if smoothed else None)

    def of(self, tokens: slice) -> "Folded":
        """That of some of the tokens, in the same memory."""
        logits_sum = None if self.logits_sum is None else self.logits_sum[tokens]
        return Folded(self.logsumexp[tokens], self.target_logits[tokens], logits_sum)

    def losses(self, smoothing: float, vocabulary: int) -> Tensor:
        """Cross-entropies after the last tile, float32 `[tokens]`."""
        losses = self.logsumexp - (1 - smoothing) * self.target_logits
        return losses if self.logits_sum is None else losses - smoothing / vocabulary * self.logits_sum


def fold(logits: Tensor, start: int, targets: Tensor, transform: Transform, folded: Folded) -> None:
    """Add a tile to `folded`, in place.

    Args:
        logits: `[tokens, columns]`, contiguous, any floating-point dtype.
        start: its first column in the vocabulary.
        targets: token ids `[tokens]`.
        transform: transform of the logits.
        folded: sums of the tiles before.
    """
    if runs_triton(logits.device):
        from rgd_hf.lm_head.tiles_triton import fold as fold_by_triton

        fold_by_triton(logits, start, targets, transform, folded)
        return
    logits = transform(logits.float())
    column, inside = _columns(targets, start, logits.shape[1])
    folded.target_logits.add_(logits.gather(1, column).squeeze(1).masked_fill_(~inside, 0.0))
    if folded.logits_sum is not None:
        folded.logits_sum.add_(logits.sum(dim=1))
    # A tile may hold nothing but minus infinity: finfo(float32).min, the usual bias of what may not be generated, is that
    # in half precision. -inf - -inf would be NaN.
    largest = logits.amax(dim=1).clamp_(min=torch.finfo(torch.float32).min)
    logsumexp = (logits - largest.unsqueeze(1)).exp_().sum(dim=1).log_().add_(largest)
    torch.logaddexp(folded.logsumexp, logsumexp, out=folded.logsumexp)


def gradient(
    logits: Tensor,
    start: int,
    targets: Tensor,
    transform: Transform,
    logsumexp: Tensor,
    factor: Tensor,
    smoothing: float,
    vocabulary: int,
) -> Tensor:
    """The gradient of the tile's logits before `transform`, each token's multiplied by its factor, in their memory.

    Args:
        logits: `[tokens, columns]`, contiguous, any floating-point dtype; overwritten with their gradient.
        start: its first column in the vocabulary.
        targets: token ids `[tokens]`.
        transform: transform of the logits.
        logsumexp: logsumexp of all logits of a token, float32 `[tokens]`.
        factor: gradient of each token's loss, float32 `[tokens]`.
        smoothing: share of the target mass that is spread evenly over the vocabulary.
        vocabulary: its size.

    Returns:
        `logits`.
    """
    if runs_triton(logits.device):
        from rgd_hf.lm_head.tiles_triton import gradient as gradient_by_triton

        return gradient_by_triton(logits, start, targets, transform, logsumexp, factor, smoothing, vocabulary)
    grad, slope = transform(logits.float()), None
    if transform.softcap is not None:
        slope = (grad / transform.softcap).square_().neg_().add_(1)
    grad.sub_(logsumexp.unsqueeze(1)).exp_()
    column, inside = _columns(targets, start, logits.shape[1])
    grad.scatter_add_(1, column, -(1 - smoothing) * inside.float().unsqueeze(1))
    if smoothing:
        grad -= smoothing / vocabulary
    if slope is not None:
        grad *= slope
    grad.mul_((factor * transform.scale).unsqueeze(1))
    return logits if grad is logits else logits.copy_(grad)


def _columns(targets: Tensor, start: int, columns: int) -> tuple[Tensor, Tensor]:
    """Where in the tile each target is, `[tokens, 1]`, and whether it is there at all, bool `[tokens]`."""
    column = targets - start
    inside = (column >= 0) & (column < columns)
    return torch.where(inside, column, 0).unsqueeze(1), inside


@cache
def runs_triton(device: torch.device) -> bool:
    """Whether the kernels run on `device`; where Triton is installed for it but cannot compile, a warning says why."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    from rgd_hf.lm_head.tiles_triton import fold as fold_by_triton

    logits, target = torch.zeros(1, 8, device=device), torch.zeros(1, dtype=torch.long, device=device)
    try:
        fold_by_triton(logits, 0, target, Transform(1.0, None), Folded(logits[0, :1], logits[0, 1:2], None))
    except Exception as error:
        warnings.warn(
            f"Triton cannot compile a kernel here ({type(error).__name__}: {' '.join(str(error).split())[:200]}), so the "
            "losses of language models take torch's own operations: the same losses, more slowly. Triton needs a C compiler "
            "and the headers of Python.",
            stacklevel=2,
        )
        return False
    return True
