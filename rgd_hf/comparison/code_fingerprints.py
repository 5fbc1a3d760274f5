"""Fingerprints of Python code: what a user's functions and objects do, and the values that they do it with."""

import argparse
import dis
import functools
import hashlib
import inspect
import itertools
import math
import sys
import sysconfig
import types
from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Trainer

from rgd_hf.weightings.base import Weighting
from rgd_hf.weightings.function import Function

CHANGES = "changes in training"
"""In the place of a value that training changes, such as a counter: it may be any."""

_LIBRARIES = {"rgd_hf", "builtins", *sys.stdlib_module_names}
_LIBRARY_FOLDERS = (sysconfig.get_path("stdlib"), str(Path(__file__).parents[1]))

_NAMESPACES = (types.ModuleType, types.SimpleNamespace, argparse.Namespace)
_GENERATED = {
    "__init__", "__repr__", "__eq__", "__hash__", "__lt__", "__le__", "__gt__", "__ge__", "__setattr__", "__delattr__",
}  # fmt: skip
"""Methods that `dataclasses` writes."""
_WORDS_OF_RULES = {"name", "title", "short", "citation", "options"}
# They say where results go, not what is trained.
_NOT_OF_TRAINING = {"log", "save_model", "save_state", "push_to_hub", "create_model_card"}

# What is longer is data, which is known by its number of rows.
_LONGEST = 100
_DEEPEST = 8
_MOST_ELEMENTS = 10_000

_NOT_PLAIN = object()

_READ = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_GLOBALS", "LOAD_FROM_DICT_OR_DEREF")  # fmt: skip


def fingerprint(given: Any) -> dict[str, Any] | None:
    """What a function, a bound method, a `functools.partial`, a callable object, a rule or a class does.

    It is the same in every process, wherever the code stands. Followed are the methods of all classes that an object derives
    from, and what they and functions read from outside: attributes, defaults, closures, global variables, other functions.
    The code of libraries is not followed.

    Args:
        given: a user's, or None.

    Returns:
        `name`; `python <version>`, a hash of the bytecode, which is that of one version; and `values`: numbers, texts and
        summaries of tensors by the names that lead to them, but those of a rule that `public_settings` has. Of several
        values of one name, such as a default and the keyword of a `functools.partial` over it, the later ones are
        `name (2)` and so on. None where nothing is the user's own.
    """
    given = given.function if isinstance(given, Function) else given
    if given is None:
        return None
    walk = _Walk()
    walk.follow("", given)
    if isinstance(given, Weighting | type) and not (walk.codes or walk.values):
        return None
    while isinstance(given, functools.partial):
        given = given.func
    name = getattr(given, "__name__", type(given).__name__)
    return {"name": name, **(_fingerprint(walk.codes) if walk.codes else {}), "values": walk.values}


def public_settings(rule: Weighting) -> dict[str, Any] | None:
    """The settings of a rule, those too that are no single numbers or texts, which the arguments lack."""
    found = {name: value for name, value in vars(rule).items() if _is_public_setting(name, value)}
    return found or None


def _is_public_setting(name: str, value: Any) -> bool:
    return not name.startswith("_") and not callable(value)


def changed_values(before: Any, after: Any) -> set[str]:
    """The names of the values that differ between two fingerprints of one object."""
    ours, theirs = ((each or {}).get("values", {}) for each in (before, after))
    return {
        name
        for name in {*ours, *theirs}
        if name not in ours or name not in theirs or not same_values(ours[name], theirs[name])
    }


