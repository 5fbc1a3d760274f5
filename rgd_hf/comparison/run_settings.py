"""What decides the result of a run, recorded with it, so that runs of other settings are neither mixed nor resumed."""

import dis
import functools
import hashlib
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from rgd_hf.batches.datasets import number_of_samples
from rgd_hf.weightings.function import Function

TEXT_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Settings that end in `token` and are no secrets."""

# They say where results go, not what is trained.
_NOT_SETTINGS = (
    "output_dir", "logging_", "log_", "disable_tqdm", "report_to", "run_name", "project", "trackio_", "hub_", "push_to_hub",
    "seed", "data_seed", "dataloader_num_workers", "local_rank", "save_",
)  # fmt: skip

# Folds and random parts differ in size, and new layers in their values; a schedule or a loss may be made of either.
_OF_THE_SEED = (
    "train_dataset_rows",
    "eval_dataset_rows",
    "eval_dataset_rows_by_set",
    "initial_weights",
    "optimizer",
)
# What another version of a library adds to these, or takes from them, is not the user's decision.
_OF_LIBRARIES = ("model_config.", "optimizer.")

# Where a model is from, which a moved folder changes, and what forward, training and saving write into a config, which the
# models of several runs may share.
_NOT_OF_THE_CONFIG = {
    "transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype", "use_cache", "problem_type",
    "bos_token_id", "eos_token_id", "pad_token_id", "base_model_name_or_path", "peft_version", "auto_mapping", "inference_mode",
}  # fmt: skip

_SUMS = 4
# Initialization differs in the last bits between machines; two checkpoints differ by far more.
_SAME_WEIGHTS = 1e-5


def run_settings(trainer: Any) -> dict[str, Any]:
    """What decides the result of a run, but the seed, the data and what makes batches and metrics of them, as JSON.

    Call it before training.

    Args:
        trainer: a Trainer with its model.
    """
    args = {
        name: value for name, value in trainer.args.to_dict().items() if not name.startswith(_NOT_SETTINGS)
    }
    for name in {*args} & {*TEXT_TOKENS}:
        args[name] = getattr(trainer.args, name)  # to_dict() hides them, as it hides secrets
    model, parameters = trainer.model, [*trainer.model.parameters()]
    settings = {
        **args,
        **_rows(trainer),
        "trainer": type(trainer).__name__,
        "model": type(model).__name__,
        "model_config": _config(model),
        "parameters": sum(parameter.numel() for parameter in parameters),
        "parameter_dtypes": sorted({str(parameter.dtype) for parameter in parameters}),
        "initial_weights": _weight_sums(parameters),
        "optimizer": _optimizer(trainer),
        "per_sample_loss_fn": _code(getattr(trainer, "per_sample_loss_fn", None)),
        "compute_loss_func": _code(trainer.compute_loss_func),
        "reweighting_code": _code(trainer.weighting),
        "reweighting_settings": _settings_of_rule(trainer.weighting),
        "trainer_code": _code_of_class(type(trainer)),
    }
    return json.loads(json.dumps(settings, default=_in_words))


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], same_seed: bool) -> str:
    """The settings that differ, in words.

    Args:
        before: the recorded settings; what earlier versions did not record, and the text tokens that they hid, may be any.
        now: the settings of the Trainer, from `run_settings`.
        same_seed: whether both have the same seed. Otherwise sizes of data and the initial weights may differ.
    """
    known, given = dict(_flat(before)), dict(_flat(now))
    changed = [
        name
        for name in sorted({*known, *given})
        if not _same(name, known.get(name), given.get(name))
        # A part of what was recorded as a whole, such as an option of the model, was absent, not unknown.
        and name.split(".")[0] in before
        and not (_depends_on_the_seed(name) and not same_seed)
        and not (name.startswith(_OF_LIBRARIES) and (name not in known or name not in given))
        and not (name in TEXT_TOKENS and known.get(name) == f"<{name.upper()}>")
    ]
    return "; ".join(_difference(name, known.get(name), given.get(name)) for name in changed)


def _difference(name: str, before: Any, now: Any) -> str:
    if name == "initial_weights":
        return f"{name}: another checkpoint or initialization, or a model that was trained before"
    return f"{name}: {before!r}, now {now!r}"


def _depends_on_the_seed(name: str) -> bool:
    return name.split(".")[0] in _OF_THE_SEED or name.endswith(".values")


def _same(name: str, before: Any, now: Any) -> bool:
    if name == "initial_weights":
        if not before or not now:
            return True
        return all(
            math.isclose(*pair, rel_tol=_SAME_WEIGHTS, abs_tol=_SAME_WEIGHTS) for pair in zip(before, now)
        )
    # Of another version: bytecode of Python, a record of this package.
    if (".python " in name or name.endswith(".values")) and None in (before, now):
        return True
    return before == now


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _rows(trainer: Any) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name in ("train_dataset", "eval_dataset"):
        dataset = getattr(trainer, name, None)
        rows[f"{name}_rows"] = number_of_samples(dataset)
        if isinstance(dataset, Mapping):
            rows[f"{name}_rows_by_set"] = [number_of_samples(each) for each in dataset.values()]
    return rows


def _config(model: Any) -> dict[str, Any] | None:
    """The model's configuration without what is no decision of the user's; None where it has none."""
    config = getattr(model, "config", None)
    found: Any = (
        config if config is None or isinstance(config, Mapping) else getattr(config, "to_dict", dict)()
    )
    adapters = getattr(model, "peft_config", None)
    if isinstance(adapters, Mapping):
        found = {**(found or {}), "peft": {name: each.to_dict() for name, each in adapters.items()}}
    return _decided(found) if isinstance(found, Mapping) else None


def _decided(config: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        str(name): _decided(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in _NOT_OF_THE_CONFIG
    }


def _weight_sums(parameters: list[torch.nn.Parameter]) -> list[float] | None:
    """Sums of one element of each parameter, by which two checkpoints can be told apart; None where they are out of reach."""
    found: list[torch.Tensor] = []
    for parameter in parameters:
        values = parameter.detach()
        # Sharded, quantized or not yet loaded ones have no elements to read.
        if type(values) is not torch.Tensor or values.is_meta or not values.numel():
            continue
        found.append(values[tuple(size // 2 for size in values.shape)].cpu().double())
    every = [float(value) for value in found if value.isfinite()]
    return [math.fsum(every[start::_SUMS]) for start in range(_SUMS)] if every else None


def _optimizer(trainer: Any) -> dict[str, Any] | None:
    """Class and hyperparameters of what was given as `optimizers` or `optimizer_cls_and_kwargs`; None where nothing was."""
    found: dict[str, Any] = {}
    chosen = getattr(trainer, "optimizer_cls_and_kwargs", None)
    if chosen is not None:
        found = {"class": chosen[0].__name__, **dict(_scalars(chosen[1]))}
    if trainer.optimizer is not None:
        groups = trainer.optimizer.param_groups
        options = {
            str(number): {
                name: value for name, value in group.items() if name not in ("params", "param_names")
            }
            for number, group in enumerate(groups)
        }
        found = {"class": type(trainer.optimizer).__name__, "groups": options}
    if trainer.lr_scheduler is not None:
        found["lr_scheduler"] = type(trainer.lr_scheduler).__name__
    return found or None


def _code(given: Any) -> dict[str, Any] | None:
    """Name and code of a function of the user's, or of the methods of a rule of theirs; None where there is none."""
    if isinstance(given, Function):
        given = given.function
    if given is None or type(given).__module__.startswith("rgd_hf."):
        return None
    values: list[Any] = []
    while isinstance(given, functools.partial):
        values += [*_scalars(given.args), *_scalars(given.keywords)]
        given = given.func
    function = getattr(given, "__func__", given)
    if hasattr(function, "__code__"):
        functions, name = [function], function.__name__
    else:
        functions = [value for value in vars(type(given)).values() if hasattr(value, "__code__")]
        name = getattr(given, "__name__", type(given).__name__)
    if not functions:
        return {"name": name}
    values += [value for each in functions for value in _values_of(each)]
    return {
        "name": name,
        **_told([_of_code(each.__code__, each.__doc__) for each in functions]),
        "values": repr(values),
    }


