"""What users override around a mixin: in classes before and after it, and on the Trainer object itself.

Before and after as in the method resolution order.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from types import CodeType
from typing import Any, NamedTuple

from transformers import Trainer

_VERIFIED = {
    # The mean of the tokens' losses, which the head of causal language modelling gives unreduced (its other losses,
    # `loss_type`, are refused); it also logs entropy, token accuracy and number of tokens, which ours does not.
    ("trl.trainer.sft_trainer", "SFTTrainer.compute_loss"),
    # Move activations to the CPU around the Trainer's own step.
    ("trl.trainer.dpo_trainer", "DPOTrainer.training_step"),
    ("trl.trainer.kto_trainer", "KTOTrainer.training_step"),
    ("trl.trainer.reward_trainer", "RewardTrainer.training_step"),
    ("trl.trainer.sft_trainer", "SFTTrainer.training_step"),
}
"""Methods of classes derived from the Trainer, by module and name, that re-weighted training replaces or wraps without a
loss; as all methods of the Trainer itself."""


def check_class(cls: type, mixin: type) -> None:
    """Raise `TypeError` if methods of `mixin` would never be called, or others in their place."""
    _check_order(cls, mixin)
    _check_private_names(cls)


def _check_order(cls: type, mixin: type) -> None:
    order = cls.__mro__
    if Trainer in order and order.index(Trainer) < order.index(mixin):
        bases = [base.__name__ for base in cls.__bases__]
        first = [base.__name__ for base in cls.__bases__ if issubclass(base, mixin)] or [mixin.__name__]
        ordered = ", ".join([*first, *(name for name in bases if name not in first)])
        raise TypeError(
            f"class {cls.__name__}({', '.join(bases)}): {mixin.__name__} must be listed before the Trainer class that it "
            f"changes, or none of its methods is ever called. Write class {cls.__name__}({ordered})."
        )


def _check_private_names(cls: type) -> None:
    """Raise if another class has a private name of a mixin: the one that comes first would be used by both."""
    ours = {
        name: owner
        for owner in cls.__mro__
        if owner.__module__.startswith("rgd_hf.")
        for name in vars(owner)
        if re.match("_[^_]", name) and not hasattr(Trainer, name)
    }
    for other in cls.__mro__:
        if other.__module__.startswith("rgd_hf.") or issubclass(Trainer, other):
            continue
        names = sorted(vars(other).keys() & ours.keys())
        if names:
            raise TypeError(
                f"{other.__name__} has private names of {ours[names[0]].__name__}, so that the code of one would use those of "
                f"the other: {', '.join(names)}. Rename them in {other.__name__}."
            )


class Override(NamedTuple):
    """A method that is neither of this package nor verified.

    Attributes:
        name: with its class, or with `trainer` where it was set on the object.
        function: the method, not bound if of a class.
    """

    name: str
    function: Any


def overrides_before(trainer: Any, mixin: type, method: str) -> tuple[Override, ...]:
    """The overrides of `method` that are called before that of `mixin`, outermost first."""
    cls: type = type(trainer)
    of_classes, _ = _overrides(cls, mixin, method)
    function = vars(trainer).get(method)
    while function is not None and _is_ours(function):
        function = getattr(function, "__wrapped__", None)
    return of_classes if function is None else (Override(f"trainer.{method}", function), *of_classes)


def override_after(trainer: Any, mixin: type, method: str) -> Override | None:
    """The first override of `method` after `mixin`; None without one."""
    cls: type = type(trainer)
    _, of_classes = _overrides(cls, mixin, method)
    return of_classes[0] if of_classes else None


def all_overrides(trainer: Any, mixin: type, method: str) -> list[Override]:
    """The overrides of `method` before `mixin`, and the first one after it, in the order in which they are called."""
    after = override_after(trainer, mixin, method)
    return [*overrides_before(trainer, mixin, method), *([after] if after else [])]


# Asked for many times in every step.
@lru_cache(maxsize=1000)
def _overrides(trainer: type, mixin: type, method: str) -> tuple[tuple[Override, ...], tuple[Override, ...]]:
    """The overrides in classes before `mixin`, and those after it."""
    order = trainer.__mro__
    at = order.index(mixin)
    return _defined(order[:at], method), _defined(order[at + 1 :], method)


def _defined(classes: tuple[type, ...], method: str) -> tuple[Override, ...]:
    found = ((cls, cls.__dict__[method]) for cls in classes if method in cls.__dict__)
    return tuple(
        Override(f"{cls.__name__}.{method}", function)
        for cls, function in found
        if cls is not Trainer and not _is_ours(function) and _home(function) not in _VERIFIED
    )


def _is_ours(function: Any) -> bool:
    return _home(function)[0].startswith("rgd_hf.")


def _home(function: Any) -> tuple[str, str]:
    """Module and name; the module of the code itself, as `functools.wraps` copies `__module__`."""
    module = getattr(function, "__globals__", {}).get("__name__", "")
    return module, getattr(function, "__qualname__", "")


@contextmanager
def set_on(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Set a function on an object for a while, in place of the method or function that it has."""
    before = vars(owner).get(name)
    if before is not None:
        function.__wrapped__ = before  # type: ignore[attr-defined]
    vars(owner)[name] = function
    try:
        yield
    finally:
        vars(owner).pop(name, None)
        if before is not None:
            vars(owner)[name] = before


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
    """Which of `names` a class after `mixin` takes in its `__init__` by that very name, and the class."""
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


def argument(cls: type, mixin: type, name: str, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    """An argument, by keyword or position, of the first `__init__` after `mixin` that is not this package's; or None."""
    if name in keywords:
        return keywords[name]
    order = cls.__mro__
    for other in order[order.index(mixin) + 1 :]:
        if "__init__" in other.__dict__ and not other.__module__.startswith("rgd_hf."):
            names = [*_parameters(other.__dict__["__init__"])][1:]
            return dict(zip(names, args)).get(name)
    return None


def _parameters(init: Callable[..., None]) -> Iterable[str]:
    try:
        return inspect.signature(init).parameters
    except (TypeError, ValueError):
        return ()