def same_values(one: Any, other: Any) -> bool:
    """Whether two values of fingerprints are equal, but for rounding."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_values, one, other))
    if isinstance(one, float) and isinstance(other, float):
        # Means of data differ in the last bits between machines.
        return bool(np.isclose(one, other, rtol=1e-6, atol=1e-9, equal_nan=True))
    return bool(one == other)


class _Walk:
    """Collects codes and values from an object on; it follows every object once.

    Attributes:
        codes: of functions, as `_normalized_bytecode` gives them.
        values: by the names that lead to them, joined by dots; the second of one name is `name (2)`.
    """

    def __init__(self) -> None:
        self.codes: list[Any] = []
        self.values: dict[str, Any] = {}
        # The objects themselves, so that none made later has the identity of one that is gone.
        self._seen: dict[int, Any] = {}

    def follow(self, path: str, value: Any) -> None:
        """Take in what the names in `path` lead to."""
        plain = _plain(value)
        if plain is not _NOT_PLAIN:
            self._record(path, plain)
            return
        if isinstance(value, types.ModuleType) or id(value) in self._seen or path.count(".") > _DEEPEST:
            return
        self._seen[id(value)] = value
        if isinstance(value, functools.partial):
            self._all(path, {**dict(enumerate(value.args)), **value.keywords})
            self.follow(path, value.func)
        elif isinstance(value, types.MethodType):
            self.follow(path, value.__func__)
            self.follow(path, value.__self__)
        elif isinstance(value, types.FunctionType):
            self._function(path, value)
        elif isinstance(value, type):
            self._class(path, value)
        elif isinstance(value, Function):
            self.follow(path, value.function)
        elif isinstance(value, dict | list | tuple):
            self._all(path, value if isinstance(value, dict) else dict(enumerate(value)))
        elif isinstance(value, Weighting | nn.Module) or not _is_of_a_library(type(value)):
            self._class(path, type(value))
            self._all(path, _attributes(value, is_the_rule=not path))
        elif hasattr(value, "__wrapped__"):  # of functools.cache
            self.follow(path, value.__wrapped__)
        else:
            self._record(path, _in_words(value))

    def _record(self, path: str, value: Any) -> None:
        """Add a value beside those that have its name: which of them counts only the code knows."""
        name, number = path, 1
        while name in self.values:
            number += 1
            name = f"{path} ({number})"
        self.values[name] = value

    def _all(self, path: str, values: Mapping[Any, Any]) -> None:
        for number, (name, value) in enumerate(values.items()):
            word = _key(name, number)
            self.follow(f"{path}.{word}" if path else word, value)

    def _function(self, path: str, function: types.FunctionType) -> None:
        code, is_of_a_library = function.__code__, _is_of_a_library(function)
        if not is_of_a_library:
            self.codes.append(_normalized_bytecode(code, function.__doc__))
        elif path:
            self._record(path, _in_words(function))
        defaults = function.__defaults__ or ()
        named = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
        self._all(path, {**dict(zip(named, defaults)), **(function.__kwdefaults__ or {})})
        closure = {
            name: cell.cell_contents
            for name, cell in zip(code.co_freevars, function.__closure__ or ())
            if _is_filled(cell)
        }
        outside = ChainMap(closure, {} if is_of_a_library else function.__globals__)
        for name, attributes in _reads(code).items():
            if name in outside and not name.startswith("__"):
                self._variable(f"{path}.{name}" if path else name, outside[name], attributes)

    def _variable(self, path: str, value: Any, attributes: set[str] | None) -> None:
        """Follow a variable: as a whole, or only the attributes that are read of it (None: it is also read as a whole)."""
        if isinstance(value, types.ModuleType) and _is_of_a_library(value):
            return
        is_of_parts = isinstance(value, _NAMESPACES) or not (
            isinstance(value, type) or _is_of_a_library(type(value))
        )
        if attributes is None or not is_of_parts:
            self.follow(path, value)
            return
        known = getattr(value, "__dict__", {})
        for name in sorted(attributes):
            if name in known:
                self.follow(f"{path}.{name}", known[name])
            else:  # a method or property, which may read any of its attributes
                self.follow(path, value)

    def _class(self, path: str, cls: type) -> None:
        if path and _is_of_a_library(cls):
            self._record(path, _in_words(cls))
        for each in cls.__mro__:
            if not _is_of_a_library(each):
                for name, member in _members(each):
                    self.follow(f"{path}.{name}" if path else name, member)


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    """Functions and attributes that a user wrote into the body of a class, by their names."""
    left_out = (_WORDS_OF_RULES if issubclass(cls, Weighting) else set()) | (
        _NOT_OF_TRAINING if issubclass(cls, Trainer) else set()
    )
    for name, member in vars(cls).items():
        if name in left_out:
            continue
        parts = [member]
        if isinstance(member, property):
            parts = [part for part in (member.fget, member.fset, member.fdel) if part is not None]
        elif isinstance(member, staticmethod | classmethod):
            parts = [member.__func__]
        elif isinstance(member, functools.cached_property):
            parts = [member.func]
        for part in parts:
            if isinstance(part, types.FunctionType):
                # A library's decorator has the user's function within it.
                inner = inspect.unwrap(part)
                source = getattr(inner, "__code__", part.__code__).co_filename
                is_of_a_dataclass = name in _GENERATED and "__dataclass_fields__" in vars(cls)
                # Such as those that every NamedTuple has.
                is_of_a_library = name.startswith("_") and inner is part and _is_of_a_library(part)
                if not is_of_a_library and not (is_of_a_dataclass and source == "<string>"):
                    yield name, part
            elif not name.startswith(("__", "_abc_")):
                yield name, part


def _attributes(thing: Any, is_the_rule: bool) -> dict[str, Any]:
    """The attributes of an object that decide what it does."""
    # The weights and the configuration of a model are no settings of a function.
    is_a_module = isinstance(thing, nn.Module)
    if isinstance(thing, Trainer) or (is_a_module and next(thing.parameters(), None) is not None):
        return {}
    slots = [name for cls in type(thing).__mro__ for name in _names(vars(cls).get("__slots__", ()))]
    found = {name: getattr(thing, name) for name in slots if name != "__dict__" and hasattr(thing, name)}
    found |= getattr(thing, "__dict__", {})
    if isinstance(thing, Weighting):
        is_own = not _is_of_a_library(type(thing))
        found = {
            name: value
            for name, value in found.items()
            if not (name == "_state" or (name.startswith("_") and not is_own))
            and not (is_the_rule and _is_public_setting(name, value) and is_scalar(value))
        }
    if is_a_module:
        of_all_modules = vars(nn.Module())
        found = {name: value for name, value in found.items() if name not in of_all_modules}
        found |= dict(thing.named_buffers(recurse=False)) | dict(thing.named_children())
    return found


def is_scalar(value: Any) -> bool:
    """Whether `value` is None, a truth value, a number or a text."""
    return value is None or isinstance(value, bool | int | float | str)


def _plain(value: Any, depth: int = 0) -> Any:
    """Numbers, texts and tensors, and what holds nothing else, for JSON; `_NOT_PLAIN` for all else."""
    value = value.item() if isinstance(value, np.generic) else value
    if is_scalar(value):
        return value
    if isinstance(value, torch.Tensor | np.ndarray):
        return _summary(value)
    if not isinstance(value, dict | list | tuple | set | frozenset) or depth > _DEEPEST:
        return _NOT_PLAIN
    if len(value) > _LONGEST:
        return _in_words(type(value))
    if isinstance(value, set | frozenset):  # in the order of hashes, which differ between processes
        return sorted(map(_in_words, value))
    items = [_plain(each, depth + 1) for each in (value.values() if isinstance(value, dict) else value)]
    if any(item is _NOT_PLAIN for item in items):
        return _NOT_PLAIN
    return [[_key(key, i), items[i]] for i, key in enumerate(value)] if isinstance(value, dict) else items


def _key(name: Any, number: int) -> str:
    # The words of other keys may have their place in memory in them.
    return str(name if is_scalar(name) else number)


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _is_of_a_library(thing: Any) -> bool:
    """Whether a function, a class or a module is not the user's."""
    if isinstance(thing, types.FunctionType):
        file = thing.__code__.co_filename
    else:
        name = str(thing.__name__ if isinstance(thing, types.ModuleType) else thing.__module__)
        if name.split(".")[0] in _LIBRARIES:
            return True
        file = getattr(sys.modules.get(name), "__file__", None) or ""
    return "-packages" in file or file.startswith(_LIBRARY_FOLDERS)


