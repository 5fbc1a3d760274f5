"""Weights by a user's function: the shortest way from an idea to a correct run.

This module needs torch alone.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rgd_hf.items import Items
from rgd_hf.weightings.base import Scalar, Weighting, checked_weights, qualified_name

WeightFunction = Callable[..., Tensor]
"""`losses -> weights` or `(losses, reference) -> weights`, all float32 `[items]`."""

_PROBED = 8
_SAME = 0.01
"""Losses that differ by less, relative to the largest, do not tell whether a function compares them."""


class Function(Weighting):
    """Weights by a function of the losses of one micro-batch on one process, flattened to one row of samples or tokens.

    Args:
        function: `losses -> weights`, from float32 losses `[items]` to non-negative, finite weights `[items]`, detached or
            not. Items that do not count are removed before the call, or have a loss of 0 and their weights are ignored (see
            the note). Or `(losses, reference) -> weights`, which receives all items: `reference`, float32 `[items]`, is the
            weight of each item in the data. It is 0 for items that do not count, whose losses are 0 and whose weights are
            ignored.

    Raises:
        TypeError: `function` is not callable.
        WeightsError: in training, it did not return one weight per item.

    Note:
        A function of the losses alone is tried on the first batch whose losses differ. Up to then, and from then on if an
        item's weight depends on the other items, those that do not count (padding, labels of -100, a `sample_weight` of 0) are
        removed before every call, for which the host waits for the device; a function that also takes the reference handles
        them itself, without waiting.
    """

    def __init__(self, function: WeightFunction):
        if not callable(function):
            raise TypeError(
                "reweighting is the name of a rule, an object of rgd_hf.weightings, or a function of losses [items] to "
                f"weights [items], not {function!r}."
            )
        self.function = function
        self.takes_reference = _positional_parameters(function) > 1
        self._by_own_loss: bool | None = None

    @property
    def function_name(self) -> str:
        """Where the function comes from: `"module.name"`."""
        return qualified_name(_innermost(self.function))

    @property
    def name_in_errors(self) -> str:
        """The function as the subject of error messages about wrong weights."""
        return f"The weighting function {self.function_name}"

    def weights(self, items: Items) -> Tensor:
        """The function's weights; 1 for items that do not count."""
        losses, reference = items.losses.detach().float().flatten(), items.reference.flatten()
        if self.takes_reference:
            return self._call(losses, reference).view(items.losses.shape)
        if self._by_own_loss is None:
            self._by_own_loss = self._depends_on_own_loss_alone(losses[reference > 0])
        if self._by_own_loss:
            return self._call(losses).view(items.losses.shape)
        counted = (reference > 0).nonzero().squeeze(1)
        weights = torch.ones_like(losses)
        if len(counted):
            weights[counted] = self._call(losses[counted])
        return weights.view(items.losses.shape)

    def _call(self, losses: Tensor, *reference: Tensor) -> Tensor:
        return checked_weights(self.function(losses, *reference), losses, lambda: self.name_in_errors)

    def _depends_on_own_loss_alone(self, losses: Tensor) -> bool | None:
        """Whether items get the same weights alone as together with others; None where that cannot be decided."""
        if len(losses) < 2:
            return None
        smallest, largest = torch.stack(losses.aminmax()).tolist()
        # Of equal losses (log(classes) at the start of a classifier of zeros) a comparison with one another and one with the
        # loss itself may give the same weights.
        if not largest - smallest > _SAME * max(abs(smallest), abs(largest)):
            return None
        together = self._call(losses)
        order = losses.argsort()
        chosen = order[torch.linspace(0, len(order) - 1, min(_PROBED, len(order))).long()]
        try:
            alone = torch.cat([self._call(losses[i : i + 1]) for i in chosen.tolist()])
        except Exception:
            return False  # it needs several items
        return torch.allclose(alone, together[chosen], rtol=1e-4, atol=1e-6, equal_nan=True)

    def get_config(self) -> dict[str, Any]:
        """The function's name, and the settings of a `functools.partial`."""
        return {"name": self.function_name, **self.settings()}

    def settings(self) -> dict[str, Scalar]:
        """Those of a `functools.partial` that are numbers or strings."""
        given = self.function.keywords if isinstance(self.function, functools.partial) else {}
        return {k: v for k, v in given.items() if v is None or isinstance(v, bool | int | float | str)}

    def method_name(self, *details: str) -> str:
        """The function's name, without its module."""
        shown = ", ".join([*self.details(), *details])
        name = self.function_name.rsplit(".", 1)[-1]
        return f"{name} ({shown})" if shown else name

    def describe(self, item: str) -> str:
        """The function's name and the first paragraph of its docstring."""
        function = _innermost(self.function)
        text = inspect.getdoc(function) if inspect.isroutine(function) else None
        said = " ".join((text or "").split("\n\n")[0].split())
        settings = ", ".join(f"{name} = {value}" for name, value in self.settings().items())
        prose = (
            f"Trained with weights by a function of the author's own, `{self.function_name}`{f' ({settings})' if settings else ''}: "
            f"in each optimization step, it was given the losses of the {item}s of a micro-batch, and the gradient of every "
            f"{item} was weighted by what it returned."
        )
        return f"{prose} {said}".strip()


def _innermost(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _positional_parameters(function: Any) -> int:
    """The number of required positional arguments of `function`."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1  # of torch's own, which tell nothing
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)
