"""One trajectory, however the batch of a step is cut into micro-batches, accumulation and processes.

Processes are real and talk through gloo. Every trajectory is compared with `brute_force`: one process, the whole
batch in one forward pass, autograd through the surrogate. How accelerate shards decides which samples meet in a
step: process r gets the micro-batches r, r + P, r + 2P, ... of the sampler, so with micro x accumulation x P = 8
every step holds the same eight samples, in another order.
"""

import pytest
import torch
from brute_force import check
from cut_cases import FOUR_PROCESSES, FSDP_SETTINGS, LABELS_MADE, ONE_PROCESS, RESUMED, TWO_PROCESSES, Setting
from cut_tasks import TASKS, Collator, make_data, make_model
from cut_training import train
from scenarios import doubted

from tests.helpers.releases import shards_on_loading
from tests.helpers.tiny import assert_all_is_learned

pytestmark = pytest.mark.timeout(600)  # the first test of a scenario waits for its launch


@pytest.mark.parametrize("task", TASKS)
def test_whatever_is_compared_has_a_gradient(task):
    assert_all_is_learned(make_model(task), Collator()(make_data(task, 8)))


@pytest.mark.parametrize("case", ONE_PROCESS, ids=str)
def test_one_process(case, tmp_path):
    check(case.setting, train(case, tmp_path))


@pytest.mark.parametrize("case", TWO_PROCESSES, ids=str)
def test_two_processes(case, launched):
    first, second = launched("two", 2, str(case))
    check(case.setting, first)
    assert torch.equal(first.parameters, second.parameters)


@pytest.mark.parametrize("case", FOUR_PROCESSES, ids=str)
def test_four_processes(case, launched):
    first, *others = launched("four", 4, str(case))
    check(case.setting, first)
    assert all(torch.equal(first.parameters, other.parameters) for other in others)


@pytest.mark.parametrize("index", range(len(RESUMED)), ids=[str(setting) for setting in RESUMED])
def test_a_run_resumed_in_the_middle_of_an_epoch_equals_one_never_stopped(index, launched):
    first, second = launched("two", 2, "resumed")
    check(RESUMED[index], first[index])
    assert torch.equal(first[index].parameters, second[index].parameters)


@pytest.mark.parametrize("index", range(len(LABELS_MADE)), ids=[str(case) for case in LABELS_MADE])
def test_labels_that_an_override_makes_on_one_process_are_waited_for_by_none(index, launched):
    first, second = launched("two", 2, "labels made")
    check(LABELS_MADE[index].setting, first[index])
    assert torch.equal(first[index].parameters, second[index].parameters)


def test_what_users_log_on_one_process_takes_nothing_from_the_trainers_logs(launched):
    first, second = launched("two", 2, "own logs")
    check(Setting(), first)
    assert torch.equal(first.parameters, second.parameters)


@pytest.mark.parametrize("index", range(2), ids=["plain", "normalized"])
def test_a_nan_on_one_process_stops_all_and_leaves_the_checkpoint_before_it(index, launched):
    for rank in launched("two", 2, "non-finite"):
        assert "optimizer step 3" in rank[index]["error"]
        assert rank[index]["checkpoints"] == ["checkpoint-2"]


@shards_on_loading
@pytest.mark.parametrize("setting", FSDP_SETTINGS, ids=str)
def test_fsdp2(setting, launched):
    """Sharded parameters and gradients (DTensors), clipped and rescaled: the single process's trajectory."""
    first, second = launched("fsdp", 2, str(setting))
    check(setting, first)
    assert torch.equal(first.parameters, second.parameters)


@shards_on_loading
def test_processes_compare_a_doubted_models_loss_together(launched):
    """Also where the first batch of one of them has no item: all make the same passes, or shards would be waited for."""
    for rank, found in enumerate(launched("fsdp", 2, "doubted")):
        assert found == pytest.approx(doubted(rank, lambda module: None), rel=1e-5)


@shards_on_loading
def test_what_one_process_finds_stops_all(launched):
    first, second = launched("fsdp", 2, "refused")
    assert "Derived derives from LlamaForCausalLM" in first and "per_sample_loss_fn" in first
    assert "on another process the two losses differ" in second
