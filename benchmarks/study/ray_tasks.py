"""A study on a Ray cluster: every cell is a task of Ray's, and is begun as soon as what it needs is known."""

import os
import time
from typing import Any

from benchmarks.study.cells import CannotRun, Cell, resolve_cell
from benchmarks.study.runner import Runner
from benchmarks.study.scripts import CHECKOUT
from benchmarks.study.training import train_cell
from rgd_hf.scripts.errors import UserError


def run_with_ray(runner: Runner, time_budget: float | None, threads: int) -> list[Cell]:
    """Run the missing cells on the cluster that Ray finds (`RAY_ADDRESS`), or on one that it starts here; what is left.

    The lines are kept here, by the process that calls this. A cluster's machines need this checkout at the same place.

    Args:
        runner: the runner of the study.
        time_budget: seconds, see `Runner.run`.
        threads: CPUs of a task.

    Raises:
        UserError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--ray needs Ray: pip install ray, or use --shard i/n instead.") from error
    places = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": str(threads)}
    if not ray.is_initialized():
        ray.init(runtime_env={"env_vars": variables}, include_dashboard=False, log_to_driver=False)
    gpus = ray.cluster_resources().get("GPU", 0)
    slots = max(1, int(gpus or ray.cluster_resources()["CPU"] // threads))
    task = ray.remote(train_cell).options(num_cpus=threads, num_gpus=1 if gpus else 0, max_retries=0)
    waiting, running, started = runner.begin(), dict[Any, Cell](), time.perf_counter()
    while waiting or running:
        ready, reasons = _ready(runner, waiting)
        for cell, resolved in ready[: slots - len(running)]:
            if not runner.fits(cell, time_budget, started):
                break
            runner.report(f"[{len(waiting)} waiting, {len(running)} running] {resolved.name}")
            running[task.remote(runner.study, resolved)] = resolved
            waiting.remove(cell)
        if not running:
            if ready:
                return waiting
            for cell, reason in reasons.items():
                runner.cannot_run(cell, reason)
            return []
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            runner.keep(running.pop(reference), ray.get(reference))
    return []


def _ready(runner: Runner, waiting: list[Cell]) -> tuple[list[tuple[Cell, Cell]], dict[Cell, CannotRun]]:
    """Cells that can be begun, with their settings, and what the others lack."""
    ready: list[tuple[Cell, Cell]] = []
    reasons: dict[Cell, CannotRun] = {}
    finished = runner.finished
    for cell in waiting:
        try:
            ready.append((cell, resolve_cell(runner.study, cell, finished)))
        except CannotRun as error:
            reasons[cell] = error
    return ready, reasons
