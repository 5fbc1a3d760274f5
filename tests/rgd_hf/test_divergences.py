import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rgd_hf.divergences import divergences, largest_weight, rgd_surrogate, rgd_weights
from tests.helpers.releases import compiles

losses_lists = st.lists(st.floats(-5, 50, width=32), min_size=1, max_size=20)
taus = st.floats(0.05, 20)
names = st.sampled_from(sorted(divergences()))


def closed_form(loss: float, divergence: str, tau: float) -> float:
    z = min(loss, tau) / (tau + 1)
    return {"kl": math.exp(z), "chi2": max(1 + z, 0.0), "reverse_kl": 1 / (1 - z), "none": 1.0}[divergence]


@given(losses_lists, names, taus)
def test_weights_are_the_closed_form(losses, divergence, tau):
    expected = torch.tensor([closed_form(loss, divergence, tau) for loss in losses])
    torch.testing.assert_close(
        rgd_weights(torch.tensor(losses), divergence, tau), expected, rtol=2e-6, atol=1e-6
    )


@given(losses_lists, names, taus)
def test_weights_grow_with_the_loss_and_never_pass_their_bound(losses, divergence, tau):
    weights = rgd_weights(torch.tensor(sorted(losses)), divergence, tau)
    assert (weights.diff() >= 0).all()
    assert weights.max() <= largest_weight(divergence, tau) * (1 + 1e-6)
    assert (weights >= 0).all()


@given(losses_lists, names, taus)
def test_weight_is_the_derivative_of_the_surrogate(losses, divergence, tau):
    x = torch.tensor(losses, requires_grad=True)
    (slope,) = torch.autograd.grad(rgd_surrogate(x, divergence, tau).sum(), x)
    torch.testing.assert_close(slope, rgd_weights(x, divergence, tau), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("divergence", sorted(divergences()))
def test_surrogate_and_weight_agree_at_the_clip_itself(divergence):
    x = torch.tensor([1.0], requires_grad=True)
    (slope,) = torch.autograd.grad(rgd_surrogate(x, divergence, 1.0).sum(), x)
    assert slope.item() == pytest.approx(largest_weight(divergence, 1.0), rel=1e-6)


@given(names, taus, st.floats(0.01, 10))
def test_surrogate_is_the_integral_of_the_weight(divergence, tau, loss):
    grid = torch.linspace(0, loss, 20001, dtype=torch.float64)
    integral = torch.trapezoid(
        torch.tensor([closed_form(x, divergence, tau) for x in grid[::20].tolist()]), grid[::20]
    )
    found = rgd_surrogate(torch.tensor([loss]), divergence, tau).item()
    assert found == pytest.approx(integral.item(), rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4), (0,), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_shape_and_float_dtype_gives_detached_float32(shape, dtype):
    losses = torch.rand(shape).to(dtype).requires_grad_()
    weights = rgd_weights(losses)
    assert weights.shape == losses.shape and weights.dtype == torch.float32 and not weights.requires_grad
    surrogate = rgd_surrogate(losses)
    assert surrogate.shape == losses.shape and surrogate.dtype == torch.float32 and surrogate.requires_grad


def test_huge_half_precision_losses_do_not_overflow():
    weights = rgd_weights(torch.tensor([60000.0], dtype=torch.float16), "kl", tau=50.0)
    assert weights.item() == pytest.approx(math.exp(50 / 51))


@pytest.mark.parametrize("divergence", sorted(divergences()))
def test_non_finite_losses_get_the_largest_weight(divergence):
    weights = rgd_weights(torch.tensor([math.nan, math.inf]), divergence, 2.0)
    torch.testing.assert_close(weights, torch.full((2,), largest_weight(divergence, 2.0)))


@pytest.mark.parametrize("function", [rgd_weights, rgd_surrogate])
def test_wrong_arguments_say_what_is_allowed(function):
    losses = torch.ones(2)
    with pytest.raises(ValueError, match="0-dimensional"):
        function(torch.tensor(1.0))
    with pytest.raises(ValueError, match="floating-point"):
        function(torch.tensor([1, 2]))
    with pytest.raises(TypeError, match="list"):
        function([1.0, 2.0])
    with pytest.raises(ValueError, match="'kl', 'chi2', 'reverse_kl', 'none'"):
        function(losses, "KL")
    for tau in (0.0, -1.0, math.inf, math.nan, "1", True):
        with pytest.raises(ValueError, match="positive, finite"):
            function(losses, "kl", tau)


@compiles
@pytest.mark.parametrize("divergence", sorted(divergences()))
def test_compiles_without_a_graph_break(divergence):
    compiled = torch.compile(lambda x: rgd_weights(x, divergence, 1.5), fullgraph=True, backend="eager")
    losses = torch.rand(5) * 3
    torch.testing.assert_close(compiled(losses), rgd_weights(losses, divergence, 1.5))


def test_needs_torch_alone():
    code = "import sys; from rgd_hf.divergences import rgd_weights; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_brings_in_nothing_beyond_the_trainer():
    code = """
import sys
from transformers import Trainer
before = {name.partition(".")[0] for name in sys.modules}
import rgd_hf
rgd_hf.ReweightedTrainer
extra = {name.partition(".")[0] for name in sys.modules} - before - {"rgd_hf"}
assert not extra, extra
"""
    subprocess.run([sys.executable, "-c", code], check=True)
