"""What a comparison found: the scores by method and seed, their paired differences, a table and a verdict."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rgd_hf.comparison.directions import is_greater_better
from rgd_hf.comparison.formats import mean_and_spread, number, signed
from rgd_hf.comparison.statistics import Estimate, mean_interval, smallest_detectable


@dataclass(frozen=True)
class Comparison:
    """Scores of several methods that were trained from the same seeds; printing it shows a table and a verdict.

    Attributes:
        scores: the score of each method for each seed, `{"ERM": {0: 0.81, 1: 0.79}, "RGD (kl, tau=1)": ...}`; the first
            method is the baseline of all differences.
        metric: name of the metric that was scored, as `trainer.evaluate()` names it.
        greater_is_better: whether a larger score is a better one; None where that is not known.
        runs: the full record of each run.
    """

    scores: Mapping[str, Mapping[int, float]]
    metric: str
    greater_is_better: bool | None
    runs: Sequence[Mapping[str, Any]] = ()

    @property
    def baseline(self) -> str:
        """The method that the others are compared with."""
        return next(iter(self.scores))

    def differences(self, method: str) -> dict[int, float]:
        """Score of `method` minus that of the baseline, by seed, over the seeds that both have."""
        ours, theirs = self.scores[method], self.scores[self.baseline]
        return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}

    def difference(self, method: str) -> Estimate:
        """Mean of `differences` with its 95 % interval (Student's t over the seeds)."""
        return mean_interval([*self.differences(method).values()])

    def verdict(self, method: str) -> str:
        """One sentence on whether `method` is better than the baseline."""
        found, name = self.difference(method), self.metric.removeprefix("eval_").removeprefix("test_")
        diverged = self._not_finite(method)
        if diverged:
            return f"There is no comparison of {method} with {self.baseline}: {diverged}."
        shown = f"{name} {signed(found.mean)}"
        if found.low is None or found.high is None:
            return (
                f"{method} against {self.baseline}: {shown} from one seed, which cannot be told from chance: compare "
                "several seeds."
            )
        interval = f"{shown}, 95 % interval {signed(found.low)} to {signed(found.high)}, {found.n} seeds"
        if found.low == found.high == 0:
            return (
                f"{method} and {self.baseline} have the same {name} for each of {found.n} seeds: their scores do not differ, and "
                "nothing can be concluded."
            )
        if found.verdict == "tie":
            least = smallest_detectable([*self.differences(method).values()])
            return (
                f"No significant difference between {method} and {self.baseline}: {interval}. Four of five such "
                f"comparisons would detect a true difference of {number(least)} or more."
            )
        if self.greater_is_better is None:
            which = "larger" if found.verdict == "gain" else "smaller"
            return f"{name} is {which} for {method} than for {self.baseline}, better or worse: {interval}."
        better = (found.verdict == "gain") == self.greater_is_better
        return f"{method} is {'better' if better else 'WORSE'} than {self.baseline}: {interval}."

    def _not_finite(self, method: str) -> str:
        """The scores that `differences` cannot take, in words."""
        found = []
        for name in (self.baseline, method):
            by_value: dict[str, list[int]] = {}
            for seed in self.differences(method):
                if not math.isfinite(self.scores[name][seed]):
                    by_value.setdefault(str(self.scores[name][seed]), []).append(seed)
            found += [
                f"{self.metric} of {name} is {value} for seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
                for value, seeds in by_value.items()
            ]
        return "; ".join(found)

    def rows(self) -> list[list[str]]:
        """The table: a header, and one row per method."""
        rows = [["method", "seeds", self.metric, f"difference to {self.baseline}", "95 % interval"]]
        for method, scores in self.scores.items():
            row = [method, str(len(scores)), mean_and_spread([*scores.values()]), "", ""]
            if method != self.baseline:
                found = self.difference(method)
                row[3] = signed(found.mean)
                if found.low is not None and found.high is not None:
                    row[4] = f"[{signed(found.low)}, {signed(found.high)}]"
            rows.append(row)
        return rows

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = [
            "  ".join(
                cell.ljust(width) if n == 0 else cell.rjust(width) for n, (cell, width) in cells
            ).rstrip()
            for cells in (enumerate(zip(row, widths)) for row in rows)
        ]
        verdicts = [self.verdict(method) for method in self.scores if method != self.baseline]
        return "\n".join([*lines, "", *verdicts])


def comparison_of(
    runs: Sequence[Mapping[str, Any]], metric: str, greater_is_better: bool | None = None
) -> Comparison:
    """The comparison of finished runs.

    Args:
        runs: each with `method` (its name in the table), `seed` and `metrics`; the first one's method is the baseline.
        metric: one of `metrics`.
        greater_is_better: as in `compare`, but None where the name of the metric does not say it.
    """
    scores: dict[str, dict[int, float]] = {}
    for run in runs:
        scores.setdefault(run["method"], {})[run["seed"]] = float(run["metrics"][metric])
    if greater_is_better is None:
        greater_is_better = is_greater_better(metric)
    return Comparison(scores, metric, greater_is_better, tuple(runs))
