"""What the classes around a mixin override, read off the method resolution order of the Trainer that is made."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from types import CodeType
from typing import Any

from transformers import Trainer

_VERIFIED = {
    ("transformers.trainer", "Trainer.compute_loss"),
    ("transformers.trainer", "Trainer.training_step"),
    # The mean of the tokens' losses, which the head of causal language modelling gives unreduced (its other losses,
    # `loss_type`, are refused); it also logs entropy, token accuracy and number of tokens, which ours does not.
    ("trl.trainer.sft_trainer", "SFTTrainer.compute_loss"),
    # Moves activations to the CPU around the Trainer's own step.
    ("trl.trainer.sft_trainer", "SFTTrainer.training_step"),
}
"""Methods of Trainer classes, by module and name, that re-weighted training replaces or wraps without a loss."""


def check_order(cls: type, mixin: type) -> None:
    """Raise `TypeError` if a Trainer is listed before `mixin`, whose methods would then never be called."""
    order = cls.__mro__
    if Trainer in order and order.index(Trainer) < order.index(mixin):
        bases = [base.__name__ for base in cls.__bases__]
        first = [base.__name__ for base in cls.__bases__ if issubclass(base, mixin)] or [mixin.__name__]
        ordered = ", ".join([*first, *(name for name in bases if name not in first)])
        raise TypeError(
            f"class {cls.__name__}({', '.join(bases)}): {mixin.__name__} must be listed before the Trainer class that it "
            f"changes, or none of its methods is ever called. Write class {cls.__name__}({ordered})."
        )


def foreign_to_the_right(cls: type, mixin: type, method: str) -> type | None:
    """The first class behind `mixin` with a `method` that is neither of this package nor verified; None without one."""
    order = cls.__mro__
    return next(_foreign(order[order.index(mixin) + 1 :], method), None)


def foreign_to_the_left(cls: type, mixin: type, method: str) -> list[type]:
    """The classes before `mixin` with a `method` that is neither of this package nor verified, outermost first."""
    order = cls.__mro__
    return list(_foreign(order[: order.index(mixin)], method))


def _foreign(classes: Iterable[type], method: str) -> Iterator[type]:
    for cls in classes:
        defined = cls.__dict__.get(method)
        if defined is None:
            continue
        home = (getattr(defined, "__module__", ""), getattr(defined, "__qualname__", ""))
        if home not in _VERIFIED and not str(home[0]).startswith("rgd_hf."):
            yield cls


def may_call(function: Any, name: str) -> bool:
    """Whether the code of `function` mentions `name`, so that it may call the method of its parents."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is None or _mentions(code, name)


def _mentions(code: CodeType, name: str) -> bool:
    return (
        name in code.co_names
        or name in code.co_consts
        or any(isinstance(inner, CodeType) and _mentions(inner, name) for inner in code.co_consts)
    )


def parameters_to_the_right(cls: type, mixin: type, names: Iterable[str]) -> dict[str, type]:
    """Which of `names` a class behind `mixin` takes in its `__init__` by that very name, and the class."""
    wanted = set(names)
    found: dict[str, type] = {}
    order = cls.__mro__
    for other in order[order.index(mixin) + 1 :]:
        init: Callable[..., None] | None = other.__dict__.get("__init__")
        if init is None or other.__module__.startswith("rgd_hf."):
            continue
        for name in wanted & set(_parameters(init)):
            found.setdefault(name, other)
    return found


def _parameters(init: Callable[..., None]) -> Iterable[str]:
    try:
        return inspect.signature(init).parameters
    except (TypeError, ValueError):
        return ()
