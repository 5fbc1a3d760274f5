"""Data sets and pretrained models from the Hugging Face Hub, a cache or a directory, with errors that say what to do."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import datasets
from datasets import DatasetBuilder, DatasetDict, load_dataset, load_dataset_builder
from datasets.data_files import DataFilesDict
from datasets.splits import SplitDict
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import OfflineModeIsEnabled
from safetensors import SafetensorError

from rgd_hf.hub.errors import find_failure
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.messages import say

T = TypeVar("T")

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def load_hub_dataset(
    name: str,
    config: str | None = None,
    *,
    local_hint: str,
    splits: Sequence[Sequence[str]] | None = None,
    streaming: bool = False,
) -> Any:
    """A data set of the Hub, or of the local cache; failures say what to do, and how to give local files instead.

    Args:
        name: `owner/name`.
        config: configuration (subset) of the data set.
        local_hint: the recipe's options for local files, e.g. `"--dataset_dir DIR"`.
        splits: the splits that are used, each as a list of possible names, best first; nothing else is downloaded if the
            data set has separate files for its splits. None for all.
        streaming: whether to read the data during training instead of downloading it first.

    Returns:
        A `DatasetDict` (streaming: an `IterableDatasetDict`), with at least those of `splits` that there are.

    Raises:
        UserError: it could not be loaded.
    """
    full_name = name if config is None else f"{name} ({config})"
    try:
        if streaming or splits is None:
            return load_dataset(name, config, streaming=streaming)
        return _load_splits(name, config, splits)
    except Exception as error:
        failure = find_failure(error, f"datasets/{name}")
        if failure is None and not isinstance(
            error, (OSError, ValueError, datasets.exceptions.DatasetsError)
        ):
            raise
        raise UserError(
            f"the data set {full_name} could not be loaded from the Hugging Face Hub and is not in the local cache. "
            f"{failure or _first_line(error)} Without the Hub, give local files: {local_hint}."
        ) from error


def _load_splits(name: str, config: str | None, splits: Sequence[Sequence[str]]) -> DatasetDict:
    # Some of the splits are kept apart from the cache of the whole, which would be taken to be complete.
    parts = Path(datasets.config.HF_DATASETS_CACHE) / "parts" / "+".join(names[0] for names in splits)
    try:
        builder = load_dataset_builder(name, config)
    except Exception:
        # Without the Hub, what is cached; if nothing is, the first error says more.
        try:
            return load_dataset(name, config, cache_dir=str(parts))
        except Exception:
            pass
        raise
    files = builder.config.data_files
    used = [next((split for split in names if split in (files or ())), None) for names in splits]
    whole = (Path(builder.cache_dir) / "dataset_info.json").is_file()
    if not files or whole or None in used or set(used) == set(files):
        return load_dataset(name, config)
    part: DatasetBuilder = load_dataset_builder(name, config, cache_dir=str(parts))
    part.config.data_files = DataFilesDict({split: files[split] for split in used})
    if part.info.splits:
        part.info.splits = SplitDict(
            {split: part.info.splits[split] for split in used if split in part.info.splits}
        )
    part.download_and_prepare()
    return part.as_dataset()


_UNREADABLE = (OSError, ValueError, KeyError, EOFError, SafetensorError, UnpicklingError)
"""What loading a directory or repository raises that is not whole, or is none of a model."""


def load_pretrained(load: Callable[..., T], name: str, **options: Any) -> T:
    """`load(name, **options)` for a `from_pretrained` method, with failures as `UserError`.

    Args:
        load: e.g. `AutoTokenizer.from_pretrained`.
        name: a model of the Hub, or a directory with `config.json`, the weights and the tokenizer.
        options: passed on to `load`.
    """
    try:
        return load(name, **options)
    except Exception as error:
        is_local = Path(name).is_dir()
        failure = find_failure(error, name)
        if failure is not None and failure.kind in ("network", "server", "busy"):
            # transformers does so for some of these.
            with suppress(Exception):
                cached = load(name, **options, local_files_only=True)
                say(f"{name} was taken from the local cache. {failure.said}")
                return cached
        if failure is None and not is_local:
            # transformers takes a download that broke off for a repository without weights.
            cause = _download_weights(name)
            failure = None if cause is None else find_failure(cause, name)
        if failure is None and not isinstance(error, _UNREADABLE):
            raise
        found = ""
        if is_local:
            found = f" (the directory holds: {', '.join(sorted(p.name for p in Path(name).iterdir())) or 'nothing'})"
        raise UserError(
            f"the model {name!r} could not be loaded{found}. {failure or _first_line(error)} Give the name of a model "
            "of the Hugging Face Hub, or a directory with config.json, the weights and the tokenizer: "
            "--model_name_or_path DIR works without a network."
        ) from error


def _download_weights(name: str) -> Exception | None:
    """What goes wrong when the weights of a repository are downloaded, or None."""
    try:
        files = {file.rfilename for file in HfApi().model_info(name).siblings or ()}
        for weights in WEIGHTS:
            if weights in files:
                hf_hub_download(name, weights)
                break
    except OfflineModeIsEnabled:
        return None  # then what was said first is true: it is not in the cache
    except Exception as error:
        return error
    return None


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if line.endswith(".") else f"{line}."
