"""Compare methods with ERM and each other: data sets x methods x settings x seeds, through scripts that train one model.

    python -m benchmarks.study benchmarks/configs/quick.yaml --output_dir runs/quick
    python -m benchmarks.study benchmarks/configs/compare.yaml --shard 1/2 --time_budget 60 --output_dir runs/compare
    python -m benchmarks.study benchmarks/configs/evidence.yaml --processes 8 --output_dir runs/evidence
    python -m benchmarks.study benchmarks/configs/evidence.yaml --plan
    python -m benchmarks.study benchmarks/configs/quick.yaml --output_dir runs/quick --rerun CELL [CELL ...]

STUDY.yaml is explained in benchmarks/README.md. Every method gets the same learning rates to choose from, by seeds and rows
that the final runs are not judged by; a final seed means the same initialization, batches and evaluation for all methods.
Finished runs are lines of `runs*.jsonl` in the output directory: the same command resumes where it was stopped, an edited
study runs only what changed, and `python -m benchmarks.report` reads them. Failed runs are tried again after what can be put
right, such as missing data; after an error of their own, such as a NaN loss, only once the commit or a package has changed,
or with `--retry_failed`.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.report.formats import counted
from benchmarks.run_file import duration, parse_shard
from benchmarks.study.cells import FINAL, TUNING, Cell, candidates, is_tuned, options_of, script_of
from benchmarks.study.rerun import find_cells, rerun
from benchmarks.study.runner import Runner
from benchmarks.study.specification import BASELINE, Study
from benchmarks.study.study_file import read_study
from benchmarks.study.workers import Processes, RayTasks, ThisProcess, Workers
from rgd_hf.json_lines import write_json
from rgd_hf.scripts.cli import parse_args, run_recipe
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.messages import console

USAGE = "python -m benchmarks.study STUDY.yaml --option value ..."
EPILOG = (
    "STUDY.yaml: see benchmarks/README.md, which explains its keys. A cell is one training, with its name; a line is its record in "
    "runs*.jsonl. Final cells are compared; cells of tuning choose their settings. Exit code 1: final cells failed."
)
EXIT_RUNS_FAILED = EXIT_RERUN_DIFFERS = 1
STUDY_NAME = "study.json"


@dataclass
class StudyArguments:
    """The part of the study to run, and its time budget."""

    output_dir: str = field(
        default="runs/study", metadata={"help": "Directory for the lines; all shards may use the same one."}
    )
    datasets: list[str] = field(
        default_factory=list, metadata={"help": "Run only these data sets of the study."}
    )
    methods: list[str] = field(
        default_factory=list, metadata={"help": "Run only these methods of the study."}
    )
    seeds: list[int] = field(
        default_factory=list, metadata={"help": "Run only these seeds of the final cells."}
    )
    shard: str = field(
        default="1/1",
        metadata={
            "help": "Run the i-th of n parts, e.g. 2/8 in the second task of a job array. Parts are independent of each "
            "other; give all of them the same study, data sets and methods."
        },
    )
    processes: int = field(
        default=1,
        metadata={
            "help": "Number of cells trained side by side on this machine, each in a process with --threads threads: for many cores, or "
            "for a GPU that small models leave idle (they share it; all must fit into its memory)."
        },
    )
    ray: bool = field(
        default=False,
        metadata={
            "help": "Run the cells as Ray tasks, on the cluster at RAY_ADDRESS or on this machine, with --threads CPUs each "
            "and, if there are GPUs, one GPU."
        },
    )
    time_budget: float | None = field(
        default=None,
        metadata={
            "help": "Time budget in minutes; by default that of the study file, if any. A cell is started only if 1.5 "
            "times the median cell of its data set so far fits into the remaining time; the next start resumes."
        },
    )
    threads: int = field(
        default=1,
        metadata={
            "help": "Number of CPU threads per cell. Rounding depends on it: use the same number to reproduce a cell exactly. "
            "--processes uses many cores better than one cell with many threads."
        },
    )
    retry_failed: bool = field(
        default=False,
        metadata={
            "help": "Repeat all failed cells. By default a cell that failed with an error of its own, such as a NaN loss, is "
            "skipped until the commit or a package changes."
        },
    )
    plan: bool = field(
        default=False,
        metadata={
            "help": "Train nothing: list the cells, which of them are finished or failed, their number per data set, and the "
            "time that the others will take, estimated from finished cells of the data set."
        },
    )
    rerun: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Train these finished cells again, names as printed by --plan, and compare: scores of line and rerun, and what "
            "else differs. No line is written. Exit code 1: a score differs."
        },
    )


def main(argv: Any = None) -> Any:
    """Run (a part of) the study that the arguments name; the finished records of its cells, by identity."""
    argv = [*(sys.argv[1:] if argv is None else argv)]
    study_file = argv.pop(0) if argv and not argv[0].startswith("-") else None
    (args,) = parse_args(
        [StudyArguments], argv, description=(__doc__ or "").split("\n\n")[0], usage=USAGE, epilog=EPILOG
    )
    if study_file is None:
        raise UserError("give a study, e.g. benchmarks/configs/quick.yaml. See --help.")
    if args.time_budget is not None and not args.time_budget >= 0:
        raise UserError(f"--time_budget must not be negative, but minutes from 0, not {args.time_budget:g}.")
    if args.threads < 1:
        raise UserError(f"--threads must be at least 1, not {args.threads}.")
    if args.processes < 1:
        raise UserError(f"--processes must be at least 1, not {args.processes}.")
    if args.ray and args.processes > 1:
        raise UserError("give either --ray, which decides how many cells its cluster takes, or --processes.")
    if args.ray and args.shard != "1/1":
        raise UserError("give either --ray, which spreads all cells over its cluster, or --shard.")
    if args.rerun and (args.processes > 1 or args.ray or args.plan):
        raise UserError(
            "--rerun trains here, one cell after the other: leave out --processes, --ray and --plan."
        )
    torch.set_num_threads(args.threads)
    whole = read_study(study_file)
    study = whole.restricted(args.datasets, args.methods, args.seeds)
    check_options(study, study_file)
    runner = Runner(study, Path(args.output_dir), parse_shard(args.shard), _say, args.retry_failed)
    if args.plan:
        _show(runner)
        return runner.finished
    if args.rerun:
        if not rerun(study, find_cells(runner.finished_cells(), args.rerun), _say):
            sys.exit(EXIT_RERUN_DIFFERS)
        return runner.finished
    _write_study(whole, Path(args.output_dir))
    minutes = study.time_budget if args.time_budget is None else args.time_budget
    budget = None if minutes is None else 60 * minutes
    left = runner.run(_workers(study, args), budget)
    _conclude(runner, left)
    if any(cell.stage == FINAL for cell in (*runner.failed, *runner.left_out)):
        sys.exit(EXIT_RUNS_FAILED)
    return runner.finished


def _workers(study: Study, args: StudyArguments) -> Workers:
    if args.ray:
        return RayTasks(study, args.threads)
    return Processes(study, args.processes, args.threads) if args.processes > 1 else ThisProcess(study)


def check_options(study: Study, where: str) -> None:
    """Check the names and values of all options that the runs of a study are called with, before hours are spent.

    What only the data can tell (whether files and columns exist, whether there are classes) is left to the first run.

    Raises:
        UserError: a script would refuse one, or tuning has no rows to go by; the message names data set and method.
    """
    for data in study.datasets.values():
        for name in data.methods:
            method, place = study.methods[name], f"{where}: datasets: {data.name}: method {name}"
            script = script_of(data, method)
            own = method.recipe is not None
            script.check_names(
                {**data.data, **({} if own else {**data.options, **data.tuning_options})}, place
            )
            script.check_names({**method.options, **method.tune, **data.parts}, place)
            if is_tuned(data, method) and data.tuning_score is None and not script.knows("holdout_fraction"):
                raise UserError(
                    f"{place}: `tuning_score` is missing: {script.path} cannot hold training rows out, so name a metric of its "
                    "validation rows, which final runs are not judged by; or leave one value to choose from."
                )
            if data.random_search is not None and data.tuning_score is None:
                raise UserError(
                    f"{place}: random_search needs a `tuning_score`, a metric of validation rows."
                )
            held_out = data.random_search is None and script.knows("holdout_fraction")
            chooses = data.random_search is not None or is_tuned(data, method)
            same_rows = data.chosen_by == data.score or all(
                name.startswith("test_") for name in (data.chosen_by, data.score)
            )
            if chooses and not held_out and same_rows:
                raise UserError(
                    f"{place}: `tuning_score: {data.chosen_by}` is of the rows of the score, {data.score}: settings would be chosen on the rows that final runs are "
                    "judged by, which favours whoever tries more of them. Name a metric of validation rows, e.g. eval_accuracy "
                    "beside test_accuracy."
                )
            checked: set[str] = set()
            for candidate in candidates(data, method):
                for stage in (TUNING, FINAL):
                    cell = Cell(data.name, name, stage, data.seeds[0], candidate, data.part_values[0])
                    options = options_of(study, cell)
                    known = json.dumps({**options, "learning_rate": None}, sort_keys=True, default=str)
                    if known in checked:  # all learning rates are positive numbers
                        continue
                    checked.add(known)
                    try:
                        script.check_values(options)
                    except UserError as error:
                        remedy = f" Change it, or leave {name} out of the data set's `methods`."
                        raise UserError(f"{place}: {error}{remedy * (name != BASELINE)}") from error


def _write_study(study: Study, directory: Path) -> None:
    """Keep the questions beside the lines: a report answers those that were asked before there were any."""
    path, content = directory / STUDY_NAME, json.loads(study.model_dump_json())
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) == content:
        return
    try:
        write_json(path, content)
    except OSError as error:
        raise UserError(
            f"cannot write {str(path)!r} ({error.strerror}): give another directory as --output_dir."
        ) from error


def _say(line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True)


def _show(runner: Runner) -> None:
    states = runner.states()
    for cell, state in states.items():
        _say(f"{state:8}  {cell.name}")
    for name in runner.study.datasets:
        cells = [cell for cell in states if cell.dataset == name]
        missing = [cell for cell in cells if states[cell] == "missing"]
        tuning = sum(cell.stage == TUNING for cell in cells)
        _say(f"{name}: {tuning} of tuning, {len(cells) - tuning} others{_time_left(runner, missing)}")
    count = Counter(states.values())
    failed = f" {counted(count['failed'], 'cell')} failed." if count["failed"] else ""
    left = _time_left(runner, runner.missing())
    _say(f"{count['finished']} of {len(runner.cells)} cells are finished{left}.{failed}")


def _conclude(runner: Runner, left: Sequence[Cell]) -> None:
    final = sum(cell.stage == FINAL for cell in runner.failed)
    if left:
        _say(
            f"The time budget is spent: {len(left)} of {len(runner.cells)} cells are left{_time_left(runner, left)}. "
            "The same command resumes."
        )
    elif not final and not runner.left_out:
        which = "final" if runner.failed else len(runner.cells)
        _say(f"All {which} cells are finished: {runner.file.path}")
    for cell, error in runner.failed.items():
        _say(f"failed: {cell.name}: {error}")
    if runner.left_out:
        _say(
            f"{counted(len(runner.left_out), 'cell')} would have had no score and were left out: correct the study, and the same "
            "command resumes."
        )
    if runner.failed:
        _say(
            f"{counted(len(runner.failed), 'cell')} failed, {final} of them final. The same command tries again what "
            "can be put right without a change of the code; --retry_failed tries all."
        )


def _time_left(runner: Runner, missing: Sequence[Cell]) -> str:
    seconds = runner.seconds_of(missing) if missing else None
    return f", about {duration(seconds)} of work left" if seconds is not None else ""


if __name__ == "__main__":
    run_recipe(main)
