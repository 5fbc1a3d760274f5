"""A tiny BERT with a tiny tokenizer on disk, and small files of sentences that it can learn."""

import gc
from pathlib import Path

import pytest

from helpers.recipes import sentences


@pytest.fixture(scope="session", autouse=True)
def frozen_imports():
    """Every `train()` collects garbage; what the imports made need not be walked each time (half a second)."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


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
