"""Configuration files: YAML or JSON whose settings become options of a command line, none of them dropped."""

import json
from argparse import Action
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rgd_hf.scripts.errors import UserError

NAMES_AND_VALUES = ("reweighting_args", "optim_args")
"""Options with one value that are written as `name=value,name=value`; other mappings are JSON."""

SUFFIXES = (".yaml", ".yml", ".json")


class UniqueKeys(yaml.SafeLoader):
    """Stops where a mapping names a key twice; YAML would let the last one win."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = [key.value for key, _ in node.value]
        twice = [key for key, _ in node.value if names.count(key.value) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[-1].value!r} is given twice", twice[-1].start_mark
            )
        return node


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{twice[-1]!r} is given twice")
    return dict(pairs)


def read_settings(filename: str) -> dict[str, Any]:
    """The settings of a YAML or JSON file, by name.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    path = Path(filename)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{filename!r} is neither an option (--name value) nor a {' / '.join(SUFFIXES)} file."
        )
    if not path.is_file():
        raise UserError(f"there is no configuration file {filename!r} (looked in {Path.cwd()}).")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            settings = json.loads(text, object_pairs_hook=_unique)
        else:
            settings = yaml.load(text, UniqueKeys)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{filename}: not valid YAML or JSON: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{filename}: expected lines `name: value`, found {type(settings).__name__}.")
    return settings


def as_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Settings as a command line: a list becomes several values, a dict becomes JSON, None is omitted."""
    arguments = []
    for name, value in settings.items():
        if isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)]
        elif value is not None:
            arguments.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return arguments


def as_typed(value: Any, option: Action) -> Any:
    """A value of a file as one would type it on the command line.

    Args:
        value: as YAML reads it, which takes `no` for False.
        option: the argparse action that the value is for.

    Returns:
        `"no"` or `"off"` for False where it is one of the choices; for an option with one value a list joined by commas;
        for one of `NAMES_AND_VALUES` a mapping as `name=value,name=value`.
    """
    if isinstance(value, bool) and option.choices is not None:
        words = ("yes", "on", "true") if value else ("no", "off", "false")
        return next((word for word in words if word in option.choices), value)
    if isinstance(value, dict) and option.dest in NAMES_AND_VALUES:
        value = [f"{name}={item}" for name, item in value.items()]
    if isinstance(value, list) and option.nargs is None:
        return ",".join(map(str, value))
    return value
