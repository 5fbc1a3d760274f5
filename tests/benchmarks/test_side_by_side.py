"""Studies whose cells are trained side by side: in processes, as Ray's tasks, in any order in which they end."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from studies import STUDY, by_cell, changed, lines, write

from benchmarks.study import __main__ as study
from benchmarks.study.cells import Candidate, plan
from benchmarks.study.runner import Runner
from benchmarks.study.study_file import read_study
from benchmarks.study.training import train_cell
from benchmarks.study.workers import Processes, WorkerDied
from rgd_hf.scripts.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FEW = {
    **STUDY,
    "learning_rate_factors": [1],
    "metrics": [],
    "datasets": {"few": {**STUDY["datasets"]["few"], "metrics": []}},
}

pytestmark = pytest.mark.usefixtures("in_the_checkout")


class AnyOrder:
    """Trains here, and lets cells end in an order of its own: the first of tuning last."""

    def __init__(self, of, number, seed=0, dies=lambda cell: False):
        self.study, self.number, self.random, self.dies = of, number, random.Random(seed), dies
        self.running, self.most, self.closed = [], 0, False
        self.early = []  # final runs of data sets whose tuning still ran

    def submit(self, cell):
        tuned = {other.dataset for other in self.running if other.stage == "tuning"}
        if cell.stage == "final" and cell.dataset in tuned:
            self.early.append(cell.name)
        self.running.append(cell)
        self.most = max(self.most, len(self.running))

    def wait(self):
        held = len(self.running) > 1
        cell = self.running.pop(self.random.randrange(held, len(self.running)))
        return [(cell, WorkerDied("killed") if self.dies(cell) else train_cell(self.study, cell))]

    def close(self):
        self.closed = True


def run(file, directory, number, **workers):
    whole = read_study(file)
    runner, workers = Runner(whole, directory, (1, 1), print), AnyOrder(whole, number, **workers)
    return runner, workers, lambda budget=None: runner.run(workers, budget)


@pytest.mark.parametrize("number", [2, 3, 16])
def test_the_order_in_which_cells_end_does_not_matter(whole, tmp_path, number):
    """Final runs wait for all tuning of their data set: it chooses their settings, and methods have the same seeds at any time."""
    _, workers, start = run(whole[0], tmp_path, number, seed=number)
    assert start() == [] and by_cell(tmp_path) == by_cell(whole[1]) and not workers.early
    assert workers.most == number and workers.closed


def test_rays_tasks_give_the_same_lines(whole, tmp_path):
    """In a process of its own: a cluster is started there, and ended with it."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    command = [sys.executable, "-m", "benchmarks.study", whole[0], "--output_dir", str(tmp_path), "--ray"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert by_cell(tmp_path) == by_cell(whole[1])


def test_a_time_budget_leaves_cells_for_the_next_start(whole, tmp_path, monkeypatch):
    """Those that run when it ends are kept; what a long run does not fit into, a short one may."""
    runner, workers, start = run(whole[0], tmp_path, 3)
    monkeypatch.setattr(runner, "_fits", lambda cell, budget, started: workers.most < 3)
    left = start(60.0)
    assert len(lines(tmp_path)) == 3 and len(left) == len(runner.cells) - 3
    monkeypatch.undo()
    monkeypatch.setattr(runner, "seconds", lambda cell, statistic: 10.0 if cell.dataset == "few" else 3600.0)
    left = start(60.0)
    assert {cell.dataset for cell in left} == {"digits"} and not runner.failed
    assert sum(line["dataset"] == "few" for line in lines(tmp_path)) == 2 * 2 * 2 + 2 * 3
    assert run(whole[0], tmp_path, 3)[2]() == [] and by_cell(tmp_path) == by_cell(whole[1])


def test_processes_give_the_same_lines_and_one_that_is_killed_costs_its_cell_alone(whole, tmp_path, capfd):
    dies = {"options": {"reweighting": "kl", "tau": 1, "fail": "killed"}}
    more = changed("methods", "dies", value=dies)
    file = write(changed("datasets", "few", "methods", value=["erm", "kl", "dies"], study=more), tmp_path)
    with pytest.raises(SystemExit):
        study.main([file, "--output_dir", str(tmp_path), "--processes", "2", "--datasets", "few"])
    found, killed = by_cell(tmp_path), "few/dies/lr0.5/seed0/final"
    error = found[killed]["error"]
    assert "was killed" in error and "fewer --processes" in error
    assert len(found) == 6 * 2 + 3 * 3 and [name for name in found if "error" in found[name]] == [killed]
    expected = {name: line for name, line in by_cell(whole[1]).items() if line["dataset"] == "few"}
    assert {name: line for name, line in found.items() if line["method"] != "dies"} == expected
    output, errors = capfd.readouterr()
    assert "2 running" in output and "  few/kl/lr0.5/seed0/final: accuracy 0." in output
    assert "1 cell failed" in output and "Traceback" not in errors and "Warning" not in errors
    missing = Runner(read_study(file).restricted(["few"]), tmp_path, (1, 1), print).missing()
    assert [cell.name for cell in missing] == ["few/dies/lr?/seed0/final"]


def test_a_study_whose_processes_all_die_ends(whole, tmp_path):
    _, workers, start = run(whole[0], tmp_path, 2, dies=lambda cell: True)
    with pytest.raises(UserError, match=r"the last 5 cells all ended without a result: killed.*resumes"):
        start()
    assert workers.closed and len(lines(tmp_path)) == 5 and all("error" in line for line in lines(tmp_path))


@pytest.fixture
def slow(tmp_path, monkeypatch):
    """A study whose first cell takes a minute, and how to wait until that has begun in a process."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def wait():
        deadline = time.time() + 200
        while not list(tmp_path.rglob("begun")):
            assert time.time() < deadline
            time.sleep(0.05)

    return write(changed("methods", "erm", "options", "fail", value="slow", study=FEW), tmp_path), wait


def test_a_process_leaves_ctrl_c_to_its_parent_and_cleans_up_when_that_ends_it(slow, tmp_path):
    whole, wait = read_study(slow[0]), slow[1]
    with contextlib.closing(Processes(whole, 1, threads=1)) as workers:
        workers.submit(replace(plan(whole)[0], candidate=Candidate("lr1", 1.0)))
        ((process, _),) = workers._busy.values()
        wait()
        os.kill(process.pid, signal.SIGINT)
        process.join(0.5)
        assert process.is_alive()
    assert process.exitcode == 0 and not list(tmp_path.glob("study-*"))


def command(file, folder):
    """A study of one cell, and so of one process beside its parent."""
    options = ["--output_dir", str(folder / "out"), "--processes", "2", "--methods", "erm", "--seeds", "0"]
    return [sys.executable, "-m", "benchmarks.study", file, *options]


def test_no_process_goes_on_when_the_parent_was_killed(slow, tmp_path):
    with subprocess.Popen(command(slow[0], tmp_path), stdout=subprocess.PIPE) as process:
        slow[1]()
        process.kill()
        process.communicate(timeout=30)  # the pipe is closed by the last of them


def test_ctrl_c_ends_a_study_with_one_line(slow, tmp_path):
    def listen():
        """What a shell starts in the background ignores Ctrl-C, and all that it starts."""
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(
        command(slow[0], tmp_path), stderr=subprocess.PIPE, start_new_session=True, preexec_fn=listen
    ) as process:
        slow[1]()
        os.killpg(process.pid, signal.SIGINT)  # to all of them, as a terminal sends it
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and b"The same command resumes" in errors and b"Traceback" not in errors
