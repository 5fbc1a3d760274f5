"""The tests of `make check-gpu`: on the accelerator where there is one, and smaller on a CPU, where they are tested."""

import pytest
import torch
from transformers import TrainingArguments

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")


def pytest_collection_modifyitems(items):
    for item in items:
        if "/gpu/" in str(item.path):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def full_precision():
    """float32 products without TF32, which rounds to ten bits."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture
def device_args(tmp_path):
    """Quiet arguments that use the accelerator: plain SGD, so that a step is linear in its gradient."""

    def make(name="out", **settings):
        defaults = {
            "output_dir": str(tmp_path / name),
            "per_device_train_batch_size": 8,
            "max_steps": 2,
            "logging_steps": 2,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "optim": "sgd",
            "learning_rate": 0.1,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "use_cpu": not ON_GPU,
            "dataloader_pin_memory": ON_GPU,
        }
        return TrainingArguments(**defaults | settings)

    return make
