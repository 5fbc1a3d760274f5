"""Which runs a sweep needs, and the file of finished ones: a killed sweep goes on where it stopped."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from recipe_lib.errors import UserError


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        algorithm: its name.
        reweighting: divergence of the weights, `"none"` for plain losses.
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
) -> list[Job]:
    """Every run of a sweep, in an order in which whole comparisons are finished early.

    Args:
        algorithms: their names.
        reweightings: divergences on top of each.
        trials: number of trials.
        draws: number of hyper-parameters, the defaults included.
        held_out: environments to test on, in turn.
        environments: all of them.
        pairs: also hold out each of `held_out` together with every other environment, as the rule
            `leave_one_domain_out` needs.
    """
    choices: list[tuple[str, ...]] = [(name,) for name in held_out]
    if pairs:
        choices += [pair for pair in combinations(environments, 2) if set(pair) & set(held_out)]
    return [
        Job(algorithm, reweighting, trial, draw, choice)
        for trial in range(trials)
        for draw in range(draws)
        for choice in choices
        for algorithm in algorithms
        for reweighting in reweightings
    ]


def parse_shard(text: str) -> tuple[int, int]:
    """`"i/n"` with 1 <= i <= n as `(i, n)`.

    Raises:
        UserError: it is none.
    """
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise UserError(
            f"--shard must be i/n with i from 1 to n, e.g. 1/4 to 4/4 for four machines, not {text!r}."
        )
    return int(number), int(count)


class RunFile:
    """Finished runs in `runs*.jsonl` of a directory: one JSON object a line, one file a shard.

    Args:
        directory: of the sweep; shards on several machines may share it, or have their files copied together.
        shard: `(i, n)`; its file is the only one that is written.
    """

    def __init__(self, directory: Path, shard: tuple[int, int] = (1, 1)):
        self.directory = directory
        number, count = shard
        self.path = directory / ("runs.jsonl" if count == 1 else f"runs-{number}of{count}.jsonl")

    def read(self) -> dict[str, dict[str, Any]]:
        """All finished runs by name; a line that a killed process left half written is passed over."""
        runs = {}
        for path in sorted(self.directory.glob("runs*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    run = json.loads(line)
                except ValueError:
                    continue
                runs[run["name"]] = run
        return runs

    def append(self, run: Mapping[str, Any]) -> None:
        """Add one finished run; it is on the disk when this returns."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")  # the half line of a killed process must not swallow this one
            file.write(json.dumps(run, sort_keys=True, default=str).encode("utf-8") + b"\n")
            file.flush()
            os.fsync(file.fileno())


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


def duration(seconds: float) -> str:
    """`"40 s"`, `"12 min"`, `"3 h 05 min"`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