def _in_words(thing: Any) -> str:
    """What a thing of a library is called, without where it lies in memory."""
    if isinstance(thing, bool | int | float | str | torch.dtype):
        return repr(thing)
    return str(getattr(thing, "__qualname__", type(thing).__qualname__))


def _summary(values: torch.Tensor | np.ndarray) -> Any:
    """Data type, shape and two sums, by which tensors can be told apart; their class where the elements are out of reach."""
    given = values
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "biuf":
            return type(values).__name__
        values = torch.from_numpy(_some(values).astype(np.float64))
    # Sharded, quantized or not yet loaded ones have no elements to read.
    if type(values) not in (torch.Tensor, nn.Parameter) or values.is_meta or values.layout != torch.strided:
        return type(values).__name__
    if values.is_complex() or values.is_quantized:
        return type(values).__name__
    row = _some(values.detach()).cpu().double().nan_to_num(nan=0.5, posinf=1e9, neginf=-1e9)
    places = torch.arange(1, len(row) + 1, dtype=row.dtype)
    return [str(given.dtype), *given.shape, float(row.sum()), float(row @ places)]


def _some(values: Any) -> Any:
    """All elements of a small tensor or array; of a larger one, which may lie in a file, at most as many, evenly spaced."""
    size = math.prod(values.shape)
    if size <= _MOST_ELEMENTS:
        return values.reshape(-1)
    # A distance with a factor of a row's length would pass some columns by.
    distance = next(each for each in itertools.count(-(-size // _MOST_ELEMENTS)) if math.gcd(each, size) == 1)
    return values[np.unravel_index(np.arange(0, size, distance), values.shape)]


def _reads(code: types.CodeType) -> dict[str, set[str] | None]:
    """Variables from outside that a function reads and does not write, and the attributes that it reads of them.

    What it counts up by itself does not tell functions apart. None stands for the whole variable.
    """
    found: dict[str, set[str] | None] = {}
    own: set[str] = set()
    for each in _with_nested(code):
        own.update(each.co_cellvars)
        steps = [*dis.get_instructions(each)]
        for step, following in zip(steps, [*steps[1:], None]):
            if step.opname in ("STORE_GLOBAL", "STORE_DEREF"):
                own.add(step.argval)
            elif step.opname in _READ:
                before = found.setdefault(step.argval, set())
                if following is None or following.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                    found[step.argval] = None
                elif before is not None:
                    before.add(following.argval)
    return {name: found[name] for name in sorted(found) if name not in own}


def _with_nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _with_nested(constant)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _fingerprint(codes: Any) -> dict[str, str]:
    """A short number of what `_normalized_bytecode` gives, for the Python that it is of: bytecode is that of one version."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {f"python {version}": hashlib.sha256(repr(codes).encode()).hexdigest()[:16]}


def _normalized_bytecode(code: types.CodeType, doc: str | None = None) -> list[Any]:
    """Of a code object what it does: neither where it stands nor its docstring."""
    constants = [_constant(None if doc is not None and each == doc else each) for each in code.co_consts]
    return [code.co_code.hex(), constants, code.co_names, code.co_varnames[: code.co_argcount]]


def _constant(value: Any) -> Any:
    if isinstance(value, types.CodeType):
        return _normalized_bytecode(value)
    if isinstance(value, frozenset):
        return sorted(map(repr, value))
    return [_constant(each) for each in value] if isinstance(value, tuple) else repr(value)
