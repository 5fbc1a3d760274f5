"""Losses of a linear head without its logits, against autograd through the logits."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rgd_hf import linear_losses
from rgd_hf.linear_losses import chunked_token_losses, linear_token_losses
from tests.helpers.operators import Largest

TOKENS, SIZE, VOCABULARY = 23, 8, 700


@pytest.fixture(autouse=True)
def several_tiles(monkeypatch):
    """Tiles of 64 columns and chunks of 5 tokens: neither divides what it cuts."""
    monkeypatch.setattr(linear_losses, "_MIN_WIDTH", 64)
    monkeypatch.setattr(linear_losses, "_MIN_CHUNK", 5)
    monkeypatch.setattr(linear_losses, "_TILE_ELEMENTS", {"cpu": 1, "cuda": 1})


def operands(bias=True, dtype=torch.float32, tokens=TOKENS):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, offset = (
        torch.randn(*shape, generator=generator).to(dtype).requires_grad_()
        for shape in ((tokens, SIZE), (VOCABULARY, SIZE), (VOCABULARY,))
    )
    targets = torch.randint(0, VOCABULARY, (tokens,), generator=generator)
    return hidden, weight, offset if bias else None, targets


def full_losses(hidden, weight, bias, targets, smoothing=0.0, scale=1.0, softcap=None):
    logits = F.linear(hidden, weight, bias).float() * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)


def tiled(hidden, weight, bias, targets, smoothing=0.0, scale=1.0, softcap=None):
    return linear_token_losses(hidden, weight, targets, bias, smoothing, scale, softcap)


def chunked(hidden, weight, bias, targets, smoothing=0.0, scale=1.0, softcap=None):
    def logits_of(x):
        logits = F.linear(x, weight, bias) * scale
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    return chunked_token_losses(logits_of, hidden, targets, VOCABULARY, smoothing)


WAYS = pytest.mark.parametrize("way", [tiled, chunked])


@WAYS
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 2.0), (3.0, 1.5)])
def test_losses_and_gradients_are_those_of_the_logits(way, bias, smoothing, scale, softcap):
    hidden, weight, offset, targets = operands(bias)
    losses = way(hidden, weight, offset, targets, smoothing, scale, softcap)
    expected = full_losses(hidden, weight, offset, targets, smoothing, scale, softcap)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected)
    # Other than equal weights, zero and negative ones among them: the gradient of every token by itself.
    weights = torch.linspace(-1, 2, TOKENS).round(decimals=1)
    leaves = [x for x in (hidden, weight, offset) if x is not None]
    for found, right in zip(
        torch.autograd.grad(losses @ weights, leaves),
        torch.autograd.grad(expected @ weights, leaves),
        strict=True,
    ):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-6)


@WAYS
@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_only_what_is_trained_gets_a_gradient(way, frozen):
    leaves = dict(zip(("hidden", "weight", "bias"), operands(), strict=False))
    targets = operands()[3]
    leaves[frozen].requires_grad_(False)
    way(*leaves.values(), targets).sum().backward()
    assert [name for name, leaf in leaves.items() if leaf.grad is None] == [frozen]


@WAYS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_multiplies_as_the_head_does_and_sums_in_float32(way, dtype, autocast):
    """The logits are those of the head, rounded as they are, so that the losses agree to float32."""
    hidden, weight, offset, targets = operands(dtype=torch.float32 if autocast else dtype)
    results = []
    for function in (way, full_losses):
        with torch.autocast("cpu", dtype, enabled=autocast):
            losses = function(hidden, weight, offset, targets)
        assert losses.dtype == torch.float32
        results.append((losses, torch.autograd.grad(losses.mean(), [hidden, weight, offset])))
    (found, gradients), (expected, right) = results
    # How a product is blocked decides the last bit of a half-precision logit.
    torch.testing.assert_close(found, expected, rtol=4 * torch.finfo(dtype).eps, atol=0.02)
    for left, other in zip(gradients, right, strict=True):
        assert left.dtype == other.dtype
        error = (left.float() - other.float()).norm() / other.float().norm()
        assert error < 8 * torch.finfo(dtype).eps


@WAYS
def test_no_token_at_all_still_gives_every_parameter_a_gradient(way):
    hidden, weight, offset, targets = operands(tokens=0)
    losses = way(hidden, weight, offset, targets)
    assert losses.shape == (0,)
    losses.sum().backward()
    assert hidden.grad.shape == (0, SIZE)
    assert not weight.grad.any() and not offset.grad.any()


@WAYS
@pytest.mark.parametrize("target", [-1, VOCABULARY])
def test_a_target_outside_the_vocabulary_is_an_error(way, target):
    hidden, weight, offset, targets = operands()
    targets[3] = target
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        way(hidden, weight, offset, targets)


@WAYS
def test_a_loss_that_is_not_finite_says_so(way):
    hidden, weight, offset, targets = operands()
    hidden.data[2] = float("nan")
    losses = way(hidden, weight, offset, targets)
    assert losses[2].isnan() and losses[torch.arange(TOKENS) != 2].isfinite().all()


def test_dropout_inside_the_head_is_drawn_again_as_it_was():
    hidden, weight, _, targets = operands()
    dropout = nn.Dropout(0.5)

    def run(function):
        torch.manual_seed(1)
        losses = function()
        return losses, torch.autograd.grad(losses.sum(), [hidden, weight])

    def chunk_by_chunk():
        return torch.cat(
            [
                F.cross_entropy(F.linear(dropout(x), weight), y, reduction="none")
                for x, y in zip(hidden.split(5), targets.split(5), strict=True)
            ]
        )

    found = run(
        lambda: chunked_token_losses(lambda x: F.linear(dropout(x), weight), hidden, targets, VOCABULARY)
    )
    expected = run(chunk_by_chunk)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("way", "most"), [(tiled, 64 * TOKENS), (chunked, 5 * VOCABULARY)])
def test_no_tensor_is_larger_than_a_tile(way, most):
    hidden, weight, offset, targets = operands()
    with Largest() as largest:
        way(hidden, weight, offset, targets, smoothing=0.1, softcap=3.0).sum().backward()
    assert TOKENS * SIZE < largest.elements <= max(most, VOCABULARY * SIZE) < TOKENS * VOCABULARY
    with Largest() as largest:
        full_losses(hidden, weight, offset, targets).sum().backward()
    assert largest.elements == TOKENS * VOCABULARY
