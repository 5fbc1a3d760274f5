"""Data sets and pretrained models from the Hugging Face Hub, a cache or a directory, with errors that say how to go on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetNotFoundError

from rgd_hf.scripts.errors import UserError

T = TypeVar("T")


def load_hub_dataset(name: str, config: str | None = None, *, local_hint: str, **options: Any) -> DatasetDict:
    """`datasets.load_dataset` whose failures say how to give local files instead.

    Args:
        name: a data set of the Hub, `owner/name`.
        config: its configuration (subset).
        local_hint: how this recipe is given local files, e.g. `"--dataset_dir DIR"`.
        options: passed on to `load_dataset`.
    """
    full_name = name if config is None else f"{name} ({config})"
    try:
        return load_dataset(name, config, **options)
    except (ConnectionError, DatasetNotFoundError, ValueError) as error:
        raise UserError(
            f"the data set {full_name} could not be loaded from the Hugging Face Hub and is not in the local cache: "
            f"{_first_line(error)} Without a network, give local files: {local_hint}."
        ) from error


def load_pretrained(load: Callable[..., T], name: str, **options: Any) -> T:
    """`load(name, **options)` for a `from_pretrained` method, with failures as `UserError`.

    Args:
        load: e.g. `AutoTokenizer.from_pretrained`.
        name: a model of the Hub, or a directory with `config.json`, the weights and the tokenizer.
        options: passed on to `load`.
    """
    try:
        return load(name, **options)
    except (OSError, ValueError, KeyError) as error:
        found = ""
        if Path(name).is_dir():
            found = f" (the directory holds: {', '.join(sorted(p.name for p in Path(name).iterdir())) or 'nothing'})"
        raise UserError(
            f"the model {name!r} could not be loaded{found}: {_first_line(error)} Give the name of a model of the "
            "Hugging Face Hub, or a directory with config.json, the weights and the tokenizer: --model_name_or_path "
            "DIR works without a network."
        ) from error


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if line.endswith(".") else f"{line}."
