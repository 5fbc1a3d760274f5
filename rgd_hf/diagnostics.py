"""What the weights did since the last log: sums kept on the device, read by the host only when the Trainer logs."""

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from rgd_hf.weighting import Items

_SUMS = ("items", "weight", "weight_squared", "clipped", "loss")


class WeightStatistics:
    """Running sums over the items that were trained on; adding to them never waits for the device."""

    def __init__(self, device: torch.device):
        # float32 would stop counting items at 2**24; MPS knows no float64.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.zeros(len(_SUMS), device=device, dtype=dtype)
        self._largest_weight = torch.zeros((), device=device, dtype=dtype)
        self._first_bad_step = torch.full((), math.inf, device=device, dtype=dtype)

    @torch.no_grad()
    def add(self, items: Items, weights: Tensor, tau: float, step: int) -> None:
        """Count one micro-batch of optimizer step `step` (1-based)."""
        losses, reference = items.losses.detach(), items.reference
        weighted = reference * weights
        sums = torch.stack(
            [
                reference.sum(),
                weighted.sum(),
                (weighted * weights).sum(),
                (reference * (losses > tau)).sum(),
                (reference * losses).sum(),
            ]
        )
        self._sums += sums
        self._largest_weight = torch.maximum(
            self._largest_weight, torch.where(reference > 0, weights, 0.0).amax().to(self._sums.dtype)
        )
        bad = ~torch.isfinite(sums[-1])
        self._first_bad_step = torch.where(bad, self._first_bad_step.clamp(max=step), self._first_bad_step)

    def first_bad_step(self, gather: Callable[[Tensor], Tensor]) -> float:
        """The first optimizer step with a NaN or infinite loss on any process; infinite where there was none.

        Waits for the device; every process has to call it.
        """
        return gather(self._first_bad_step[None]).amin().item()

    def collect(self, gather: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Gather the sums of all processes, start new ones, and return the statistics.

        Waits for the device; every process has to call it.

        Args:
            gather: concatenates a tensor over the processes along its first dimension.

        Returns:
            `weight_mean`, `weight_max`, `effective_sample_size` (as a fraction of the items: `(sum w)**2 / (n sum w**2)`,
            1 where all weights are equal), `clipped_fraction` (of items whose loss lies above tau)
            and `unweighted_loss` (the plain mean); nothing where nothing was added.
        """
        local = torch.cat([self._sums, self._largest_weight[None]])
        table = gather(local[None])
        items, weight, squared, clipped, loss = table[:, : len(_SUMS)].sum(dim=0).tolist()
        largest = table[:, -1].amax().item()
        self._sums.zero_()
        self._largest_weight.zero_()
        if items == 0:
            return {}
        return {
            "weight_mean": weight / items,
            "weight_max": largest,
            "effective_sample_size": weight**2 / (items * squared) if squared > 0 else 0.0,
            "clipped_fraction": clipped / items,
            "unweighted_loss": loss / items,
        }


class NonFiniteLossError(FloatingPointError):
    """A training loss was NaN or infinite; the message names the optimizer step."""


def stop_if_not_finite(first_bad_step: float, output_dir: str) -> None:
    """Raise `NonFiniteLossError` if `first_bad_step` is a step (it is infinite where all losses were finite)."""
    if math.isinf(first_bad_step):
        return
    raise NonFiniteLossError(
        f"The training loss was NaN or infinite at optimizer step {first_bad_step:.0f}, so the parameters are no "
        f"longer usable. Checkpoints in {output_dir!r} were written before that step and are kept. Look at the data "
        "of that step, lower the learning rate, set max_grad_norm, or use bf16 or float32 instead of fp16; then "
        "resume from the last checkpoint."
    )


def warn_of_saturation(statistics: dict[str, float], tau: float) -> bool:
    """Warn, with the remedy, where most losses lie above tau; return whether there was reason to.

    Args:
        statistics: of `WeightStatistics.collect`.
        tau: of the run.
    """
    if statistics.get("clipped_fraction", 0.0) <= 0.5:
        return False
    mean = statistics["unweighted_loss"]
    warnings.warn(
        f"{statistics['clipped_fraction']:.0%} of the losses since the last log lie above tau={tau:g}, so most weights "
        "are equal and re-weighting does little but scale the step. Raise tau: the mean loss is "
        f"{mean:.3g}, so --tau {2 * mean:.2g} would leave room.",
        stacklevel=3,
    )
    return True
