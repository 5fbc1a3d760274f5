"""Triton's kernels against torch's operations: on the GPU, or interpreted on a CPU.

pip install triton; TRITON_INTERPRET=1 python -m pytest tests/gpu/test_logit_tiles.py
"""

import os
from itertools import pairwise

import pytest
import torch

from gpu.conftest import DEVICE, ON_GPU
from rgd_hf.lm_head import tiles as by_torch
from rgd_hf.lm_head.tiles import Folded, Transform
from tests.helpers.tiny import relative_error

pytest.importorskip("triton", reason="Triton comes with torch for GPUs")
if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("on a CPU, TRITON_INTERPRET=1 lets Triton interpret its kernels", allow_module_level=True)

from rgd_hf.lm_head import tiles_triton as by_triton

TOKENS, VOCABULARY, CUTS = 37, 3000, (0, 2500, 2564, 3000)
TRANSFORMS = [Transform(1.0, None), Transform(0.25, None), Transform(1.0, 2.0), Transform(3.0, 1.5)]


@pytest.fixture(autouse=True)
def torch_operations(monkeypatch):
    monkeypatch.setattr(by_torch, "runs_triton", lambda device: False)


def tiles(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(TOKENS, VOCABULARY, generator=generator)).to(DEVICE, dtype)
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator).to(DEVICE)
    factor = torch.linspace(-1, 2, TOKENS).round(decimals=1).to(DEVICE)
    return logits, targets, factor


def folded_by(way, logits, targets, transform, smoothed=True):
    start = torch.zeros(TOKENS, device=DEVICE)
    folded = Folded(start - torch.inf, start.clone(), start.clone() if smoothed else None)
    for first, last in pairwise(CUTS):
        # Columns of a larger matrix, as the product of a cut weight may be.
        way.fold(logits.clone()[:, first:last], first, targets, transform, folded)
    return folded


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tiles_fold_into_the_same_sums(transform, dtype):
    logits, targets, _ = tiles(dtype)
    found = folded_by(by_triton, logits, targets, transform)
    for ours, theirs in zip(found, folded_by(by_torch, logits, targets, transform), strict=True):
        # Sums of thousands of logits of both signs.
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-3 if ours is found.logits_sum else 2e-5)
    exact = transform(logits.double().clone()).logsumexp(dim=1)
    torch.testing.assert_close(found.logsumexp, exact.float(), rtol=1e-6, atol=2e-6)
    assert torch.equal(found.logsumexp, folded_by(by_triton, logits, targets, transform, False).logsumexp)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_of_tiles_are_the_same(transform, smoothing, dtype):
    logits, targets, factor = tiles(dtype)
    logsumexp = folded_by(by_torch, logits, targets, transform).logsumexp
    for first, last in pairwise(CUTS):
        ours, theirs = (
            way.gradient(
                logits[:, first:last].clone(),
                first,
                targets,
                transform,
                logsumexp,
                factor,
                smoothing,
                VOCABULARY,
            )
            for way in (by_triton, by_torch)
        )
        assert ours.dtype == theirs.dtype == dtype
        assert relative_error(ours.float(), theirs.float()) < 32 * torch.finfo(dtype).eps


def test_a_token_that_is_not_finite_spoils_no_other():
    logits, targets, factor = tiles(torch.float32)
    logits[3, 17], logits[5, 2999] = float("nan"), float("inf")
    transform = TRANSFORMS[0]
    logsumexp = folded_by(by_triton, logits, targets, transform).logsumexp
    assert not logsumexp[[3, 5]].isfinite().any() and logsumexp.isfinite().sum() == TOKENS - 2
    found = by_triton.gradient(logits, 0, targets, transform, logsumexp, factor, 0.0, VOCABULARY)
    assert found.isfinite().all(dim=1).sum() >= TOKENS - 2


@pytest.mark.parametrize("way", [by_triton, by_torch], ids=["triton", "torch"])
@pytest.mark.parametrize("transform", [TRANSFORMS[0], TRANSFORMS[1]])
def test_tiles_of_minus_infinity_are_as_if_they_were_not_there(transform, way):
    logits, targets, factor = tiles(torch.float32)
    logits[:8, :2500] = logits[8:16, 2500:2564] = logits[16:24, :2564] = logits[24:, 2564:] = -torch.inf
    targets = torch.where(torch.arange(TOKENS, device=DEVICE) < 24, 2999, 17)
    logsumexp = folded_by(way, logits, targets, transform).logsumexp
    exact = transform(logits.double().clone()).logsumexp(dim=1)
    torch.testing.assert_close(logsumexp, exact.float(), rtol=1e-6, atol=2e-6)
    found = way.gradient(logits.clone(), 0, targets, transform, logsumexp, factor, 0.0, VOCABULARY)
    assert found.isfinite().all() and not found[logits == -torch.inf].any()


def test_no_token_at_all():
    logits, targets, _ = tiles(torch.float32)
    nothing = Folded(*(torch.zeros(0, device=DEVICE) for _ in range(3)))
    by_triton.fold(logits[:0], 0, targets[:0], TRANSFORMS[0], nothing)
    assert by_triton.gradient(
        logits[:0], 0, targets[:0], TRANSFORMS[0], nothing[0], nothing[0], 0.0, VOCABULARY
    ).shape == (0, VOCABULARY)


@pytest.mark.skipif(not ON_GPU, reason="whether kernels compile is known on a GPU")
def test_the_kernels_are_taken_on_this_device(monkeypatch):
    monkeypatch.undo()
    assert by_torch.runs_triton(torch.zeros(0, device=DEVICE).device)
