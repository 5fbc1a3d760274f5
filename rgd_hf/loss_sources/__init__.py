"""Where unreduced losses come from: the head of a known model class, or a user's function or method."""

from rgd_hf.loss_sources.base import BatchLosses, PerSampleLosses, PerSampleLossFn
from rgd_hf.loss_sources.choice import find_loss_source
from rgd_hf.loss_sources.head import HeadLosses
from rgd_hf.loss_sources.user import CustomLosses, MovableBatch, OverriddenLosses

__all__ = [
    "BatchLosses",
    "CustomLosses",
    "HeadLosses",
    "MovableBatch",
    "OverriddenLosses",
    "PerSampleLossFn",
    "PerSampleLosses",
    "find_loss_source",
]
