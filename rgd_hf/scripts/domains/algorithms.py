"""The algorithms by name, and the hyper-parameters of a run: the defaults, or drawn at random."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rgd_hf.scripts.domains.coral import CoralTrainer
from rgd_hf.scripts.domains.environments import seed_hash
from rgd_hf.scripts.domains.group_dro import GroupDRODomainTrainer
from rgd_hf.scripts.domains.miro import MiroTrainer
from rgd_hf.scripts.domains.swad import SwadTrainer
from rgd_hf.scripts.domains.training import DomainTrainer

Drawing = Callable[[np.random.RandomState], Any]


@dataclass(frozen=True)
class Algorithm:
    """How to train on several domains.

    Attributes:
        title: as tables call it.
        trainer: its Trainer.
        hyper_parameters: its own, by name: the default, and how a random one is drawn.
    """

    title: str
    trainer: type[DomainTrainer]
    hyper_parameters: dict[str, tuple[Any, Drawing]] = field(default_factory=dict)


ALGORITHMS = {
    "erm": Algorithm("ERM", DomainTrainer),
    "group_dro": Algorithm(
        "GroupDRO", GroupDRODomainTrainer, {"group_step_size": (0.01, lambda r: 10 ** r.uniform(-3, -1))}
    ),
    "coral": Algorithm("CORAL", CoralTrainer, {"coral_weight": (1.0, lambda r: 10 ** r.uniform(-1, 1))}),
    "miro": Algorithm(
        "MIRO", MiroTrainer, {"miro_weight": (0.1, lambda r: float(r.choice([1.0, 0.1, 0.01, 0.001])))}
    ),
    "swad": Algorithm(
        "SWAD", SwadTrainer, {"swad_tolerance": (1.3, lambda r: float(r.choice([1.2, 1.3, 1.4])))}
    ),
}

# The ranges of DomainBed; its small images are digits.
COMMON: dict[str, dict[str, Drawing]] = {
    "pretrained": {
        "learning_rate": lambda r: 10 ** r.uniform(-5, -3.5),
        "batch_size": lambda r: int(2 ** r.uniform(3, 5.5)),
        "weight_decay": lambda r: 10 ** r.uniform(-6, -2),
        "dropout": lambda r: float(r.choice([0.0, 0.1, 0.5])),
    },
    "from_scratch": {
        "learning_rate": lambda r: 10 ** r.uniform(-4.5, -2.5),
        "batch_size": lambda r: int(2 ** r.uniform(3, 9)),
        "weight_decay": lambda r: 0.0,
        "dropout": lambda r: 0.0,
    },
}


def draw_hyper_parameters(
    algorithm: str, defaults: dict[str, Any], space: str, draw: int, trial: int
) -> dict[str, Any]:
    """The hyper-parameters of a run.

    Each is drawn from a generator of its own, seeded by draw, trial and its name: algorithms share the draws of what
    they have in common.

    Args:
        algorithm: name in `ALGORITHMS`.
        defaults: the user's `learning_rate`, `batch_size` (of each domain) and `weight_decay`, and the `dropout` before the
            classifier.
        space: `"pretrained"` or `"from_scratch"`.
        draw: number of the draw; 0 for the defaults.
        trial: number of the trial.
    """
    own = ALGORITHMS[algorithm].hyper_parameters
    if draw == 0:
        return {**defaults, **{name: default for name, (default, _) in own.items()}}
    drawings = {**COMMON[space], **{name: drawing for name, (_, drawing) in own.items()}}
    seed = seed_hash(draw, trial)
    return {name: drawing(np.random.RandomState(seed_hash(seed, name))) for name, drawing in drawings.items()}
