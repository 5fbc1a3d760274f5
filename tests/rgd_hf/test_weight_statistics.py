"""What the logs say of the weights: against all items by hand, from log to log, and over resumes."""

import math
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from rgd_hf import ReweightedTrainer
from rgd_hf.divergences import rgd_weights
from rgd_hf.items import Items
from rgd_hf.observers import NonFiniteLossError, WeightHistogram, WeightStatistics
from rgd_hf.observers.histogram import HISTOGRAM
from rgd_hf.observers.statistics import KEPT_BATCHES, KEPT_ITEMS, stop_if_not_finite
from rgd_hf.weightings import KL
from tests.helpers.tiny import classification_data, tiny_bert


class OneProcess:
    """What an observer needs of accelerate."""

    @staticmethod
    def gather(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    @staticmethod
    def reduce(tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        return tensor


def statistics_of(limit: float = math.inf) -> WeightStatistics:
    statistics = WeightStatistics()
    statistics.reset(torch.device("cpu"))
    statistics.limit = limit
    return statistics


def log(statistics: WeightStatistics) -> dict[str, float]:
    found = statistics.collect(statistics.merged(OneProcess))
    statistics.reset(torch.device("cpu"), statistics.kept)
    return found


def by_hand(
    losses: torch.Tensor, reference: torch.Tensor, weights: torch.Tensor, limit: float
) -> dict[str, Any]:
    """Losses count once where they count at all; weights as often as the reference says."""
    r, w, x = (each[reference > 0].double() for each in (reference, weights, losses))
    return {
        "weight_mean": ((r * w).sum() / r.sum()).item(),
        "weight_max": w.max().item(),
        "effective_sample_size": ((r * w).sum() ** 2 / (r.sum() * (r * w**2).sum())).item(),
        "clipped_fraction": (x > limit).double().mean().item(),
        "unweighted_loss": x.mean().item(),
    }


def reference_weights(*shape: int, generator: torch.Generator) -> torch.Tensor:
    """Class and sample weights, about a third of them 0."""
    return (torch.rand(*shape, generator=generator) * 3 - 1).clamp(min=0)


def test_every_statistic_is_that_of_the_items_since_the_last_log():
    """Three logs, the largest weights and losses in the first: nothing of it may stand in the next."""
    generator, statistics = torch.Generator().manual_seed(0), statistics_of(limit=1.0)
    found = []
    for scale in (3.0, 1.0, 2.0):
        losses = torch.rand(30, generator=generator) * scale
        reference = reference_weights(30, generator=generator)
        weights = rgd_weights(losses, tau=4.0)
        for part in (slice(0, 7), slice(7, 30)):
            items = Items(losses[part] * (reference[part] > 0), reference[part])
            statistics.observe(items, weights[part], step=1)
        found.append(log(statistics))
        assert found[-1] == pytest.approx(by_hand(losses, reference, weights, 1.0), rel=1e-5)
    assert found[0]["weight_max"] > found[2]["weight_max"] > found[1]["weight_max"]
    assert log(statistics) == {}
    assert statistics.first_bad_steps(OneProcess.gather) == (math.inf, math.inf)


@pytest.mark.parametrize("largest", [9, 2 * KEPT_ITEMS // KEPT_BATCHES], ids=["few items", "many items"])
def test_many_micro_batches_of_different_sizes_are_all_counted(largest):
    """More than are kept before they are added up; with bad ones of which the first has to be found."""
    generator, statistics = torch.Generator().manual_seed(0), statistics_of(limit=1.0)
    parts = []
    for step in range(1, 2 * KEPT_BATCHES + 8):
        size = int(torch.randint(1, largest, (), generator=generator))
        losses, weights = (
            torch.rand(size, 2, generator=generator) * 2,
            torch.rand(size, 2, generator=generator),
        )
        reference = reference_weights(size, 2, generator=generator)
        losses = losses * (reference > 0)
        statistics.observe(Items(losses, reference), weights, step=step)
        parts.append([t.flatten().clone() for t in (losses, reference, weights)])
        # What a user's function returned is the user's.
        weights.fill_(math.nan)
    expected = by_hand(*(torch.cat(column) for column in zip(*parts, strict=True)), 1.0)
    assert log(statistics) == pytest.approx(expected, rel=1e-4)
    assert statistics.first_bad_steps(OneProcess.gather) == (math.inf, math.inf)
    first_loss, first_weight = KEPT_BATCHES // 2, KEPT_BATCHES + 3
    for step in range(1, 2 * KEPT_BATCHES):
        losses, weights = torch.ones(step % 5 + 1), torch.ones(step % 5 + 1)
        losses[-1] = math.nan if step >= first_loss and step % 3 == first_loss % 3 else 1.0
        weights[0] = -1.0 if step >= first_weight else 1.0
        statistics.observe(Items(losses, torch.ones_like(losses)), weights, step=step)
    assert statistics.first_bad_steps(OneProcess.gather) == (first_loss, first_weight)


def test_the_state_has_what_was_observed_whenever_it_is_read():
    statistics = statistics_of()
    for step in range(1, 4):
        statistics.observe(Items(torch.ones(5), torch.ones(5)), torch.full((5,), 2.0), step)
        assert statistics.state["sums"].tolist() == [5 * step, 10 * step, 20 * step, 5 * step, 0, 5 * step]
        assert statistics.state["largest_weight"] == 2


def test_a_micro_batch_without_items_changes_nothing():
    """As of a function that returns the losses of the masked tokens alone, where none is masked."""
    statistics = statistics_of()
    statistics.observe(Items(torch.ones(0), torch.ones(0)), torch.ones(0), step=1)
    assert log(statistics) == {}


def test_a_limit_that_changes_counts_for_its_own_micro_batch():
    statistics = statistics_of()
    for limit in (2.0, 0.5, torch.tensor(1.5), torch.tensor(math.inf)):
        statistics.limit = limit
        statistics.observe(Items(torch.tensor([1.0, 1.0, 1.8]), torch.ones(3)), torch.ones(3), step=1)
    assert log(statistics)["clipped_fraction"] == pytest.approx((0 + 3 + 1 + 0) / 12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_bad_steps_are_remembered_over_logs(bad):
    statistics = statistics_of()
    weights = {4: math.nan, 5: -0.5, 6: -0.5}
    for step, loss in enumerate([1.0, bad, bad, 1.0, 1.0, 1.0], start=1):
        weight = weights.get(step, 1.0)
        statistics.observe(Items(torch.tensor([loss]), torch.ones(1)), torch.tensor([weight]), step=step)
        log(statistics)
    assert statistics.first_bad_steps(OneProcess.gather) == (2, 4)
    with pytest.raises(NonFiniteLossError, match="step 2,"):
        stop_if_not_finite(2.0, "somewhere")


@pytest.mark.parametrize("weight", [-1e-3, math.nan, math.inf, -math.inf])
def test_a_weight_that_cannot_be_used_is_seen_among_others(weight):
    statistics = statistics_of()
    for step in (1, 2, 3):
        weights = torch.tensor([1.0, 2.0, weight if step > 1 else 1.0])
        statistics.observe(Items(torch.ones(3), torch.ones(3)), weights, step=step)
    assert statistics.first_bad_steps(OneProcess.gather) == (math.inf, 2)


def test_the_weight_of_an_item_that_does_not_count_is_no_bad_weight():
    statistics = statistics_of()
    items = Items(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]))
    statistics.observe(items, torch.tensor([2.0, -1.0]), step=1)
    assert statistics.first_bad_steps(OneProcess.gather) == (math.inf, math.inf)
    assert log(statistics)["weight_max"] == 2.0


def test_saturation_is_warned_of_with_a_remedy():
    advice = KL(tau=1.0).advice({"clipped_fraction": 0.9, "unweighted_loss": 1.8})
    assert advice is not None and "tau=3.6" in advice and "90%" in advice
    assert KL(tau=1.0).advice({"clipped_fraction": 0.5, "unweighted_loss": 1.8}) is None
    assert KL(tau=1.0).advice({}) is None


def test_a_log_that_began_before_the_interruption_has_all_its_items(make_args, tmp_path):
    """Checkpoints between two logs hold the statistics and the histogram so far."""

    def train(resume=None):
        args = make_args(max_steps=6, logging_steps=3, save_strategy="steps", save_steps=2)
        trainer = ReweightedTrainer(tiny_bert(), args, train_dataset=classification_data(48))
        trainer.add_observer(WeightHistogram)
        trainer.train(resume_from_checkpoint=resume)
        return [log for log in trainer.state.log_history if "weight_mean" in log]

    names = ["weight_mean", "weight_max", "effective_sample_size", "clipped_fraction", "unweighted_loss"]
    whole = train()
    resumed = train(str(tmp_path / "out" / "checkpoint-2"))
    assert len(whole) == len(resumed) == 2
    for expected, found in zip(whole, resumed, strict=True):
        assert [found[name] for name in names] == pytest.approx([expected[name] for name in names])
        assert found[HISTOGRAM] == expected[HISTOGRAM] and sum(found[HISTOGRAM]) == 24


def test_observers_can_be_added_after_an_interrupted_training(make_args):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    data = classification_data(16)
    trainer = ReweightedTrainer(tiny_bert(), make_args(), train_dataset=data, callbacks=[Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(Interrupt)
    trainer.add_observer(WeightHistogram)
    trainer.train()
    assert HISTOGRAM in trainer.state.log_history[0]


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("weights", ["none", "class", "sample"])
def test_plain_training_logs_the_loss_without_class_and_sample_weights(weights, steps, make_args):
    data = classification_data(16)
    if weights == "sample":
        data = [{**row, "sample_weight": torch.tensor(float(i % 3))} for i, row in enumerate(data)]
    args = make_args(max_steps=2, logging_steps=steps, learning_rate=0.0, per_device_train_batch_size=8)
    model, others = tiny_bert().eval(), {"class_weights": "1,4,2"} if weights == "class" else {}
    trainer = ReweightedTrainer(model, args, train_dataset=data, reweighting="none", **others)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    if weights == "none":
        assert not any("unweighted_loss" in log for log in logs)
        return
    counted = [row for row in data if row.get("sample_weight", 1) > 0]
    batch = {name: torch.stack([row[name] for row in counted]) for name in ("input_ids", "labels")}
    found = sum(log["unweighted_loss"] for log in logs) / len(logs)
    assert len(logs) == 2 // steps and all("weight_mean" not in log for log in logs)
    if steps == 2:  # of all samples, each once
        assert found == pytest.approx(model.eval()(**batch).loss.item(), rel=1e-5)
        assert found != pytest.approx(logs[0]["loss"], rel=1e-3)
