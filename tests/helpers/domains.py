"""Three tiny domains, a tiny model, and what a training on them is called with."""

from pathlib import Path

import numpy as np

from rgd_hf import ReweightedTrainingArguments
from rgd_hf.scripts.domains.algorithms import AlgorithmArguments
from rgd_hf.scripts.domains.backbones import Backbone, image_backbone
from rgd_hf.scripts.domains.environments import DomainData, Environment
from rgd_hf.scripts.domains.experiment import Experiment
from rgd_hf.scripts.domains.views import ImageView
from rgd_hf.scripts.training.plans import Run, RunArguments

DIGITS = [
    *("--dataset", "rotated_digits", "--model_name_or_path", "test_convnext", "--weights", "none"),
    *("--augment", "false", "--image_size", "32", "--max_steps", "4", "--eval_steps", "2", "--use_cpu"),
    *("--per_device_train_batch_size", "4", "--max_eval_samples", "8", "--learning_rate", "1e-3"),
    *("--held_out", "0", "--disable_tqdm", "true", "--save_strategy", "no"),
]
"""Options of `domainbed.py` for a training of a second."""


def tiny_backbone() -> Backbone:
    """With batch normalization."""
    return image_backbone("test_resnet", pretrained=False)


def blobs(count: int = 24, classes: int = 2, size: int = 16) -> DomainData:
    """Noise with a bright half, on the left or on the right, at three levels of brightness."""
    environments = []
    for number, name in enumerate(["dark", "grey", "light"]):
        random = np.random.RandomState(number)
        labels = np.arange(count) % classes
        images = random.randint(0, 60, (count, size, size, 3)) + 40 * number
        for image, label in zip(images, labels, strict=True):
            half = slice(0, size // 2) if label else slice(size // 2, size)
            image[:, half] += 100
        environments.append(Environment(name, images.astype(np.uint8), labels))
    return DomainData(tuple(environments), ("right", "left"), "image")


def experiment(algorithm: str = "erm", held_out: tuple[str, ...] = ("grey",), **options) -> Experiment:
    """A training on `blobs` without some of them; `options` of `RunArguments` and `AlgorithmArguments`."""
    data, backbone = blobs(), tiny_backbone()
    of_run = {name: options.pop(name) for name in [*options] if name in RunArguments.__dataclass_fields__}
    return Experiment(
        data,
        [ImageView(e, 32, backbone.mean, backbone.std) for e in data.environments],
        backbone,
        AlgorithmArguments(held_out=list(held_out), algorithm=algorithm, **options),
        RunArguments(**of_run),
        {"dataset": "blobs", "tags": [], "tasks": "image-classification"},
    )


def run(directory: Path, reweighting: str = "kl", **settings) -> Run:
    """A run of four steps, evaluated at every second."""
    defaults = {
        "max_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "no",
        "logging_strategy": "no",
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "seed": 0,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    given = {"output_dir": str(directory), "reweighting": reweighting}
    args = ReweightedTrainingArguments(**(defaults | given | settings))
    return Run(reweighting, reweighting, args)
