"""Settings of a short, quiet training on the CPU, without decay or clipping."""

from typing import Any

QUIET: dict[str, Any] = {
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
