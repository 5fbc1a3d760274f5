"""From settings to a weighting and back: given by name, as an object, or as a function.

This module needs torch alone.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from rgd_hf.weightings import WEIGHTINGS, Function, Weighting
from rgd_hf.weightings.base import Scalar

WITH_TARGET_ESS = ("kl", "target_ess", "none")
"""The values of `reweighting` with which `target_ess` may be set; `"none"` ignores it."""


def as_weighting(choice: Weighting | Callable[..., Any]) -> Weighting:
    """`choice` as a `Weighting`: an object is returned unchanged, a function is wrapped in `Function`.

    Raises:
        TypeError: it is neither; for a class, the message asks for an object of it.
    """
    if isinstance(choice, Weighting):
        return choice
    if isinstance(choice, type):
        raise TypeError(
            f"reweighting is the class {choice.__name__}: pass an object of it, {choice.__name__}(...)."
        )
    return Function(choice)


def weighting_of(settings: Any) -> Weighting:
    """A new object of the rule that `settings` name.

    Args:
        settings: anything with the fields of `ReweightingArguments`.

    Raises:
        ValueError: the name is unknown, or a setting is not allowed; the message says what is.
    """
    name = settings.reweighting
    meant = rule_name(name, settings.target_ess)
    if meant not in WEIGHTINGS:
        raise ValueError(_unknown(name))
    if settings.target_ess is not None and name not in WITH_TARGET_ESS:
        raise ValueError(
            f"target_ess sets the temperature of the 'kl' weights and does not apply to {name!r}: set reweighting='kl', or "
            "do not set target_ess."
        )
    return _made(WEIGHTINGS[meant], settings, parsed(settings.reweighting_args))


def rule_name(name: str, target_ess: float | None) -> str:
    """The rule that is meant by `name`: `"target_ess"` where that is set with `"kl"`.

    Raises:
        ValueError: it is no name but an object, class or function, as arguments may have that were set after they were made.
    """
    if not isinstance(name, str):
        shown = repr(name) if isinstance(name, Weighting) else "..."
        raise ValueError(
            "In the arguments, reweighting is the name of a rule. Pass an object or a function to the Trainer instead: "
            f"ReweightedTrainer(..., reweighting={shown})."
        )
    return "target_ess" if name == "kl" and target_ess is not None else name


def check_settings(settings: Any) -> None:
    """Raise `ValueError` where a setting of any rule is not allowed, whichever is chosen, saying what is."""
    for rule in WEIGHTINGS.values():
        if rule.options:
            _made(rule, settings, {})


def settings_of(weighting: Weighting) -> dict[str, Any]:
    """The fields of `ReweightingArguments` from which `weighting_of` builds an equal rule.

    For a custom rule or function they only record its name and settings; the Trainer needs the object itself.
    """
    config = weighting.get_config()
    name = config.pop("name")
    if WEIGHTINGS.get(name, type(weighting)) is not type(weighting):
        raise ValueError(
            f"{type(weighting).__name__} has the name {name!r} of {WEIGHTINGS[name].__name__}: give it another one."
        )
    given = {option: config.pop(key) for key, option in weighting.options.items() if key in config}
    rest = {
        key: value
        for key, value in config.items()
        if value is None or isinstance(value, bool | int | float | str)
    }
    return {"reweighting": name, **given, "reweighting_args": unparsed(rest)}


def option_names() -> set[str]:
    """The fields of `ReweightingArguments` that a rule's settings are read from, `reweighting` among them."""
    return {
        "reweighting",
        "reweighting_args",
        *(o for rule in WEIGHTINGS.values() for o in rule.options.values()),
    }


def by_losses_alone() -> tuple[str, ...]:
    """The names of the rules whose settings all have defaults and that need no extra column; `"none"` comes last."""
    found = [name for name, rule in WEIGHTINGS.items() if all(_has_default(f) for f in fields(rule))]  # type: ignore[arg-type]
    return (*(name for name in found if name != "none"), "none")


def parsed(settings: str | Mapping[str, Scalar] | None) -> dict[str, Scalar]:
    """The settings in `"name=value,name=value"`; numbers, true, false and null are read as such.

    Raises:
        ValueError: a part does not have the form `name=value`.
    """
    if settings is None or isinstance(settings, Mapping):
        return dict(settings or {})
    found: dict[str, Scalar] = {}
    for part in filter(None, (part.strip() for part in settings.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"reweighting_args must look like 'name=value,name=value': {part!r} does not.")
        try:
            found[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            found[name.strip()] = value.strip()
    return found


def unparsed(settings: Mapping[str, Scalar]) -> str | None:
    """The inverse of `parsed`; None for no settings."""
    parts = [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()
    ]
    return ",".join(parts) or None


def _made(rule: type[Weighting], settings: Any, given: Mapping[str, Scalar]) -> Weighting:
    known = {field.name: field for field in fields(rule)}  # type: ignore[arg-type]
    own = [name for name in known if name not in rule.options]
    unknown = sorted(set(given) - set(own))
    if unknown:
        has = f"has {', '.join(own)}" if own else "has none"
        raise ValueError(f"reweighting_args names {', '.join(unknown)}, but {rule.name!r} {has} of its own.")
    # A field without a value leaves the rule's default.
    values = {name: getattr(settings, option) for name, option in rule.options.items()}
    values = {name: value for name, value in values.items() if value is not None} | dict(given)
    missing = [name for name, field in known.items() if name not in values and not _has_default(field)]
    if missing:
        raise ValueError(
            f"reweighting={rule.name!r} needs {', '.join(missing)}: give it in reweighting_args "
            f"({', '.join(f'{name}=...' for name in missing)})."
        )
    return rule(**values)


def _has_default(field: Any) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _unknown(name: str) -> str:
    choices = f"choose one of {', '.join(map(repr, WEIGHTINGS))}"
    if "." in name:
        return (
            f"These arguments come from a run with the custom rule {name}, which cannot be selected by name: pass "
            f"it to the Trainer again, ReweightedTrainer(..., reweighting={name.rsplit('.', 1)[-1]}), or {choices}."
        )
    return f"Unknown reweighting {name!r}: {choices}."
