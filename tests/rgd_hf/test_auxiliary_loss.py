"""The loss that a router adds belongs to the batch: it is kept, and never weighted."""

import pytest
import torch
from torch.nn import functional as F
from transformers import MixtralConfig, MixtralForCausalLM

from rgd_hf import ReweightedTrainer, rgd_weights
from tests.helpers.tiny import gradients_of, parameters_of, relative_error, stack


def tiny_mixtral() -> MixtralForCausalLM:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        output_router_logits=True,
        router_aux_loss_coef=0.5,
        initializer_range=0.3,
    )
    return MixtralForCausalLM(config)


def token_data(n: int) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 40, (6,), generator=generator) for _ in range(n)]
    return [{"input_ids": row, "labels": row} for row in rows]


def objective(model, batch, reweighting, normalize):
    outputs = model(input_ids=batch["input_ids"])
    losses = F.cross_entropy(
        outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none"
    )
    weights = rgd_weights(losses, reweighting, 3.0)
    return (weights * losses).sum() / (weights.sum() if normalize else len(losses)) + 0.5 * outputs.aux_loss


@pytest.mark.parametrize("fused", [True, False], ids=["without logits", "logits"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("reweighting", ["none", "kl"])
def test_it_is_added_to_the_objective_without_a_weight(make_args, reweighting, normalize, fused):
    batch = stack(token_data(4))
    trainer = ReweightedTrainer(
        tiny_mixtral(),
        make_args(),
        reweighting=reweighting,
        tau=3.0,
        normalize_weights=normalize,
        fused_lm_head=fused,
    )
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    oracle = tiny_mixtral()
    expected = objective(oracle, batch, reweighting, normalize)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert relative_error(gradients_of(trainer.model), gradients_of(oracle)) < 1e-5
    if reweighting == "none":
        assert loss.item() == pytest.approx(tiny_mixtral()(**batch).loss.item(), rel=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_step_has_the_mean_of_its_micro_batches(make_args, normalize):
    """The router's loss of a batch is not that of its parts, so the oracle is cut like the training."""
    data = token_data(8)
    args = make_args(
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=1,
        train_sampling_strategy="sequential",
    )
    trainer = ReweightedTrainer(
        tiny_mixtral(), args, train_dataset=data, tau=3.0, normalize_weights=normalize
    )
    trainer.train()
    oracle = tiny_mixtral()
    parts = [stack(data[:4]), stack(data[4:])]
    masses = []
    for part in parts:
        logits = oracle(input_ids=part["input_ids"]).logits
        losses = F.cross_entropy(
            logits[:, :-1].flatten(0, 1), part["labels"][:, 1:].flatten(), reduction="none"
        )
        masses.append(rgd_weights(losses, "kl", 3.0).sum() if normalize else torch.tensor(float(len(losses))))
    for part, mass in zip(parts, masses, strict=True):
        (objective(oracle, part, "kl", normalize) * mass / sum(masses)).backward()
    start = parameters_of(tiny_mixtral())
    assert relative_error(parameters_of(trainer.model) - start, -0.5 * gradients_of(oracle)) < 1e-5


def test_evaluation_has_it_too(make_args):
    data = token_data(8)
    trainer = ReweightedTrainer(tiny_mixtral(), make_args(per_device_eval_batch_size=8), eval_dataset=data)
    own = tiny_mixtral().eval()(**stack(data)).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(own.item(), rel=1e-6)
