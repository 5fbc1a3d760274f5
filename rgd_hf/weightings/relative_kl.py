"""Weights of the KL divergence of losses in units of their running mean size.

This module needs torch alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rgd_hf.items import SMALLEST, Items
from rgd_hf.weightings.base import Weighting, check_losses
from rgd_hf.weightings.divergence import CITATION, PAPER, check_tau


@dataclass
class RelativeKL(Weighting):
    """`exp(z)` with `z = min(loss / scale, tau) / (tau + 1)`, where `scale` is a running mean of `|loss|`.

    The weights do not depend on the scale of the losses, as with `target_ess`; but an item is not compared with the others
    of its micro-batch, so that a step does not depend on how it is cut. The scale is an exponential moving average of the
    steps' means of `|loss|`, corrected for its start at 0; a step is weighted with the scale of the steps before it, and all
    weights are 1 while there is none: in the first step, and as long as all losses were 0. Weights of losses >= 0 are between 1
    and `exp(tau / (tau + 1))`, below e. A negative loss (of a density, as the Gaussian likelihood has) gets a weight below 1,
    about `exp(-1 / (tau + 1))` where all are negative: the mean of the losses themselves would be no unit there.

    Source: the weights are those of Kumar et al., TMLR 2024 (arXiv 2306.09222); measuring losses in units of their running
    mean is an addition of this library.

    Args:
        tau: clipping threshold, in units of the scale: losses above it get the same weight. Positive and
            finite.
        decay: decay of the running mean, at least 0 and below 1: it averages over about `1 / (1 - decay)` steps.

    Raises:
        ValueError: a setting is not in its range.
    """

    tau: float = 2.0
    decay: float = 0.99

    name: ClassVar[str] = "relative_kl"
    title: ClassVar[str] = "RGD"
    short: ClassVar[str] = "relative KL"
    citation: ClassVar[str | None] = CITATION

    def __post_init__(self) -> None:
        check_tau(self.tau)
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, not {self.decay!r}.")

    def initial_state(self) -> dict[str, Tensor]:
        """The moving average of the losses' sizes and its correction, the same average of ones; both 0."""
        return {"mean_loss": torch.zeros(()), "weight": torch.zeros(())}

    def scale(self) -> Tensor:
        """The running mean of the losses' sizes, 0-dimensional; infinite while there is none."""
        mean, weight = self.state["mean_loss"], self.state["weight"]
        # Of a training that was saved when it was a mean of the losses, it may be negative.
        return torch.where((weight > 0) & (mean > 0), mean / weight, math.inf)

    def weights(self, items: Items) -> Tensor:
        """The weights; the largest one for a NaN or infinite loss."""
        check_losses(items.losses)
        relative = items.losses.float() / self.scale().clamp(min=SMALLEST)
        # Before there is a scale, an infinite loss over an infinite scale is NaN too.
        relative = relative.nan_to_num(nan=self.tau, posinf=self.tau).clamp(max=self.tau)
        return torch.exp(relative / (self.tau + 1))

    def sums(self, items: Items) -> Tensor:
        """Sum of the losses' sizes and sum of the reference weights, float32 `[2]`."""
        return torch.stack([(items.reference * items.losses.abs()).sum(), items.reference.sum()])

    def update(self, sums: Tensor) -> None:
        """Add the step's mean to the running mean; a mean that is not finite, or of no items, is skipped."""
        loss, count = sums
        mean = loss / count
        for name, value in (("mean_loss", mean), ("weight", torch.ones_like(mean))):
            old = self.state[name]
            new = self.decay * old + (1 - self.decay) * value
            self.state[name] = torch.where(torch.isfinite(mean), new, old)

    def clips_above(self) -> Tensor:
        """`tau` times the scale."""
        return self.tau * self.scale()

    def bounds(self) -> tuple[float, float]:
        """1 and the largest weight, of losses >= 0."""
        return 1.0, math.exp(self.tau / (self.tau + 1))

    def logs(self) -> dict[str, float]:
        """`loss_scale`, where there is one."""
        scale = self.scale().item()
        return {"loss_scale": scale} if math.isfinite(scale) else {}

    def details(self) -> list[str]:
        """The rule, `tau` in its unit, and another decay than the default."""
        decay = [] if self.decay == type(self).decay else [f"decay={self.decay:g}"]
        return [self.name, f"tau={self.tau:g} mean losses", *decay]

    def describe(self, item: str) -> str:
        """Formula, and what the unit is."""
        return (
            f"Trained with a variant of {PAPER} (KL divergence): in each optimization step, the gradient of every {item} was "
            f"weighted by `exp(min(loss / scale, {self.tau:g}) / {self.tau + 1:g})` of its own, detached loss, where `scale` was "
            f"the exponential moving average of the steps' means of |loss| before it (decay {self.decay:g})."
        )

    def advice(self, statistics: Mapping[str, float]) -> str | None:
        """Advice to raise `tau` if most losses are above it."""
        share = statistics.get("clipped_fraction", 0.0)
        if share <= 0.5:
            return None
        return (
            f"{share:.0%} of the losses since the last log are above tau={self.tau:g} times their running mean size, so most weights are "
            "equal and re-weighting does little more than scale the step. Raise tau."
        )
