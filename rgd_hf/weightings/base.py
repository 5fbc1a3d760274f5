"""The interface of a weighting: the weights of a micro-batch's items, its state, its settings and its description.

This module needs torch alone.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rgd_hf.items import Items

Scalar = bool | int | float | str | None


class WeightsError(ValueError):
    """A weighting returned weights that cannot be trained with; the message names it, and in training the step."""


class Weighting:
    """A rule that weights the items of a step by their losses: derive from it, as a dataclass of its settings.

    Only `weights` has to be implemented. A rule with a state also implements `initial_state`, `sums` and `update`; the
    Trainer calls them, saves the state with its checkpoints and restores it.

    Attributes:
        name: value of `reweighting` that selects the rule, once it is listed in `WEIGHTINGS`; empty for a custom rule.
        title: name of the method in tables and cards; by default the name of the class.
        short: a word or two for the method in the plots and tables of a study.
        citation: BibTeX of the source, or None.
        options: maps a setting to the field of `ReweightingArguments` that holds it. Settings without a field are given
            in `reweighting_args`.
        columns: columns of the batch that the rule reads besides losses: kept by the Trainer, not shown to the model.
        compares_items: whether an item's weight depends on the losses of the others of its micro-batch.
        is_plain: whether all weights are 1, plain training (ERM).
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    short: ClassVar[str] = ""
    citation: ClassVar[str | None] = None
    options: ClassVar[Mapping[str, str]] = {}
    columns: tuple[str, ...] = ()
    compares_items: bool = False
    is_plain: ClassVar[bool] = False

    # --- weights ----------------------------------------------------------------------------------------------------

    def weights(self, items: Items) -> Tensor:
        """Weight of each item in the step's objective `sum(weight * reference * loss) / sum(reference)`.

        Called without gradients, on the device, once per micro-batch: it must not wait for the device.

        Args:
            items: the items of one micro-batch on one process.

        Returns:
            Non-negative float32 weights of the shape of `items.losses`, without the reference weights.
        """
        raise NotImplementedError

    def plain_weights(self, items: Items) -> Tensor:
        """Weights in the steps that `reweighting_warmup_ratio` and `reweighting_stop_ratio` exclude: all 1."""
        return torch.ones_like(items.losses, dtype=torch.float32)

    def clips_above(self) -> float | Tensor:
        """The clipping threshold, for `clipped_fraction`: losses above it get the same weight; infinite for none."""
        return math.inf

    def bounds(self) -> tuple[float, float] | None:
        """Smallest and largest weight that losses >= 0 can have; None where they are not bounded."""
        return None

    def column_checks(self) -> Mapping[str, Callable[[Tensor], None]]:
        """Checks of the values of `columns`, by column: functions that can be pickled.

        The Trainer calls them where it puts a training batch together, on the CPU, with the values `[batch, ...]`. They raise
        `ValueError` where the values are not allowed.
        """
        return {}

    # --- state over the steps ---------------------------------------------------------------------------------------

    def initial_state(self) -> dict[str, Tensor]:
        """The state at the first step: float32 tensors by name."""
        return {}

    @property
    def state(self) -> dict[str, Tensor]:
        """The current state: tensors by name, which `update` replaces."""
        if "_state" not in self.__dict__:
            self.reset()
        return self.__dict__["_state"]

    def reset(self, device: torch.device | str = "cpu") -> None:
        """Reset the state to its initial value on `device`; called when a training begins."""
        self.__dict__["_state"] = {name: value.to(device) for name, value in self.initial_state().items()}

    def counts(self, items: Items) -> Tensor | None:
        """Counts over one micro-batch that the rule needs for the whole step before its first weights, or None.

        The Trainer sums them over the micro-batches and processes of the step and passes them to `begin_step`: before the
        first forward pass; of a step of one micro-batch on one process, before its weights. Where it turns out that the
        losses of a divided step are of other items than were counted, training is refused.

        Args:
            items: the items of one micro-batch; their losses may not be known yet and all 0.
        """
        return None

    def begin_step(self, counts: Tensor) -> None:
        """Receive `counts`, summed over the whole step, before its first weights are asked for."""

    def sums(self, items: Items) -> Tensor | None:
        """Sums over one micro-batch for `update`, which receives their total over micro-batches and processes.

        None for a rule without a state. Called without gradients, after `weights`.
        """
        return None

    def update(self, sums: Tensor) -> None:
        """Replace tensors of `state` after a step; the next step is weighted with them.

        All micro-batches of a step see the same state, so that a step does not depend on how it is cut.

        Args:
            sums: the results of `sums`, added up over the whole step.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """The state, to be saved."""
        return dict(self.state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a saved state, on the device of the current one.

        Raises:
            ValueError: the names or shapes of its tensors are not those of this rule.
        """
        own = self.state
        shapes = {name: list(value.shape) for name, value in own.items()}
        found = {name: list(value.shape) for name, value in state.items()}
        if shapes != found:
            raise ValueError(
                f"The state of {self.method_name()} has {shapes}, but what was saved has {found}."
            )
        self.__dict__["_state"] = {name: state[name].to(value) for name, value in own.items()}

    # --- settings and words -----------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Name and settings for JSON: the fields of the dataclass that are numbers or strings."""
        return {"name": self.name or qualified_name(type(self)), **self.settings()}

    def settings(self) -> dict[str, Scalar]:
        """The settings by name."""
        named = [field.name for field in fields(self)] if is_dataclass(self) else list(vars(self))
        values = {name: getattr(self, name) for name in named if not name.startswith("_")}
        return {k: v for k, v in values.items() if v is None or isinstance(v, bool | int | float | str)}

    def logs(self) -> dict[str, float]:
        """Numbers for the training logs, in addition to the statistics of the weights; may wait for the device."""
        return {}

    def method_name(self, *details: str) -> str:
        """A short name for tables: `"RGD (kl, tau=1)"`.

        Args:
            details: further entries in the parentheses.
        """
        shown = ", ".join([*self.details(), *details])
        title = self.title or type(self).__name__
        return f"{title} ({shown})" if shown else title

    def details(self) -> list[str]:
        """The settings, in short, for `method_name`."""
        return [f"{name}={_short(value)}" for name, value in self.settings().items()]

    def formula(self) -> str | None:
        """The weight as a Python expression of `loss`, with `exp`, `log`, `min` and `max`; None where there is none."""
        return None

    @property
    def name_in_errors(self) -> str:
        """The rule as the subject of error messages about wrong weights."""
        return f"The rule {self.method_name()}"

    def describe(self, item: str) -> str:
        """A sentence or two for the model card: what was done in training.

        Args:
            item: what is weighted, `"sample"` or `"token"`.
        """
        title = self.title or f"rule `{type(self).__name__}`"
        settings = ", ".join(f"{name} = {_short(value)}" for name, value in self.settings().items())
        formula = self.formula()
        by = f" by `{formula}` of its own, detached loss" if formula else ""
        # A dataclass without a docstring has its signature for one.
        text = inspect.cleandoc(type(self).__doc__ or "").split("\n\n")[0]
        said = "" if text.startswith(f"{type(self).__name__}(") else " ".join(text.split())
        prose = f"Trained with the {title}{f' ({settings})' if settings else ''}: in each optimization step, the gradient"
        return f"{prose} of every {item} was weighted{by}. {said}".strip()

    def citations(self) -> list[str]:
        """BibTeX of the sources."""
        return [self.citation] if self.citation else []

    def advice(self, statistics: Mapping[str, float]) -> str | None:
        """A warning to show once, given the statistics of a log; None if there is nothing to warn about."""
        return None


