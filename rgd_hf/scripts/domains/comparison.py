"""What a sweep's finished runs say: accuracies by method and environment, and paired differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student_t

from rgd_hf.scripts.domains.algorithms import ALGORITHMS
from rgd_hf.scripts.domains.selection import RULES, Choice


class Method(NamedTuple):
    """An algorithm and the re-weighting on top of it."""

    algorithm: str
    reweighting: str

    @property
    def title(self) -> str:
        """As tables call it: `"CORAL"`, `"CORAL + RGD (kl)"`."""
        title = ALGORITHMS[self.algorithm].title
        return title if self.reweighting == "none" else f"{title} + RGD ({self.reweighting})"


ERM = Method("erm", "none")


class Estimate(NamedTuple):
    """A mean over trials.

    Attributes:
        mean: of the trials; NaN for none.
        error: standard error, with n - 1 in the variance; NaN for fewer than two trials.
        trials: how many.
    """

    mean: float
    error: float
    trials: int

    def interval(self) -> tuple[float, float] | None:
        """95 % interval of Student's t distribution; None for fewer than two trials."""
        if self.trials < 2:
            return None
        half = float(student_t.ppf(0.975, self.trials - 1)) * self.error
        return self.mean - half, self.mean + half


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of the trials' values."""
    if not values:
        return Estimate(math.nan, math.nan, 0)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(float(np.mean(values)), error, len(values))


def _as_json(found: Estimate) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in found._asdict().items()}


@dataclass(frozen=True)
class Comparison:
    """The finished runs of a sweep.

    Attributes:
        runs: records, in the order of the sweep.
        held_out: the environments that are tested on.
        environments: all of them.
        trials: how many trials the sweep has.
        planned: how many runs the sweep has.
        first_trial: number of the first trial.
    """

    runs: Sequence[Mapping[str, Any]]
    held_out: Sequence[str]
    environments: Sequence[str]
    trials: int
    planned: int
    first_trial: int = 0

    @property
    def trial_numbers(self) -> range:
        """Those of the sweep."""
        return range(self.first_trial, self.first_trial + self.trials)

    @property
    def methods(self) -> list[Method]:
        """Those that have a finished run, in the order of the sweep."""
        return list(dict.fromkeys(Method(run["algorithm"], run["reweighting"]) for run in self.runs))

    def choices(self, rule: str, method: Method) -> dict[tuple[int, str], Choice]:
        """What a rule chose, by trial and held-out environment, where there are runs to choose from."""
        chosen = {}
        for trial in self.trial_numbers:
            runs = [
                run
                for run in self.runs
                if (run["algorithm"], run["reweighting"], run["trial"]) == (*method, trial)
            ]
            for name in self.held_out:
                choice = RULES[rule][1](runs, name, self.environments)
                if choice is not None:
                    chosen[trial, name] = choice
        return chosen

    def row(self, rule: str, method: Method) -> dict[str, Estimate]:
        """Accuracies in percent by environment, and `average`, `worst` (environment) and `ece` (in percent too).

        The last three are taken within each trial, of trials in which every environment has its run.
        """
        chosen = self.choices(rule, method)
        cells = {
            name: estimate([100 * c.accuracy for (_, held_out), c in chosen.items() if held_out == name])
            for name in self.held_out
        }
        whole = [
            [chosen[trial, name] for name in self.held_out]
            for trial in self.trial_numbers
            if all((trial, name) in chosen for name in self.held_out)
        ]
        cells["average"] = estimate([100 * float(np.mean([c.accuracy for c in trial])) for trial in whole])
        cells["worst"] = estimate([100 * min(c.accuracy for c in trial) for trial in whole])
        cells["ece"] = estimate([100 * float(np.mean([c.ece for c in trial])) for trial in whole])
        return cells

    def difference(self, rule: str, method: Method, baseline: Method) -> Estimate:
        """Average accuracy of `method` minus that of `baseline`, in points, paired by trial and environment.

        Only trials count in which both have the run of every environment.
        """
        ours, theirs = self.choices(rule, method), self.choices(rule, baseline)
        values = []
        for trial in self.trial_numbers:
            keys = [(trial, name) for name in self.held_out]
            if all(key in ours and key in theirs for key in keys):
                values.append(
                    100 * float(np.mean([ours[key].accuracy - theirs[key].accuracy for key in keys]))
                )
        return estimate(values)

    def summary(self, rules: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """All numbers of the tables, by rule: one dict a method, every estimate as `mean`, `error`, `trials`."""
        return {
            rule: [
                {
                    "method": method.title,
                    **{name: _as_json(cell) for name, cell in self.row(rule, method).items()},
                    "difference_to_erm": _as_json(self.difference(rule, method, ERM)),
                }
                for method in self.methods
            ]
            for rule in rules
        }
