"""What decides the result of a run, recorded with it, so that runs of other settings are neither mixed nor resumed."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_callback import ExportableState

from rgd_hf.batches.datasets import number_of_samples
from rgd_hf.comparison.code_fingerprints import (
    CHANGES,
    changed_values,
    fingerprint,
    is_scalar,
    public_settings,
    same_values,
)
from rgd_hf.training_args import ReweightingArguments

TEXT_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Settings that end in `token` and are no secrets."""

# Of transformers' arguments those that say where results go or how a run is resumed, not what is trained.
_NOT_SETTINGS = (
    "output_dir", "logging_", "log_", "disable_tqdm", "report_to", "run_name", "project", "trackio_", "hub_", "push_to_hub",
    "seed", "data_seed", "dataloader_num_workers", "local_rank", "save_", "restore_callback_states_from_checkpoint",
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
        name: value
        for name, value in trainer.args.to_dict().items()
        if not (name.startswith(_NOT_SETTINGS) and name in TrainingArguments.__dataclass_fields__)
    }
    # Those of plain arguments, which `to_dict()` does not know.
    args |= {
        name: getattr(trainer.args, name)
        for name in ReweightingArguments.__dataclass_fields__
        if hasattr(trainer.args, name)
    }
    for name in {*args} & {*TEXT_TOKENS}:
        args[name] = getattr(trainer.args, name)  # to_dict() hides them, as it hides secrets
    model, parameters = trainer.model, [*trainer.model.parameters()]
    of_the_trainer = {
        **_rows(trainer),
        "trainer": type(trainer).__name__,
        "model": type(model).__name__,
        "model_config": _config(model),
        "parameters": sum(parameter.numel() for parameter in parameters),
        "parameter_dtypes": sorted({str(parameter.dtype) for parameter in parameters}),
        "initial_weights": _weight_sums(parameters),
        "optimizer": _optimizer(trainer),
        "callbacks": _callbacks(trainer),
        **_of_code(trainer),
    }
    # Arguments of a user's own may have these names.
    args = {f"{name} (argument)" if name in of_the_trainer else name: value for name, value in args.items()}
    settings = {**args, **of_the_trainer}
    return json.loads(json.dumps(settings, default=_in_words))


def _of_code(trainer: Any) -> dict[str, Any]:
    return {
        "per_sample_loss_fn": fingerprint(getattr(trainer, "per_sample_loss_fn", None)),
        "compute_loss_func": fingerprint(trainer.compute_loss_func),
        "reweighting_code": fingerprint(trainer.weighting),
        "reweighting_settings": public_settings(trainer.weighting),
        "trainer_code": fingerprint(type(trainer)),
    }


def changed_in_training(settings: Mapping[str, Any], trainer: Any) -> set[tuple[str, str]]:
    """Settings that training changed: counters and the like in a user's objects, which would look like other ones afterwards.

    Args:
        settings: those of `trainer` before training.
        trainer: the Trainer after it.

    Returns:
        What `with_changing` takes.
    """
    after = json.loads(json.dumps(_of_code(trainer), default=_in_words))
    return {
        (name, value)
        for name, now in after.items()
        for value in changed_values(_with_values(name, settings[name]), _with_values(name, now))
    }


def with_changing(settings: dict[str, Any], changing: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """`settings` in which those that `changed_in_training` found may be any."""
    marked = {**settings}
    for name, value in changing:
        if not settings[name]:
            continue
        if name == "reweighting_settings":
            marked[name] = {**marked[name], value: CHANGES}
        else:
            marked[name] = {**marked[name], "values": {**marked[name]["values"], value: CHANGES}}
    return marked


def _with_values(name: str, recorded: Any) -> Any:
    return {"values": recorded or {}} if name == "reweighting_settings" else recorded


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
    return name.split(".")[0] in _OF_THE_SEED or name.partition(".")[2].startswith("values.")


def _same(name: str, before: Any, now: Any) -> bool:
    if name == "initial_weights":
        if not before or not now:
            return True
        return all(
            math.isclose(*pair, rel_tol=_SAME_WEIGHTS, abs_tol=_SAME_WEIGHTS) for pair in zip(before, now)
        )
    # Bytecode is that of one version of Python.
    if (".python " in name and None in (before, now)) or CHANGES in (before, now):
        return True
    return same_values(before, now) if ".values." in name else before == now


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        # A setting of a rule that is a dict is one value, as training may change it.
        is_one = prefix == "reweighting_settings."
        if isinstance(value, Mapping) and (value or name == "values") and not is_one:
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
        found = {
            "class": chosen[0].__name__,
            **{name: value for name, value in chosen[1].items() if is_scalar(value)},
        }
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


def _callbacks(trainer: Any) -> list[dict[str, Any]]:
    """The callbacks that say by themselves what they were made with, as early stopping does."""
    return [
        {"class": type(each).__name__, **each.state().get("args", {})}
        for each in trainer.callback_handler.callbacks
        if isinstance(each, ExportableState)
    ]


def _in_words(value: Any) -> str:
    if isinstance(value, set | frozenset):
        return str(sorted(map(str, value)))
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
