"""Stochastic re-weighted gradient descent (arXiv 2306.09222) for the Hugging Face Trainer."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Names are imported when first used, so that the pure functions need torch alone.
_HOME_OF = {
    "rgd_weights": "divergences",
    "rgd_surrogate": "divergences",
    "ess_weights": "weightings.target_ess",
    "RGDLoss": "compute_loss_func",
    "ReweightingArguments": "training_args",
    "ReweightedTrainingArguments": "training_args",
    "ReweightedSeq2SeqTrainingArguments": "training_args",
    "Comparison": "comparison.result",
    "compare": "comparison.compare",
    "ReweightingMixin": "trainer",
    "PerSampleLosses": "loss_sources",
    "ReweightedTrainer": "trainer",
    "ReweightedSeq2SeqTrainer": "trainer",
}

if TYPE_CHECKING:
    from rgd_hf.comparison.compare import compare
    from rgd_hf.comparison.result import Comparison
    from rgd_hf.compute_loss_func import RGDLoss
    from rgd_hf.divergences import rgd_surrogate, rgd_weights
    from rgd_hf.loss_sources import PerSampleLosses
    from rgd_hf.trainer import ReweightedSeq2SeqTrainer, ReweightedTrainer, ReweightingMixin
    from rgd_hf.training_args import (
        ReweightedSeq2SeqTrainingArguments,
        ReweightedTrainingArguments,
        ReweightingArguments,
    )
    from rgd_hf.weightings.target_ess import ess_weights

__all__ = [
    "Comparison",
    "PerSampleLosses",
    "RGDLoss",
    "ReweightedSeq2SeqTrainer",
    "ReweightedSeq2SeqTrainingArguments",
    "ReweightedTrainer",
    "ReweightedTrainingArguments",
    "ReweightingArguments",
    "ReweightingMixin",
    "compare",
    "ess_weights",
    "rgd_surrogate",
    "rgd_weights",
]


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__():
    return sorted([*globals(), *_HOME_OF])
