"""What a training of the vision recipe will cost, measured over a few steps."""

import json
import time

import pytest
import torch
from transformers import Trainer

from benchmarks.cost import image_throughput
from helpers.recipes import tiny
from rgd_hf.scripts.errors import UserError


def test_nothing_is_trained_and_the_cost_is_told(tmp_path, capsys):
    found = image_throughput.main(tiny(tmp_path, "--steps", "2", "--devices", "8"))
    shown = capsys.readouterr().out
    cost = json.loads((tmp_path / "throughput.json").read_text())
    assert found["images_per_second"] == cost["images_per_second"] and cost["images_measured"] == 32
    # A ViT by hand: embedding, 2 blocks of 5 tokens, head; two operations a multiply-add.
    width, tokens = 16, 5
    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    expected = 2 * ((tokens - 1) * 3 * 16 * width + 2 * block + 10 * width)
    assert cost["flops_per_image"] == expected
    assert cost["images"] == 192 and cost["hours"] == pytest.approx(
        192 / cost["images_per_second"] / 8 / 3600
    )
    assert 0 < cost["waiting_share"] < 1 and cost["loader_images_per_second"] > 0
    assert cost["clipped_fraction_by_tau"]["1.0"] == 1.0 and cost["clipped_fraction_by_tau"]["10.0"] == 0.0
    for line in ("Parameters", "images/s", "worker(s)", "GiB", "8 device(s)", "100% at tau=1"):
        assert line in shown
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("option", ["--steps", "--devices"])
def test_a_measurement_is_of_something(option, tmp_path):
    with pytest.raises(UserError, match=f"{option} must be at least 1, not 0"):
        image_throughput.main(tiny(tmp_path, option, "0"))


ROOM = 1.3


class Slow(torch.utils.data.Dataset):
    """Images that take as long to load as their number of seconds says."""

    def __init__(self, count, seconds):
        self.count, self.seconds = count, seconds

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return {"pixel_values": torch.zeros(1, 2, 2), "labels": index % 2}


class Quick(torch.nn.Module):
    """But for the first steps, which leave workers the time to load all that they may hold ready."""

    def __init__(self):
        super().__init__()
        self.head, self.steps = torch.nn.Linear(4, 2), 0

    def forward(self, pixel_values, labels=None):
        self.steps += 1
        if self.steps <= 2:
            time.sleep(0.2)
        logits = self.head(pixel_values.flatten(1))
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


@pytest.mark.parametrize(("workers", "prefetch"), [(0, None), (2, 2), (2, 4)])
def test_what_was_loaded_before_the_clock_ran_is_not_counted(make_args, workers, prefetch):
    """Workers load as fast as they do, whatever they hold ready when the measurement begins.

    A busy machine may let this process wait while they load, but not in every measurement as long as it took to fill all that
    they hold ready, which would be several times the speed.
    """
    schedule = image_throughput.Schedule.of(5, workers, prefetch)
    batch, seconds = 4, 0.005
    args = make_args(
        per_device_train_batch_size=batch,
        dataloader_num_workers=workers,
        dataloader_prefetch_factor=prefetch,
        remove_unused_columns=False,
    )
    fastest = max(1, workers) / seconds
    for _ in range(5):
        trainer = Trainer(Quick(), args, train_dataset=Slow(batch * schedule.batches, seconds))
        cost = image_throughput.measure(trainer, 5)
        assert len(cost.losses) == batch * (6 if workers else 5) and cost.epochs == 1
        assert cost.loader_images_per_second > 0 and 0 < cost.waiting_share < 1
        found = max(cost.loader_images_per_second, cost.images_per_second)
        if found < ROOM * fastest:
            break
    assert found < ROOM * fastest


def test_an_epoch_too_short_for_it_is_told(tmp_path, capsys):
    options = ("--steps", "1", "--dataloader_num_workers", "2")
    found = image_throughput.main(tiny(tmp_path, *options))
    assert found["epochs"] == 2 and "2 epochs were begun" in capsys.readouterr().out
    found = image_throughput.main(tiny(tmp_path, *options, "--per_device_train_batch_size", "6"))
    assert found["epochs"] == 1 and "Short epochs" not in capsys.readouterr().out
