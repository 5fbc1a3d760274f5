"""What a training of the vision recipe will cost, measured over a few steps."""

import json

import pytest

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
    assert 0 < cost["waiting_share"] < 1 and cost["loader_images_per_second"] > cost["images_per_second"]
    assert cost["clipped_fraction_by_tau"]["1.0"] == 1.0 and cost["clipped_fraction_by_tau"]["10.0"] == 0.0
    for line in ("Parameters", "images/s", "worker(s)", "GiB", "8 device(s)", "100% at tau=1"):
        assert line in shown
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("option", ["--steps", "--devices"])
def test_a_measurement_is_of_something(option, tmp_path):
    with pytest.raises(UserError, match=f"{option} must be at least 1, not 0"):
        image_throughput.main(tiny(tmp_path, option, "0"))
