"""One trajectory, however the batch of a step is cut into micro-batches, accumulation and processes.

Processes are real and talk through gloo. Every trajectory is compared with `brute_force`: one process, the whole
batch in one forward pass, autograd through the surrogate. How accelerate shards decides which samples meet in a
step: process r gets the micro-batches r, r + P, r + 2P, ... of the sampler, so with micro x accumulation x P = 8
every step holds the same eight samples, in another order.
"""

import gc
from functools import lru_cache

import pytest
import torch
from brute_force import brute_force
from cut_cases import FOUR_PROCESSES, ONE_PROCESS, TWO_PROCESSES, Case
from cut_training import train
from process_group import launch


@pytest.fixture(scope="module", autouse=True)
def fast_garbage_collection():
    """Every train() collects garbage; what importing left behind is not worth looking through each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Trajectories of all cases of a number of processes: one launch, when first asked for."""

    @lru_cache(maxsize=None)
    def results(processes: int) -> list[dict] | Exception:
        try:
            return launch("cuts", processes, tmp_path_factory.mktemp(f"cuts{processes}"))
        except Exception as error:  # one launch, one failure: every test reports it, none launches again
            return error

    def trajectories(case: Case) -> list:
        ranks = results(case.cut.processes)
        if isinstance(ranks, Exception):
            raise ranks
        return [rank[str(case)] for rank in ranks]

    return trajectories


def check(case: Case, found) -> None:
    expected = brute_force(case.setting)
    torch.testing.assert_close(found.start, expected.start, rtol=0, atol=0)
    moved = (expected.parameters - expected.start).norm()
    assert moved > 0.3, "a trajectory that goes nowhere proves nothing"
    assert (found.parameters - expected.parameters).norm() / expected.parameters.norm() < 1e-5
    assert (found.parameters - expected.parameters).norm() / moved < 1e-5
    assert len(found.logs) == len(expected.logs)
    for step, (logged, right) in enumerate(zip(found.logs, expected.logs), start=1):
        for name, value in right.items():
            assert logged[name] == pytest.approx(value, rel=1e-4), f"{name} of step {step}"
    assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-5)
    assert found.eval_loss == pytest.approx(expected.eval_loss, rel=1e-5)


@pytest.mark.parametrize("case", ONE_PROCESS, ids=str)
def test_one_process(case, tmp_path):
    check(case, train(case, tmp_path))


@pytest.mark.parametrize("case", TWO_PROCESSES, ids=str)
def test_two_processes(case, launched):
    first, second = launched(case)
    check(case, first)
    assert torch.equal(first.parameters, second.parameters)


@pytest.mark.parametrize("case", FOUR_PROCESSES, ids=str)
def test_four_processes(case, launched):
    first, *others = launched(case)
    check(case, first)
    assert all(torch.equal(first.parameters, other.parameters) for other in others)
