"""Statistics of the weights since the last log: sums on the device, read by the host only when the Trainer logs."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rgd_hf.items import Items
from rgd_hf.observers.base import Observer

_SUMS = ("items", "weight", "weight_squared", "clipped", "loss")


class WeightStatistics(Observer):
    """Running sums over the training items, and the first steps with a NaN or infinite loss or an invalid weight.

    Attributes:
        limit: clipping threshold of the losses, a number or a 0-dimensional tensor on the device; infinite for none.
    """

    name = "weight_statistics"
    largest = ("largest_weight",)
    smallest = ("first_bad_steps",)
    kept = ("first_bad_steps",)
    limit: float | Tensor = math.inf

    def initial_state(self) -> dict[str, Tensor]:
        """Sums, the largest weight, and the first steps with a bad loss and with a bad weight."""
        # float32 would stop counting items at 2**24.
        return {
            "sums": torch.zeros(len(_SUMS), dtype=torch.float64),
            "largest_weight": torch.zeros((), dtype=torch.float64),
            "first_bad_steps": torch.full((2,), math.inf, dtype=torch.float64),
        }

    def observe(self, items: Items, weights: Tensor, step: int) -> None:
        """Count one micro-batch of optimizer step `step` (1-based)."""
        losses, reference = items.losses, items.reference
        weighted = reference * weights
        sums = torch.stack(
            [
                reference.sum(),
                weighted.sum(),
                (weighted * weights).sum(),
                (reference * (losses > self.limit)).sum(),
                (reference * losses).sum(),
            ]
        )
        state = self.state
        state["sums"] += sums
        smallest, largest = torch.where(reference > 0, weights, 0.0).aminmax()
        state["largest_weight"] = torch.maximum(state["largest_weight"], largest.to(state["sums"].dtype))
        # A negative weight makes the second sum NaN.
        watched = torch.stack([sums[4], sums[1] + torch.where(smallest < 0, math.nan, 0.0)])
        first = state["first_bad_steps"]
        state["first_bad_steps"] = torch.where(torch.isfinite(watched), first, first.clamp(max=step))

    def first_bad_steps(self, gather: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """The first optimizer steps, on any process, with an invalid loss and with an invalid weight.

        A loss must be finite, a weight finite and at least 0. Infinity means that there was no such step. Waits for the
        device; every process has to call it.

        Args:
            gather: concatenates a tensor over the processes along its first dimension.
        """
        loss, weight = gather(self.state["first_bad_steps"][None]).amin(dim=0).tolist()
        return loss, weight

    def collect(self, state: Mapping[str, Tensor]) -> dict[str, float]:
        """The statistics of all items since the last log.

        Returns:
            `weight_mean`, `weight_max`, `effective_sample_size` (as a fraction of the items: `(sum w)**2 / (n sum w**2)`,
            1 where all weights are equal), `clipped_fraction` (fraction of the items whose loss is above `limit`)
            and `unweighted_loss` (the plain mean); empty if no item was observed.
        """
        items, weight, squared, clipped, loss = state["sums"].tolist()
        if items == 0:
            return {}
        return {
            "weight_mean": weight / items,
            "weight_max": state["largest_weight"].item(),
            # At most 1, but for the rounding of its sums.
            "effective_sample_size": min(weight**2 / (items * squared), 1.0) if squared > 0 else 0.0,
            "clipped_fraction": clipped / items,
            "unweighted_loss": loss / items,
        }


class NonFiniteLossError(FloatingPointError):
    """A training loss was NaN or infinite; the message names the optimizer step."""


def stop_if_not_finite(first_bad_step: float, output_dir: str) -> None:
    """Raise `NonFiniteLossError` if `first_bad_step` is a step (infinity means that all losses were finite)."""
    if math.isinf(first_bad_step):
        return
    raise NonFiniteLossError(
        f"The training loss was NaN or infinite at optimizer step {first_bad_step:.0f}, so the parameters are no "
        f"longer usable. Checkpoints in {output_dir!r} were written before that step and are kept. Look at the data "
        "of that step, lower the learning rate, set max_grad_norm, or use bf16 or float32 instead of fp16; then "
        "resume from the last checkpoint."
    )
