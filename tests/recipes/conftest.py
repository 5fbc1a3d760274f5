"""A tiny BERT with a tiny tokenizer on disk, and small files of sentences that it can learn."""

import gc
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from helpers.recipes import WORDS, sentences
from helpers.tiny_models import save_bert


@pytest.fixture(scope="session", autouse=True)
def frozen_imports():
    """Every `train()` collects garbage; what the imports made need not be walked each time (half a second)."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


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


@pytest.fixture
def tiny_run(tiny_model_dir: str, write_rows, tmp_path: Path) -> list[str]:
    """Command-line arguments of `glue.py` for a training of a second or two on the CPU."""
    return [
        *("--train_file", write_rows("train.csv", sentences(48))),
        *("--validation_file", write_rows("validation.csv", sentences(24, seed=1))),
        *("--model_name_or_path", tiny_model_dir),
        *("--output_dir", str(tmp_path / "out")),
        *("--learning_rate", "1e-3", "--per_device_train_batch_size", "8", "--num_train_epochs", "2"),
        *("--disable_tqdm", "true", "--use_cpu", "--logging_steps", "2", "--seed", "3"),
    ]
