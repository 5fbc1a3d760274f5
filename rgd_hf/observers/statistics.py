"""Statistics of the weights since the last log: sums on the device, read by the host only when the Trainer logs.

A step of a small model is as long as the host takes to launch its kernels, of which these sums would be many. So a
micro-batch is only kept, in one operation or two, and many of them are added up at once.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rgd_hf.items import Items
from rgd_hf.observers.base import Observer

_SUMS = ("reference", "weight", "weight_squared", "items", "clipped", "loss")
KEPT_ITEMS = 2**17
"""Items that are kept at most before they are added up: 2 MiB."""
KEPT_BATCHES = 64
"""Micro-batches that are kept at most."""


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

    def __init__(self) -> None:
        # Micro-batches that are not in the state yet: their steps; reference weight, weight, loss, and how far the loss is
        # above the limit, `[4, items]`.
        self._forget()

    @property
    def state(self) -> dict[str, Tensor]:
        """Tensors by name, with all that was observed so far; does not wait for the device."""
        self._add_up()
        return self._state

    @state.setter
    def state(self, state: dict[str, Tensor]) -> None:
        self._state = state
        self._forget()

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
        losses = items.losses
        if not losses.numel():
            return
        # A copy, as what a user's function returned may change.
        batch = torch.stack([items.reference, weights, losses, losses - self.limit]).flatten(1)
        self._batches.append(batch)
        self._steps.append(step)
        self._items += losses.numel()
        if self._items >= KEPT_ITEMS or len(self._steps) >= KEPT_BATCHES:
            self._add_up()

    def _add_up(self) -> None:
        """Add what was kept to the state; does not wait for the device."""
        if not self._batches:
            return
        state, batches = self._state, self._batches
        reference, weights, losses, above = batches[0] if len(batches) == 1 else torch.cat(batches, dim=1)
        counted = (reference > 0).float()
        weighted, loss = reference * weights, counted * losses
        state["sums"] += torch.stack(
            [
                reference.sum(),
                weighted.sum(),
                (weighted * weights).sum(),
                counted.sum(),
                (counted * (above > 0)).sum(),
                loss.sum(),
            ]
        )
        weights = weights.masked_fill(reference <= 0, 0.0)
        largest, first = state["largest_weight"], state["first_bad_steps"]
        state["largest_weight"] = torch.maximum(largest, weights.amax().to(largest.dtype))
        # Without `output_size` the host would wait for the lengths.
        steps, lengths = (
            torch.tensor(numbers).to(losses.device, non_blocking=True)
            for numbers in ([float(step) for step in self._steps], [batch.shape[1] for batch in batches])
        )
        steps = steps.repeat_interleave(lengths, output_size=losses.numel())
        good = torch.isfinite(loss), torch.isfinite(weighted) & (weights >= 0)
        bad_steps = torch.stack([steps.masked_fill(mask, math.inf).amin() for mask in good])
        state["first_bad_steps"] = torch.minimum(first, bad_steps.to(first.dtype))
        self._forget()

    def _forget(self) -> None:
        self._steps: list[int] = []
        self._batches: list[Tensor] = []
        self._items = 0

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
            Of the weights `w` of the rule, over the items as often as their class and sample weights `r` say: `weight_mean`
            (`sum r w / sum r`) and `effective_sample_size` (as a fraction: `(sum r w)**2 / (sum r * sum r w**2)`, 1 where all
            are equal); and `weight_max`. Of the losses, over the items that count (`r > 0`), each once: `clipped_fraction`
            (fraction of those above `limit`) and `unweighted_loss` (the plain mean). Empty if no item was observed.
        """
        reference, weight, squared, items, clipped, loss = state["sums"].tolist()
        if items == 0:
            return {}
        return {
            "weight_mean": weight / reference,
            "weight_max": state["largest_weight"].item(),
            # At most 1, but for the rounding of its sums.
            "effective_sample_size": min(weight**2 / (reference * squared), 1.0) if squared > 0 else 0.0,
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
        "resume from the last checkpoint. To train on after such a loss, set trainer.stop_on_non_finite_loss = False."
    )
