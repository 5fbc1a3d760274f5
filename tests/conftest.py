"""Fixtures every test may use. Nothing here reaches the network."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from pathlib import Path

import hypothesis
import pandas as pd
import pytest
from transformers import TrainingArguments

from tests.helpers.quiet import QUIET
from tests.helpers.recipes import WORDS
from tests.helpers.tiny_models import save_bert

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@pytest.fixture
def make_args(tmp_path: Path) -> Callable[..., TrainingArguments]:
    """Quiet CPU `TrainingArguments` in a temporary folder."""

    def make(cls: type[TrainingArguments] = TrainingArguments, **kwargs) -> TrainingArguments:
        return cls(**({"output_dir": str(tmp_path / "out")} | QUIET | kwargs))

    return make


@pytest.fixture(scope="session", autouse=True)
def fast_garbage_collection():
    """Every train() collects garbage; what importing left behind is not worth looking through each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory that `from_pretrained` takes: configuration, random weights, tokenizer."""
    return save_bert(tmp_path_factory.mktemp("tiny_bert"), WORDS)


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[str, list[dict]], str]:
    """Write rows into a file of the temporary folder; the suffix decides the format."""

    def write(name: str, rows: list[dict]) -> str:
        path = tmp_path / name
        frame = pd.DataFrame(rows)
        if path.suffix == ".csv":
            frame.to_csv(path, index=False)
        elif path.suffix == ".parquet":
            frame.to_parquet(path)
        else:
            frame.to_json(path, orient="records", lines=path.suffix == ".jsonl")
        return str(path)

    return write
