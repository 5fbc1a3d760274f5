"""Losses of a linear head without its logits, against autograd through the logits."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rgd_hf.lm_head import losses as linear_losses
from rgd_hf.lm_head.losses import chunked_token_losses, linear_token_losses
from tests.helpers.operators import CountProducts, Largest

TOKENS, SIZE, VOCABULARY = 23, 8, 700


@pytest.fixture(autouse=True)
def several_tiles(monkeypatch):
    """Tiles of 64 columns and chunks of 5 tokens: neither divides what it cuts."""
    monkeypatch.setattr(linear_losses, "_MIN_WIDTH", 64)
    monkeypatch.setattr(linear_losses, "_MIN_CHUNK", 5)
    monkeypatch.setattr(linear_losses, "_FROZEN_CHUNK", {"cpu": 5, "cuda": 5})
    monkeypatch.setattr(linear_losses, "_TILE_ELEMENTS", {"cpu": 1, "cuda": 1})


def operands(bias=True, dtype=torch.float32, tokens=TOKENS, size=SIZE, vocabulary=VOCABULARY):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, offset = (
        torch.randn(*shape, generator=generator).to(dtype).requires_grad_()
        for shape in ((tokens, size), (vocabulary, size), (vocabulary,))
    )
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
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


@pytest.mark.parametrize("first", [0, 64], ids=["the first tiles", "later tiles"])
@pytest.mark.parametrize("trains_weight", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float32, -torch.inf),
        (torch.float32, torch.finfo(torch.float32).min),
        (torch.bfloat16, torch.finfo(torch.float32).min),
        (torch.float16, torch.finfo(torch.float32).min),
    ],
    ids=str,
)
def test_tiles_that_may_not_be_predicted_are_as_if_they_were_not_there(dtype, value, trains_weight, first):
    hidden, weight, offset, targets = operands(dtype=dtype)
    offset = offset.detach().float()
    forbidden = (torch.arange(VOCABULARY) >= first) & (torch.arange(VOCABULARY) < first + 136)
    offset[forbidden] = value
    targets[forbidden[targets]] = VOCABULARY - 1
    weight.requires_grad_(trains_weight)
    leaves = [hidden, weight] if trains_weight else [hidden]
    losses = tiled(hidden, weight, offset, targets)
    # The oracle has no such columns at all.
    left, kept = (~forbidden).nonzero().flatten(), targets - 136 * (targets >= first + 136)
    logits = F.linear(hidden, weight[left], offset[left].to(dtype)).float()
    expected = F.cross_entropy(logits, kept, reduction="none")
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(losses, expected, rtol=4 * eps, atol=4 * eps)
    for found, right in zip(
        torch.autograd.grad(losses.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
    ):
        assert (found.float() - right.float()).norm() < 8 * eps * right.float().norm()


# --- a frozen head --------------------------------------------------------------------------------------------------------


def frozen_operands(**kwargs):
    hidden, weight, offset, targets = operands(**kwargs)
    return hidden, weight.requires_grad_(False), offset.requires_grad_(False), targets


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 2.0), (3.0, 1.5)])
def test_a_frozen_head_gives_losses_and_gradients_of_the_logits(smoothing, scale, softcap):
    hidden, weight, offset, targets = frozen_operands()
    weights = torch.linspace(-1, 2, TOKENS).round(decimals=1)
    found, expected = (
        function(hidden, weight, offset, targets, smoothing, scale, softcap)
        for function in (tiled, full_losses)
    )
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(losses @ weights, hidden)[0] for losses in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_a_frozen_head_in_half_precision(dtype, autocast):
    hidden, weight, offset, targets = frozen_operands(dtype=torch.float32 if autocast else dtype)
    results = []
    for function in (tiled, full_losses):
        with torch.autocast("cpu", dtype, enabled=autocast):
            losses = function(hidden, weight, offset, targets)
        results.append((losses, torch.autograd.grad(losses.mean(), hidden)[0]))
    (found, gradient), (expected, right) = results
    assert found.dtype == torch.float32 and gradient.dtype == hidden.dtype
    torch.testing.assert_close(found, expected, rtol=4 * torch.finfo(dtype).eps, atol=0.02)
    assert (gradient.float() - right.float()).norm() < 8 * torch.finfo(dtype).eps * right.float().norm()


@pytest.mark.parametrize("scale", [1.0, 0.0625])
def test_small_probabilities_do_not_underflow_in_float16(scale):
    """Those of 20,000 tokens that are not the target, each of 2e-8, have a common direction; a loss scale helps the logits."""
    generator = torch.Generator().manual_seed(0)
    vocabulary, loss_scale = 20_000, 2.0**16
    direction = torch.randn(16, generator=generator)
    weight = (direction + 0.1 * torch.randn(vocabulary, 16, generator=generator)).half()
    weight[0] *= -1
    hidden = (direction * (-9.0 / scale) / direction.square().sum()).half().repeat(2, 1).requires_grad_()
    gradients = []
    for function, operand in ((tiled, weight), (full_losses, weight.double())):
        states = hidden.to(operand.dtype)
        losses = function(states, operand, None, torch.zeros(2, dtype=torch.long), scale=scale)
        gradients.append(torch.autograd.grad(losses.mean() * loss_scale, hidden)[0].float() / loss_scale)
    assert losses.max() < 1e-3
    found, right = gradients
    assert (found - right).norm() < 0.1 * right.norm()  # a logit of 9 is rounded by 0.004


def test_a_frozen_head_takes_two_products_a_chunk_and_none_in_the_backward_pass():
    hidden, weight, offset, targets = frozen_operands(tokens=20)
    with CountProducts(5, VOCABULARY) as logits, CountProducts(5, SIZE) as gradients, Largest() as largest:
        losses = tiled(hidden, weight, offset, targets)
        assert (logits.count, gradients.count) == (4, 4)
        assert largest.elements <= VOCABULARY * SIZE < 20 * VOCABULARY
        losses.sum().backward()
    assert (logits.count, gradients.count) == (4, 4)


def test_a_frozen_head_can_be_asked_twice():
    hidden, weight, offset, targets = frozen_operands()
    losses = tiled(hidden, weight, offset, targets)
    first = torch.autograd.grad(losses.sum(), hidden, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(2 * losses.sum(), hidden)[0], 2 * first)


# --- logits kept in the memory of the weight's gradient -------------------------------------------------------------------


@given(
    tokens=st.integers(1, 40),
    size=st.integers(1, 40),
    vocabulary=st.integers(1, 700),
    autocast=st.booleans(),
    bias=st.booleans(),
)
@example(tokens=20, size=8, vocabulary=700, autocast=False, bias=False)  # the first tile's rows are the limit
@example(tokens=7, size=8, vocabulary=641, autocast=False, bias=False)  # the last one's are
def test_kept_logits_and_rows_of_the_gradient_never_meet(tokens, size, vocabulary, autocast, bias):
    """The same as without the memory (a weight that is no block of memory has none to lend)."""
    hidden, weight, offset, targets = operands(bias, torch.float32, tokens, size, vocabulary)
    scattered = weight.detach().T.contiguous().T.requires_grad_()
    weights = torch.linspace(-1, 2, tokens)
    results = []
    for lent in (weight, scattered):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = linear_token_losses(hidden, lent, targets, offset)
        leaves = [hidden, lent, *([offset] if bias else [])]
        results.append((losses, *torch.autograd.grad(losses @ weights, leaves)))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "dtype", "kept"),
    [
        # 10 whole tiles of 64 columns, then 60 columns. The gradient of the weight has room for 700 * 8 numbers, a tile needs
        # tokens * 64 of them, and its rows 64 * 8.
        (1, torch.float32, 11),  # the last one in its own memory
        (7, torch.float32, 11),
        (8, torch.float32, 9),
        (23, torch.float32, 3),
        (23, torch.bfloat16, 6),  # of its autocast; twice as many numbers
        (80, torch.float32, 0),
    ],
)
def test_as_many_tiles_are_kept_as_the_gradient_of_the_weight_has_room_for(tokens, dtype, kept):
    hidden, weight, offset, targets = operands(tokens=tokens)
    with (
        torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
        CountProducts(tokens, 64) as whole,
        CountProducts(tokens, 60) as last,
    ):
        losses = linear_token_losses(hidden, weight, targets, offset)
        assert (whole.count, last.count) == (10, 1)
        losses.sum().backward()
    assert whole.count + last.count == 11 + (11 - kept)


def test_a_head_of_one_tile_keeps_it():
    hidden, weight, offset, targets = operands(vocabulary=60)
    with CountProducts(TOKENS, 60) as products:
        tiled(hidden, weight, offset, targets).sum().backward()
    assert products.count == 1


@pytest.mark.parametrize("why", ["no gradients", "a frozen weight", "no room"])
def test_the_gradient_of_the_weight_has_no_memory_where_none_is_lent(why):
    hidden, weight, offset, targets = operands(tokens=80 if why == "no room" else 4)
    if why == "a frozen weight":
        weight.requires_grad_(False)
    with torch.set_grad_enabled(why != "no gradients"), Largest() as largest:
        linear_token_losses(hidden, weight, targets, offset)
    assert largest.elements <= max(VOCABULARY, len(hidden) * 64) < weight.numel()


def test_a_second_backward_pass_finds_the_same_gradients_and_leaves_the_first_ones_alone():
    leaves, targets = operands(tokens=4)[:3], operands(tokens=4)[3]
    losses = tiled(*leaves, targets)
    first = torch.autograd.grad(losses.sum(), leaves, retain_graph=True)
    copies = [grad.clone() for grad in first]
    second = torch.autograd.grad(losses.sum(), leaves)
    torch.testing.assert_close(first, tuple(copies), rtol=0, atol=0)
    torch.testing.assert_close(first, second)


def test_the_memory_of_the_gradient_becomes_the_gradient():
    """No copy of it, and nothing of the graph holds on to it."""
    hidden, weight, offset, targets = operands(tokens=4)
    losses = tiled(hidden, weight, offset, targets)
    memory = losses.grad_fn.grad_weight.data_ptr()
    losses.sum().backward()
    assert weight.grad.data_ptr() == memory
    assert losses.grad_fn.grad_weight is None and not losses.grad_fn.kept
