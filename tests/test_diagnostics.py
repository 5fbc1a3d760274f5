import math

import pytest
import torch

from rgd_hf.diagnostics import NonFiniteLossError, WeightStatistics, stop_if_not_finite, warn_of_saturation
from rgd_hf.divergences import rgd_weights
from rgd_hf.weighting import Items


def one_process(tensor):
    return tensor


def test_statistics_are_those_of_all_items_added():
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(30, generator=generator) * 2
    reference = (torch.rand(30, generator=generator) > 0.3).float()
    weights = rgd_weights(losses)
    statistics = WeightStatistics(torch.device("cpu"))
    for part in (slice(0, 7), slice(7, 30)):
        statistics.add(Items(losses[part] * reference[part], reference[part]), weights[part], tau=1.0, step=1)
    kept = reference.bool()
    w, x = weights[kept].double(), losses[kept].double()
    found = statistics.collect(one_process)
    assert found["weight_mean"] == pytest.approx(w.mean().item(), rel=1e-6)
    assert found["weight_max"] == pytest.approx(w.max().item(), rel=1e-6)
    assert found["effective_sample_size"] == pytest.approx(
        (w.sum() ** 2 / (len(w) * (w**2).sum())).item(), rel=1e-6
    )
    assert found["clipped_fraction"] == pytest.approx((x > 1).double().mean().item())
    assert found["unweighted_loss"] == pytest.approx(x.mean().item(), rel=1e-6)
    assert math.isinf(statistics.first_bad_step(one_process))


def test_collecting_starts_new_sums():
    statistics = WeightStatistics(torch.device("cpu"))
    statistics.add(Items(torch.ones(2), torch.ones(2)), torch.full((2,), 2.0), tau=0.5, step=1)
    assert statistics.collect(one_process)["weight_mean"] == 2.0
    assert statistics.collect(one_process) == {}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_bad_step_is_remembered(bad):
    statistics = WeightStatistics(torch.device("cpu"))
    for step, loss in enumerate([1.0, bad, bad, 1.0], start=1):
        statistics.add(Items(torch.tensor([loss]), torch.ones(1)), torch.ones(1), tau=1.0, step=step)
    statistics.collect(one_process)
    assert statistics.first_bad_step(one_process) == 2
    with pytest.raises(NonFiniteLossError, match="step 2,"):
        stop_if_not_finite(2.0, "somewhere")


def test_saturation_is_warned_of_with_a_remedy():
    with pytest.warns(UserWarning, match=r"--tau 3\.6"):
        assert warn_of_saturation({"clipped_fraction": 0.9, "unweighted_loss": 1.8}, tau=1.0)
    assert not warn_of_saturation({"clipped_fraction": 0.5, "unweighted_loss": 1.8}, tau=1.0)
    assert not warn_of_saturation({}, tau=1.0)
