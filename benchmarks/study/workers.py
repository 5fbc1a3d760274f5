"""Where the cells of a study are trained: in this process, in several of this machine, or as the tasks of a Ray cluster."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch

from benchmarks.study.cells import Cell
from benchmarks.study.scripts import CHECKOUT
from benchmarks.study.specification import Study
from benchmarks.study.training import Line, train_cell
from rgd_hf.scripts.errors import UserError

THREADS = "OMP_NUM_THREADS"
SECONDS_TO_LEAVE = 10.0


class WorkerDied(Exception):
    """What trained a cell ended without a line; the message says how."""


class Workers(Protocol):
    """What trains cells, whose settings are chosen.

    Attributes:
        number: how many cells are trained side by side.
    """

    number: int

    def submit(self, cell: Cell) -> None:
        """Begin a cell; at most `number` of them at a time."""

    def wait(self) -> list[tuple[Cell, Line | WorkerDied]]:
        """Wait until a cell that was begun has ended; all that have, each once."""

    def close(self) -> None:
        """End what is still trained; those cells leave no line."""


class ThisProcess:
    """Trains one cell after the other, here.

    Args:
        study: the study of the cells.
    """

    number = 1

    def __init__(self, study: Study):
        self._study = study
        self._ended: list[tuple[Cell, Line | WorkerDied]] = []

    def submit(self, cell: Cell) -> None:
        """Train the cell."""
        self._ended.append((cell, train_cell(self._study, cell)))

    def wait(self) -> list[tuple[Cell, Line | WorkerDied]]:
        """The cell that was trained."""
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Nothing is left running."""


class Processes:
    """Processes of this machine, each of which trains one cell after the other: imports are paid once.

    A process is started when there is a cell for it, also in the place of one that died, and ends when its parent does.

    Args:
        study: the study of the cells.
        number: number of processes.
        threads: threads of each.
    """

    def __init__(self, study: Study, number: int, threads: int):
        self.number = number
        self._given = study, threads
        self._idle: list[tuple[Any, Connection]] = []
        self._busy: dict[Connection, tuple[Any, Cell]] = {}

    def submit(self, cell: Cell) -> None:
        """Give the cell to an idle process, or to a new one."""
        self._idle = [(process, connection) for process, connection in self._idle if process.is_alive()]
        process, connection = self._idle.pop() if self._idle else self._start()
        with contextlib.suppress(BrokenPipeError):  # `wait` finds that it died
            connection.send(cell)
        self._busy[connection] = process, cell

    def wait(self) -> list[tuple[Cell, Line | WorkerDied]]:
        """Wait until a process has a line, or has died."""
        ended: list[tuple[Cell, Line | WorkerDied]] = []
        for connection in wait(list(self._busy)):
            assert isinstance(connection, Connection)
            process, cell = self._busy.pop(connection)
            try:
                ended.append((cell, connection.recv()))
                self._idle.append((process, connection))
            except (EOFError, ConnectionResetError):
                ended.append((cell, WorkerDied(_how_it_ended(process))))
        return ended

    def close(self) -> None:
        """End the processes; what they were training removes its temporary files."""
        processes = [process for process, _ in [*self._idle, *self._busy.values()]]
        for process in processes:
            process.terminate()
        leave = time.monotonic() + SECONDS_TO_LEAVE
        for process in processes:
            process.join(max(0.0, leave - time.monotonic()))
            process.kill()
        self._idle, self._busy = [], {}

    def _start(self) -> tuple[Any, Connection]:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        here, there = context.Pipe()
        process = context.Process(target=_train_cells, args=(there, *self._given))
        with _inherited_by_a_worker(self._given[1]):
            process.start()
        there.close()
        return process, here


@contextlib.contextmanager
def _inherited_by_a_worker(threads: int) -> Iterator[None]:
    """What a process must have from its first import on: its number of threads, and no ear for Ctrl-C, which its parent obeys."""
    resource_tracker.ensure_running()  # started together with a worker, it would lift the mask
    before, mask = os.environ.get(THREADS), signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ[THREADS] = str(threads)
    try:
        yield
    finally:
        # A Ctrl-C that came meanwhile arrives now.
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if before is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = before


def _train_cells(connection: Connection, study: Study, threads: int) -> None:
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit()
    )  # so that what is trained removes its temporary files
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    torch.set_num_threads(threads)
    while True:
        connection.send(train_cell(study, connection.recv()))


def _end_with_the_parent() -> None:
    """Nobody would keep the line of a process whose parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _how_it_ended(process: Any) -> str:
    process.join(SECONDS_TO_LEAVE)
    code = process.exitcode
    if code == -signal.SIGKILL:
        return "the process of this cell was killed, as a system does that is short of memory: give fewer --processes"
    how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
    return f"the process of this cell ended {how} before it had a result"


class RayTasks:
    """Tasks on the cluster that Ray finds (`RAY_ADDRESS`), or on one that it starts here.

    A cluster's machines need this checkout at the same place.

    Args:
        study: the study of the cells.
        threads: CPUs of a task, which also has a GPU where the cluster has some.

    Raises:
        UserError: Ray is not installed.
    """

    def __init__(self, study: Study, threads: int):
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "--ray needs Ray: pip install ray, or use --processes on one machine, --shard i/n on several."
            ) from error
        places = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {"PYTHONPATH": os.pathsep.join(places), THREADS: str(threads)}
        if not ray.is_initialized():
            ray.init(runtime_env={"env_vars": variables}, include_dashboard=False, log_to_driver=False)
        gpus = ray.cluster_resources().get("GPU", 0)
        self.number = max(1, int(gpus or ray.cluster_resources()["CPU"] // threads))
        self._ray, self._study = ray, study
        self._task = ray.remote(train_cell).options(
            num_cpus=threads, num_gpus=1 if gpus else 0, max_retries=0
        )
        self._running: dict[Any, Cell] = {}

    def submit(self, cell: Cell) -> None:
        """Make the cell a task."""
        self._running[self._task.remote(self._study, cell)] = cell

    def wait(self) -> list[tuple[Cell, Line | WorkerDied]]:
        """Wait until a task has ended."""
        done, _ = self._ray.wait(list(self._running), num_returns=1)
        return [(self._running.pop(reference), self._result(reference)) for reference in done]

    def _result(self, reference: Any) -> Line | WorkerDied:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return WorkerDied(f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Cancel the tasks that still run."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