def _settings_of_rule(rule: Any) -> dict[str, Any] | None:
    """The settings of a rule, those too that are no single numbers or texts, which the arguments lack."""
    return {
        name: value
        for name, value in vars(rule).items()
        if name != "state" and not name.startswith("_") and not callable(value)
    } or None


def _code_of_class(trainer: type) -> dict[str, Any] | None:
    """The code of the methods of the user's own classes among those that the Trainer derives from; None where there are none."""
    told = [
        (name, _of_code(code, function.__doc__))
        for cls in trainer.__mro__
        if not _is_of_a_library(cls)
        for name, function in vars(cls).items()
        if (code := getattr(function, "__code__", None)) is not None
    ]
    return _told(told) if told else None


def _told(code: Any) -> dict[str, str]:
    """A short number of what `_of_code` gives, for the Python that it is of: bytecode is that of one version."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {f"python {version}": hashlib.sha256(repr(code).encode()).hexdigest()[:16]}


def _is_of_a_library(cls: type) -> bool:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None) or ""
    return cls.__module__.split(".")[0] in ("rgd_hf", "builtins") or "-packages" in file


def _values_of(function: Any) -> list[Any]:
    """Numbers and texts that a function has from outside: its defaults, and what it closes over."""
    code, defaults = function.__code__, [function.__defaults__, function.__kwdefaults__]
    # What it counts up by itself does not tell functions apart.
    written = {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_DEREF"}
    around = {
        name: cell.cell_contents
        for name, cell in zip(code.co_freevars, function.__closure__ or ())
        if name not in written and _is_filled(cell)
    }
    return [*(value for each in defaults for value in _scalars(each)), *_scalars(around)]


def _scalars(values: Any) -> list[Any]:
    pairs = values.items() if isinstance(values, Mapping) else enumerate(values or ())
    return [pair for pair in pairs if pair[1] is None or isinstance(pair[1], bool | int | float | str)]


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _of_code(code: Any, doc: str | None = None) -> list[Any]:
    """Of a code object what it does: neither where it stands nor its docstring."""
    constants = [
        _of_code(one)
        if hasattr(one, "co_code")
        else sorted(map(repr, one))
        if isinstance(one, frozenset)
        else repr(one)
        for one in (None if doc is not None and each == doc else each for each in code.co_consts)
    ]
    return [code.co_code.hex(), constants, code.co_names, code.co_varnames[: code.co_argcount]]


def _in_words(value: Any) -> str:
    if isinstance(value, set | frozenset):
        return str(sorted(map(str, value)))
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
