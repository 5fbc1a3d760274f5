"""Observers look at losses and weights, and never change them: statistics, histogram, hard examples, and a user's own."""

from rgd_hf.observers.base import Observer
from rgd_hf.observers.hard_examples import HardExample, HardExamples
from rgd_hf.observers.histogram import WeightHistogram
from rgd_hf.observers.statistics import NonFiniteLossError, WeightStatistics

__all__ = [
    "HardExample",
    "HardExamples",
    "NonFiniteLossError",
    "Observer",
    "WeightHistogram",
    "WeightStatistics",
]
