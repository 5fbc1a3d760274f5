"""Compare re-weightings with ERM and each other: data sets x methods x learning rates x seeds, through the recipes.

    python -m benchmarks.study benchmarks/configs/compare_quick.yaml --output_dir runs/compare
    python -m benchmarks.study benchmarks/configs/compare.yaml --shard 1/2 --time_budget 60 --output_dir runs/compare

STUDY.yaml names data sets (recipe, options, score) and methods (options of re-weighting). Every method gets the same
learning rates to choose from, by seeds and rows that the final runs are not judged by; a final seed means the same
initialization, batches and evaluation for all methods. Finished runs are lines of `runs*.jsonl` in the output directory:
the same command goes on where it was stopped, an edited study runs only what changed. `python -m benchmarks.report` reads them.
Failed runs are tried again after what can be put right, such as missing data; after an error of their own, such as a NaN
loss, only once the commit or a package has changed, or with `--retry_failed`.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.report.formats import counted
from benchmarks.study.cells import FINAL, Cell
from benchmarks.study.checks import check_options
from benchmarks.study.runner import Runner
from benchmarks.study.study import read_study
from rgd_hf.scripts.cli import parse_args, run_recipe
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.results import console
from rgd_hf.scripts.run_file import duration, parse_shard

USAGE = "python -m benchmarks.study STUDY.yaml --option value ..."
EPILOG = "STUDY.yaml: see benchmarks/configs/compare_quick.yaml, which explains its keys. Exit code 1: final runs failed."
EXIT_RUNS_FAILED = 1


@dataclass
class CompareArguments:
    """Which part of the study runs here, and for how long."""

    output_dir: str = field(
        default="runs/compare", metadata={"help": "Directory of the JSON lines; shards may share it."}
    )
    datasets: list[str] = field(default_factory=list, metadata={"help": "Only these data sets of the study."})
    methods: list[str] = field(default_factory=list, metadata={"help": "Only these methods of the study."})
    seeds: list[int] = field(default_factory=list, metadata={"help": "Only these seeds of final runs."})
    shard: str = field(
        default="1/1",
        metadata={
            "help": "Run the i-th of n parts, e.g. 2/8 in the second task of a job array. Parts need nothing of each "
            "other; give all of them the same study, data sets and methods."
        },
    )
    time_budget: float | None = field(
        default=None,
        metadata={
            "help": "Minutes; by default those of the study, if it names any. No run is begun that would not fit into what "
            "is left of them, by the longest run of its data set so far; the next start goes on from there."
        },
    )
    threads: int = field(
        default=1,
        metadata={
            "help": "CPU threads of a run. The order of a sum, and so its last digits, depends on them: give the same number "
            "to reproduce a run exactly. Shards side by side use more cores than one run with more threads."
        },
    )
    retry_failed: bool = field(
        default=False,
        metadata={
            "help": "Run again all that failed. By default a run whose own error would come again, such as a NaN loss, is "
            "left alone until the commit or a package changes."
        },
    )
    list: bool = field(
        default=False,
        metadata={
            "help": "Train nothing: show the runs, which are finished or failed, and how long the others will take."
        },
    )


def main(argv: Any = None) -> Any:
    """Run (a part of) the study that the arguments name; the finished records of its cells, by identity."""
    argv = [*(sys.argv[1:] if argv is None else argv)]
    study_file = argv.pop(0) if argv and not argv[0].startswith("-") else None
    (args,) = parse_args(
        [CompareArguments], argv, description=(__doc__ or "").split("\n\n")[0], usage=USAGE, epilog=EPILOG
    )
    if study_file is None:
        raise UserError("give a study, e.g. benchmarks/configs/compare_quick.yaml. See --help.")
    if args.time_budget is not None and not args.time_budget >= 0:
        raise UserError(f"--time_budget must not be negative, but minutes from 0, not {args.time_budget:g}.")
    if args.threads < 1:
        raise UserError(f"--threads must be at least 1, not {args.threads}.")
    torch.set_num_threads(args.threads)
    study = read_study(study_file).restricted(args.datasets, args.methods, args.seeds)
    check_options(study, study_file)
    runner = Runner(study, Path(args.output_dir), parse_shard(args.shard), _say, args.retry_failed)
    if args.list:
        _show(runner)
        return runner.finished
    budget = study.time_budget if args.time_budget is None else args.time_budget
    left = runner.run(None if budget is None else 60 * budget)
    _conclude(runner, left)
    if any(cell.stage == FINAL for cell in runner.failed):
        sys.exit(EXIT_RUNS_FAILED)
    return runner.finished


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _show(runner: Runner) -> None:
    states = runner.states()
    for cell, state in states.items():
        _say(f"{state:8}  {cell.name}")
    count = Counter(states.values())
    failed = f" {counted(count['failed'], 'run')} failed." if count["failed"] else ""
    left = _time_left(runner, runner.missing())
    _say(f"{count['finished']} of {len(runner.cells)} runs are finished{left}.{failed}")


def _conclude(runner: Runner, left: Sequence[Cell]) -> None:
    final = sum(cell.stage == FINAL for cell in runner.failed)
    if left:
        _say(
            f"The time budget is spent: {len(left)} of {len(runner.cells)} runs are left{_time_left(runner, left)}. "
            "The same command goes on."
        )
    elif not final:
        which = "final" if runner.failed else len(runner.cells)
        _say(f"All {which} runs are finished: {runner.file.path}")
    for cell, error in runner.failed.items():
        _say(f"failed: {cell.name}: {error}")
    if runner.failed:
        _say(
            f"{counted(len(runner.failed), 'run')} failed, {final} of them final. The same command tries again what "
            "can be put right without a change of the code; --retry_failed tries all."
        )


def _time_left(runner: Runner, missing: Sequence[Cell]) -> str:
    seconds = runner.seconds_of(missing) if missing else None
    return f", about {duration(seconds)} of work left" if seconds is not None else ""


if __name__ == "__main__":
    run_recipe(main)
