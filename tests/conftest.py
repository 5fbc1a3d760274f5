"""Fixtures every test may use. Nothing here reaches the network."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from transformers import TrainingArguments

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@pytest.fixture
def make_args(tmp_path: Path) -> Callable[..., TrainingArguments]:
    """Quiet CPU `TrainingArguments` in a temporary folder."""

    def make(cls: type[TrainingArguments] = TrainingArguments, **kwargs) -> TrainingArguments:
        defaults = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 8,
            "max_steps": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "optim": "sgd",
            "learning_rate": 0.5,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
        }
        return cls(**(defaults | kwargs))

    return make


@pytest.fixture(scope="session", autouse=True)
def fast_garbage_collection():
    """Every train() collects garbage; what importing left behind is not worth looking through each time."""
    gc.collect()
    gc.freeze()
