"""The ports of docs/subclasses.md train as the classes before them, and re-weight what those could not."""

import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForSequenceClassification

from docs.readers_script import word_tokenizer
from rgd_hf import rgd_weights
from tests.helpers.tiny import (
    classification_data,
    gradients_of,
    parameters_of,
    relative_error,
    stack,
    tiny_bert,
)

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "subclasses.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:^(Before|After):\n\n)?^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
BEFORE, AFTER = ({}, {})
for marker, code in BLOCKS:
    exec(code, BEFORE if marker == "Before" else AFTER)

CLASSES = ["FocalTrainer", "DistillationTrainer", "MultiTaskTrainer"]
SAMPLES = 10

pytestmark = pytest.mark.filterwarnings("ignore")


def data():
    rows = classification_data(SAMPLES)
    return [row | {"task": torch.tensor(i % 2)} for i, row in enumerate(rows)]


def run(cls, make_args, cut=(SAMPLES, 1), **settings):
    args = make_args(
        max_steps=1,
        learning_rate=1e-2,
        per_device_train_batch_size=cut[0],
        gradient_accumulation_steps=cut[1],
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
    )
    model = tiny_bert()
    if "Distillation" in cls.__name__:
        settings["teacher"] = tiny_bert(seed=1)
    rows = data()
    if "MultiTask" not in cls.__name__:
        rows = [{k: v for k, v in row.items() if k != "task"} for row in rows]
    start = parameters_of(model)
    trainer = cls(model, args, train_dataset=rows, eval_dataset=rows, **settings)
    trainer.train()
    return trainer, (start - parameters_of(model)) / 1e-2


@pytest.mark.parametrize("cut", [(SAMPLES, 1), (4, 3)], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_the_port_trains_on_the_same_loss(name, cut, make_args):
    """What the class before does to a whole batch, the port does to each way to cut it."""
    before, expected = run(BEFORE[name], make_args)
    after, found = run(AFTER[name], make_args, cut, reweighting="none")
    assert relative_error(found, expected) < 1e-4
    plain = after.evaluate()["eval_loss"]
    assert plain == pytest.approx(before.evaluate()["eval_loss"], rel=1e-3)


@pytest.mark.parametrize("settings", [{}, {"normalize_weights": True}], ids=str)
@pytest.mark.parametrize("name", [*CLASSES, "ShortFocalTrainer"])
def test_the_port_weights_every_sample_however_the_step_is_cut(name, settings, make_args):
    trainer, found = run(AFTER[name], make_args, (4, 3), **settings)
    oracle = tiny_bert()
    trainer.model.load_state_dict(oracle.state_dict())
    rows = {k: v for k, v in stack(data()).items() if k != "task" or name == "MultiTaskTrainer"}
    losses, *_ = trainer.compute_per_sample_losses(trainer.model, dict(rows))
    weights = rgd_weights(losses.detach())
    objective = (weights * losses).sum() / (weights.sum() if settings else SAMPLES)
    if name == "MultiTaskTrainer":
        # The penalties of the micro-batches count by their share of the weights.
        parts = [slice(0, 4), slice(4, 8), slice(8, SAMPLES)]
        share = [
            weights[part].sum() / weights.sum() if settings else losses[part].numel() / SAMPLES
            for part in parts
        ]
        logits = trainer.model(input_ids=rows["input_ids"]).logits
        objective = objective + sum(1e-3 * s * logits[part].square().mean() for s, part in zip(share, parts))
    trainer.model.zero_grad()
    objective.backward()
    expected = gradients_of(trainer.model)
    assert relative_error(found, expected) < 1e-4


PAIRS = [{"chosen": f"w{i} w{i + 1}", "rejected": f"w{i + 2} w{i}"} for i in range(8)]


def reward_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=43,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.3,
        num_labels=1,
        pad_token_id=0,
    )
    return LlamaForSequenceClassification(config)


@pytest.mark.parametrize(
    ("margin", "settings"),
    [(False, {}), (True, {}), (True, {"center_rewards_coefficient": 0.5})],
    ids=["plain", "margin", "margin, centered"],
)
def test_a_reward_model_has_the_loss_of_trl(margin, settings, make_args):
    trl = pytest.importorskip("trl")
    rows = [row | ({"margin": 0.5 * i} if margin else {}) for i, row in enumerate(PAIRS)]
    pairs = Dataset.from_list(rows)
    results = []
    for cls, ours in (
        (trl.RewardTrainer, {}),
        (AFTER["ReweightedRewardTrainer"], {"reweighting": "none"}),
    ):
        args = make_args(
            trl.RewardConfig, max_steps=2, bf16=False, gradient_checkpointing=False, max_length=16, **settings
        )
        model = reward_model()
        start = parameters_of(model)
        trainer = cls(
            model=model,
            args=args,
            train_dataset=pairs,
            eval_dataset=pairs,
            processing_class=word_tokenizer(),
            **ours,
        )
        trainer.train()
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        results.append((parameters_of(model) - start, [*losses, trainer.evaluate()["eval_loss"]]))
    (expected, losses), (found, found_losses) = results
    assert relative_error(found, expected) < 1e-4
    assert found_losses == pytest.approx(losses, rel=1e-4)


def test_a_reward_model_is_trained_on_weighted_pairs(make_args):
    trl = pytest.importorskip("trl")
    results = []
    for size, accumulation in ((8, 1), (2, 4)):
        args = make_args(
            trl.RewardConfig,
            max_steps=1,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_length=16,
            learning_rate=1e-2,
        )
        model = reward_model()
        trainer = AFTER["ReweightedRewardTrainer"](
            model=model, args=args, train_dataset=Dataset.from_list(PAIRS), processing_class=word_tokenizer()
        )
        trainer.train()
        assert trainer.state.log_history[0]["weight_mean"] > 1
        results.append(parameters_of(model))
    assert relative_error(results[1], results[0]) < 1e-5
    with pytest.raises(
        NotImplementedError, match=r"RewardTrainer\.compute_loss .* compute_per_sample_losses"
    ):
        type("Unported", (AFTER["ReweightingMixin"], trl.RewardTrainer), {})(
            model=model, args=args, train_dataset=Dataset.from_list(PAIRS), processing_class=word_tokenizer()
        )
