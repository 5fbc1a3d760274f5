"""Which checkpoint of which run counts: the three selection rules of DomainBed, on finished runs.

A run is a dict (one JSON line) with `held_out` (names of the one or two environments it was not trained on), `draw`,
`name`, and `checkpoints`: dicts with `step`, and `<environment>_<in|out>_accuracy` (and `_ece`, `_loss`) for every
split that was evaluated. The rules get all runs of one method (algorithm and re-weighting) and one trial. The test
accuracy is that on the `in` split of the held-out environment, whatever the rule.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Run = Mapping[str, Any]


class Choice(NamedTuple):
    """What a rule chose for one held-out environment.

    Attributes:
        run: name of the run.
        step: optimizer step of the checkpoint.
        validation: the accuracy that decided.
        accuracy: on the held-out environment's `in` split.
        ece: calibration error there.
    """

    run: str
    step: int
    validation: float
    accuracy: float
    ece: float


def _choice(run: Run, checkpoint: Mapping[str, Any], validation: float, test: str) -> Choice:
    return Choice(
        run["name"],
        checkpoint["step"],
        validation,
        checkpoint[f"{test}_in_accuracy"],
        checkpoint[f"{test}_in_ece"],
    )


def _best(choices: Sequence[Choice]) -> Choice | None:
    # The earliest of equals: of draw 0 first, then of the first checkpoint.
    return max(choices, key=lambda choice: choice.validation, default=None)


def _holding_out(runs: Sequence[Run], *names: str) -> list[Run]:
    found = [run for run in runs if sorted(run["held_out"]) == sorted(names)]
    return sorted(found, key=lambda run: run["draw"])


def training_domain_validation(runs: Sequence[Run], test: str, environments: Sequence[str]) -> Choice | None:
    """The best mean `out` accuracy of the training environments, over checkpoints and hyper-parameters.

    Args:
        runs: the runs of one method and one trial.
        test: the held-out environment.
        environments: names of all environments.

    Returns:
        None where no run held out `test` alone.
    """
    training = [name for name in environments if name != test]
    return _best(
        [
            _choice(run, point, float(np.mean([point[f"{name}_out_accuracy"] for name in training])), test)
            for run in _holding_out(runs, test)
            for point in run["checkpoints"]
        ]
    )


def leave_one_domain_out(runs: Sequence[Run], test: str, environments: Sequence[str]) -> Choice | None:
    """Cross-validation among the training environments, over checkpoints and hyper-parameters.

    For every training environment v a run held out `test` and v; the mean of their accuracies on v's `in` split, at
    the same step and hyper-parameters, judges the run that held out `test` alone.

    Args:
        runs: the runs of one method and one trial, those that hold out two environments included.
        test: the held-out environment.
        environments: names of all environments.

    Returns:
        None unless all these runs are there for at least one draw.
    """
    choices = []
    training = [name for name in environments if name != test]
    for run in _holding_out(runs, test):
        pairs = {
            name: [other for other in _holding_out(runs, test, name) if other["draw"] == run["draw"]]
            for name in training
        }
        if not all(pairs.values()):
            continue
        for point in run["checkpoints"]:
            accuracies = [
                other[f"{name}_in_accuracy"]
                for name in training
                for other in pairs[name][0]["checkpoints"]
                if other["step"] == point["step"]
            ]
            if len(accuracies) == len(training):
                choices.append(_choice(run, point, float(np.mean(accuracies)), test))
    return _best(choices)


def test_domain_oracle(runs: Sequence[Run], test: str, environments: Sequence[str]) -> Choice | None:
    """The best `out` accuracy of the held-out environment itself, over hyper-parameters; last checkpoints only.

    Args:
        runs: the runs of one method and one trial.
        test: the held-out environment.
        environments: names of all environments (not needed; rules are called alike).

    Returns:
        None where no run held out `test` alone.
    """
    last = [(run, run["checkpoints"][-1]) for run in _holding_out(runs, test)]
    return _best([_choice(run, point, point[f"{test}_out_accuracy"], test) for run, point in last])


Rule = Callable[[Sequence[Run], str, Sequence[str]], Choice | None]

RULES: dict[str, tuple[str, Rule]] = {
    "training_domain": ("training-domain validation", training_domain_validation),
    "leave_one_domain_out": ("leave-one-domain-out cross-validation", leave_one_domain_out),
    "oracle": ("test-domain oracle (last checkpoint)", test_domain_oracle),
}
"""The rules by name, with their titles."""