def qualified_name(thing: Any) -> str:
    """Where a class or function comes from: `"module.name"`."""
    name = getattr(thing, "__qualname__", type(thing).__qualname__)
    return f"{getattr(thing, '__module__', type(thing).__module__)}.{name}"


def checked_weights(weights: Any, losses: Tensor, name: Callable[[], str]) -> Tensor:
    """`weights`, detached and float32; none of this waits for the device.

    Args:
        weights: the return value of a rule.
        losses: the losses that the rule was given.
        name: gives the name of the rule in error messages.

    Raises:
        WeightsError: `weights` is not a tensor, or does not have the shape of the losses.
    """
    if not isinstance(weights, Tensor):
        raise WeightsError(f"{name()} returned {type(weights).__name__} instead of a tensor of weights")
    if weights.shape != losses.shape:
        raise WeightsError(
            f"{name()} returned weights of shape {list(weights.shape)} for losses of shape {list(losses.shape)}: "
            "it must return one weight per loss"
        )
    if weights.is_complex():
        raise WeightsError(f"{name()} returned complex weights, {weights.dtype}")
    return weights.detach().float()


def check_positive(name: str, value: Any, at_most: float = math.inf) -> None:
    """Raise `ValueError` unless `value` is a finite number above 0 and not above `at_most`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 < value <= at_most:
        limit = "a positive, finite number" if math.isinf(at_most) else f"above 0 and at most {at_most:g}"
        raise ValueError(f"{name} must be {limit}, not {value!r}.")


def check_losses(losses: Tensor) -> None:
    """Raise unless `losses` is a floating-point tensor with at least one dimension.

    Raises:
        TypeError: `losses` is not a tensor.
        ValueError: it is 0-dimensional, that is, already reduced, or not of a floating-point type.
    """
    if not isinstance(losses, Tensor):
        raise TypeError(f"Losses must be a torch.Tensor, not {type(losses).__name__}.")
    if losses.dim() == 0:
        raise ValueError(
            "Got a 0-dimensional loss, that is, one already reduced over the batch. Weighting it would only rescale "
            "the step: pass the unreduced losses, one element per sample or token (`reduction='none'` in torch)."
        )
    if not losses.is_floating_point():
        raise ValueError(f"Losses must be of a floating-point type, not {losses.dtype}.")


def _short(value: Scalar) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
