"""Re-weighted gradient descent in plain torch: one process, one forward pass a step, autograd through the surrogate."""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import pytest
import torch
from cut_cases import GLOBAL_BATCH, STEPS, Setting
from cut_tasks import Collator, make_data, make_model, oracle_losses
from torch import Tensor

from rgd_hf import rgd_surrogate, rgd_weights
from tests.helpers.tiny import parameters_of

LEARNING_RATE = {"sgd": 0.5, "adamw_torch": 0.02}
ADAM_EPSILON = 1e-4  # far above the rounding errors of a small gradient, which AdamW divides by its size
MAX_GRAD_NORM = 0.5
EVAL_SAMPLES = 11
SEED = 42


class Trajectory(NamedTuple):
    """What a run of `STEPS` steps leaves behind."""

    start: Tensor
    parameters: Tensor
    logs: list[dict[str, float]]
    train_loss: float
    eval_loss: float


@cache
def brute_force(setting: Setting) -> Trajectory:
    """The trajectory that every way of cutting the batches has to give."""
    model = make_model(setting.task).train()
    start = parameters_of(model)
    data = make_data(setting.task, setting.samples, weights=setting.sample_weight)
    learning_rate = LEARNING_RATE[setting.optim]
    optimizer: torch.optim.Optimizer
    if setting.optim == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), learning_rate)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), learning_rate, eps=ADAM_EPSILON, weight_decay=0.0)
    logs: list[dict[str, float]] = []
    batches: Iterator[list[int]] = iter(())
    epoch = 0
    for step in range(STEPS):
        samples = next(batches, None)
        if samples is None:
            batches, epoch = iter(_epoch(setting, epoch)), epoch + 1
            samples = next(batches)
        logs.append(_step(setting, model, optimizer, [data[i] for i in samples], step))
    return Trajectory(
        start,
        parameters_of(model),
        logs,
        sum(log["loss"] for log in logs) / STEPS,
        _eval_loss(setting, model),
    )


def _epoch(setting: Setting, epoch: int) -> list[list[int]]:
    order = list(range(setting.samples))
    if setting.shuffle:
        # accelerate's seedable sampler
        generator = torch.Generator().manual_seed(SEED + epoch)
        order = torch.randperm(setting.samples, generator=generator).tolist()
    return [order[i : i + GLOBAL_BATCH] for i in range(0, len(order), GLOBAL_BATCH)]


def _step(setting: Setting, model, optimizer, examples: list[dict], step: int) -> dict[str, float]:
    losses, valid = oracle_losses(setting.task, model, Collator()(examples))
    by_sample = torch.ones(len(examples))
    if setting.sample_weight:
        by_sample = torch.stack([example["sample_weight"] for example in examples])
    if losses.dim() > 1 and setting.level == "sample":
        kept = [row.any() for row in valid]
        items = torch.stack([row[mask].mean() for row, mask in zip(losses, valid) if mask.any()])
        reference = torch.stack([weight for weight, keep in zip(by_sample, kept) if keep])
    else:
        items = losses[valid]
        reference = by_sample.reshape(-1, *[1] * (losses.dim() - 1)).expand_as(losses)[valid]
    divergence = "none" if step < setting.warmup * STEPS else setting.divergence
    weights = rgd_weights(items.detach(), divergence, setting.tau)
    mass = (reference * weights).sum() if setting.normalize else reference.sum()
    optimizer.zero_grad()
    ((reference * rgd_surrogate(items, divergence, setting.tau)).sum() / mass).backward()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    items = items.detach()
    log = {
        "loss": (reference * weights * items).sum() / mass,
        "grad_norm": grad_norm,
        "weight_mean": (reference * weights).sum() / reference.sum(),
        "weight_max": weights.max(),
        "effective_sample_size": (reference * weights).sum() ** 2
        / (reference.sum() * (reference * weights**2).sum()),
        "clipped_fraction": (items[reference > 0] > setting.tau).float().mean(),
        "unweighted_loss": items[reference > 0].mean(),
    }
    if setting.divergence == "none":
        weighted = ("unweighted_loss",) if setting.sample_weight else ()
        log = {name: log[name] for name in ("loss", "grad_norm", *weighted)}
    return {name: value.item() for name, value in log.items()}


@torch.no_grad()
def _eval_loss(setting: Setting, model) -> float:
    data = make_data(setting.task, EVAL_SAMPLES, seed=1)
    losses, valid = oracle_losses(setting.task, model.eval(), Collator()(data))
    return losses[valid].mean().item()


def check(setting: Setting, found: Trajectory) -> None:
    """The trajectory that was found is that of `brute_force`."""
    expected = brute_force(setting)
    torch.testing.assert_close(found.start, expected.start, rtol=0, atol=0)
    moved = (expected.parameters - expected.start).norm()
    assert moved > 0.3, "a trajectory that goes nowhere proves nothing"
    assert (found.parameters - expected.parameters).norm() / expected.parameters.norm() < 1e-5
    assert (found.parameters - expected.parameters).norm() / moved < 1e-5
    assert len(found.logs) == len(expected.logs)
    for step, (logged, right) in enumerate(zip(found.logs, expected.logs), start=1):
        for name, value in right.items():
            assert logged[name] == pytest.approx(value, rel=1e-4), f"{name} of step {step}"
    if found.train_loss:
        assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-5)
    assert found.eval_loss == pytest.approx(expected.eval_loss, rel=1e-5)
