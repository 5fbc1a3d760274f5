"""Which runs a sweep needs; a killed sweep goes on where it stopped."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from rgd_hf.scripts.run_file import duration


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        algorithm: its name.
        reweighting: how losses are weighted, `"none"` for plain losses.
        trial: number of the trial: it seeds splits, batches and weights.
        draw: number of the hyper-parameters; 0 are the defaults.
        held_out: the one or two environments that are not trained on.
    """

    algorithm: str
    reweighting: str
    trial: int
    draw: int
    held_out: tuple[str, ...]

    @property
    def title(self) -> str:
        """Short, for progress lines."""
        return (
            f"{self.algorithm} + {self.reweighting}, trial {self.trial}, draw {self.draw}, "
            f"held out {' and '.join(self.held_out)}"
        )

    def name(self, settings: Mapping[str, Any]) -> str:
        """A name that says what was trained: readable parts, and a hash of these and all `settings`."""
        parts = [self.algorithm, self.reweighting, f"trial{self.trial}", f"draw{self.draw}", *self.held_out]
        content = json.dumps([parts, settings], sort_keys=True, default=str)
        return "-".join([*parts, hashlib.sha256(content.encode("utf-8")).hexdigest()[:10]])


def plan_jobs(
    algorithms: Sequence[str],
    reweightings: Sequence[str],
    trials: int,
    draws: int,
    held_out: Sequence[str],
    environments: Sequence[str],
    pairs: bool,
    first_trial: int = 0,
) -> list[Job]:
    """Every run of a sweep, in an order in which whole comparisons are finished early.

    Args:
        algorithms: their names.
        reweightings: on top of each.
        trials: number of trials.
        draws: number of hyper-parameters, the defaults included.
        held_out: environments to test on, in turn.
        environments: all of them.
        pairs: also hold out each of `held_out` together with every other environment, as the rule
            `leave_one_domain_out` needs.
        first_trial: number of the first trial.
    """
    choices: list[tuple[str, ...]] = [(name,) for name in held_out]
    if pairs:
        choices += [pair for pair in combinations(environments, 2) if set(pair) & set(held_out)]
    return [
        Job(algorithm, reweighting, trial, draw, choice)
        for trial in range(first_trial, first_trial + trials)
        for draw in range(draws)
        for choice in choices
        for algorithm in algorithms
        for reweighting in reweightings
    ]


def run_jobs(
    jobs: Iterable[tuple[str, Job]],
    finished: Callable[[], Mapping[str, Any]],
    train: Callable[[str, Job], None],
    report: Callable[[str], None],
) -> None:
    """Train what is not finished yet, with a line of progress and the time left before each.

    Args:
        jobs: the runs of this shard, with their names.
        finished: reads the finished runs.
        train: trains and records one.
        report: shows a line.
    """
    every = list(jobs)
    done = finished()
    missing = [(name, job) for name, job in every if name not in done]
    if len(missing) < len(every):
        report(f"{len(every) - len(missing)} of {len(every)} runs are finished already.")
    started = time.perf_counter()
    for number, (name, job) in enumerate(missing):
        left = ""
        if number:
            seconds = (time.perf_counter() - started) / number * (len(missing) - number)
            left = f", about {duration(seconds)} left"
        report(f"[{len(every) - len(missing) + number + 1}/{len(every)}{left}] {job.title}")
        train(name, job)
