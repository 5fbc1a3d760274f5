"""Train the same thing with two Trainer classes and compare everything a user can see of it."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from tests.helpers.tiny import learned

TIMES = ("runtime", "_per_second", "preparation_time", "total_flos")
WEIGHT_STATISTICS = {
    "weight_mean",
    "weight_max",
    "effective_sample_size",
    "clipped_fraction",
    "unweighted_loss",
}


def is_time(key):
    return key.endswith(TIMES)


@dataclass
class Run:
    trainer: Any
    output: Any
    metrics: dict[str, float] | None

    @property
    def parameters(self):
        return {name: learned(name, p.detach()).clone() for name, p in self.trainer.model.named_parameters()}

    @property
    def losses(self):
        return [entry["loss"] for entry in self.trainer.state.log_history if "loss" in entry]


def assert_same_parameters(expected, actual, rtol=1e-6, atol=1e-7):
    assert expected.keys() == actual.keys()
    for name in expected:
        torch.testing.assert_close(
            actual[name], expected[name], rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
        )


def assert_same_metrics(expected, actual, rtol=1e-6, extra=frozenset()):
    assert set(actual) - extra == set(expected)
    for key, value in expected.items():
        if not is_time(key):
            assert actual[key] == value or math.isclose(actual[key], value, rel_tol=rtol, abs_tol=1e-7), (
                f"{key}: {actual[key]} instead of {value}"
            )


def assert_same_run(expected, actual, rtol=1e-6, same_loss=True, same_epoch=True):
    """Parameters, steps, TrainOutput, log entries and evaluation metrics.

    `same_loss=False` where the objectives differ by construction (the surrogate G and the weighted loss have the same
    gradient, not the same value); evaluation is of the plain loss in any case.
    """
    assert_same_parameters(expected.parameters, actual.parameters, rtol)
    left, right = expected.trainer.state, actual.trainer.state
    assert (left.global_step, left.max_steps) == (right.global_step, right.max_steps)
    assert expected.output.global_step == actual.output.global_step
    apart = (() if same_loss else ("loss", "train_loss")) + (() if same_epoch else ("epoch",))

    def compare(before, after, extra=frozenset()):
        before, after = ({k: v for k, v in metrics.items() if k not in apart} for metrics in (before, after))
        assert_same_metrics(before, after, rtol, extra)

    compare(expected.output.metrics, actual.output.metrics)
    if same_loss:
        assert math.isclose(expected.output.training_loss, actual.output.training_loss, rel_tol=rtol)
    assert len(left.log_history) == len(right.log_history)
    for before, after in zip(left.log_history, right.log_history, strict=True):
        compare(before, after, frozenset() if same_loss else WEIGHT_STATISTICS)
    if expected.metrics is not None:
        compare(expected.metrics, actual.metrics)
