"""Half-precision training computes losses and weights in float32; recomputing activations changes no gradient."""

import pytest
import torch
from cut_cases import Case, Cut, Setting
from cut_tasks import Collator, make_data, make_model, own_losses
from cut_training import make_trainer

from rgd_hf import rgd_weights
from tests.helpers.tiny import parameters_of

TASKS = ("sequence", "token", "causal", "own")


def one_batch(task: str) -> dict[str, torch.Tensor]:
    return Collator()(make_data(task, 8))


def first_step(task: str, tmp_path, normalize: bool = False, **kwargs):
    """A trainer after one step on the first eight examples."""
    case = Case(Setting(task, "token" if task != "sequence" else "auto", normalize=normalize), Cut(8, 1, 1))
    trainer = make_trainer(case, tmp_path, max_steps=1, **kwargs)
    trainer.train()
    return trainer


def oracle(task: str, logits: torch.Tensor, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of the valid items and their weights, from half-precision logits cast up to float32."""
    labels = one_batch(task)["labels"]
    if task == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits[labels != -100].float(), labels[labels != -100], reduction="none"
    )
    return losses, rgd_weights(losses, "kl", tau)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("mode", ["autocast", "pure"])
def test_bfloat16_losses_and_weights_are_float32(task, mode, tmp_path):
    model = make_model(task)
    seen = []
    if mode == "pure":
        model.bfloat16()
    model.register_forward_hook(lambda module, args, output: seen.append(output["logits"].detach()))
    trainer = first_step(task, tmp_path, model=model, bf16=mode == "autocast", fused_lm_head=False)
    assert seen[0].dtype == torch.bfloat16 or mode == "autocast"
    losses, weights = oracle(task, seen[0], trainer.args.tau)
    log = trainer.state.log_history[0]
    if task == "own" and mode == "pure":
        # The user's function computes its losses in the dtype of the logits; the weights of those are float32.
        losses, valid = own_losses(type("Outputs", (), {"logits": seen[0]}), one_batch(task)["labels"])
        losses = losses[valid].float()
        weights = rgd_weights(losses, "kl", trainer.args.tau)
    assert log["unweighted_loss"] == pytest.approx(losses.mean().item(), rel=1e-6)
    assert log["weight_mean"] == pytest.approx(weights.mean().item(), rel=1e-6)
    assert log["weight_max"] == pytest.approx(weights.max().item(), rel=1e-6)
    assert log["loss"] == pytest.approx((weights * losses).mean().item(), rel=1e-6)


@pytest.mark.parametrize("mode", ["autocast", "pure"])
def test_bfloat16_losses_without_logits_are_those_of_the_logits(mode, tmp_path):
    logs = []
    for fused in (True, False):
        model = make_model("causal")
        if mode == "pure":
            model.bfloat16()
        trainer = first_step("causal", tmp_path, model=model, bf16=mode == "autocast", fused_lm_head=fused)
        logs.append(trainer.state.log_history[0])
    for name in ("loss", "unweighted_loss", "weight_mean", "weight_max"):
        assert logs[0][name] == pytest.approx(logs[1][name], rel=1e-5)
    assert logs[0]["grad_norm"] == pytest.approx(logs[1]["grad_norm"], rel=0.02)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", ["autocast", "pure"])
def test_bfloat16_trains(mode, normalize, tmp_path):
    model = make_model("token")
    if mode == "pure":
        model.bfloat16()
    case = Case(Setting("token", "token", normalize=normalize, optim="adamw_torch"), Cut(4, 2, 1))
    trainer = make_trainer(case, tmp_path, model=model, bf16=mode == "autocast", max_steps=20)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert all(
        p.dtype == (torch.bfloat16 if mode == "pure" else torch.float32) for p in trainer.model.parameters()
    )


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_gradient_checkpointing_changes_nothing(task, normalize, tmp_path):
    plain = first_step(task, tmp_path, normalize)
    recomputed = first_step(task, tmp_path, normalize, gradient_checkpointing=True)
    torch.testing.assert_close(
        parameters_of(recomputed.model), parameters_of(plain.model), rtol=1e-6, atol=1e-7
    )
    assert recomputed.state.log_history[0]["grad_norm"] == pytest.approx(
        plain.state.log_history[0]["grad_norm"]
    )
