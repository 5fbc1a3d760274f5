"""Adapters of PEFT: gradients of the adapter alone, and virtual tokens in front of the logits."""

import pytest
import torch
import transformers
from torch.nn import functional as F

from rgd_hf import ReweightedTrainer, rgd_surrogate
from tests.helpers.language import llama
from tests.helpers.seq2seq import collate, pairs, t5
from tests.helpers.tiny import classification_data, tiny_bert

peft = pytest.importorskip("peft")
VIRTUAL = 3


def token_data(n=8, length=7):
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 30, (length,), generator=generator) for _ in range(n)]
    labels = [row.clone() for row in rows]
    for i, label in enumerate(labels):
        label[: i % 4] = -100
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": label}
        for row, label in zip(rows, labels, strict=True)
    ]


def lora(task):
    return peft.LoraConfig(task_type=task, r=2, target_modules=["q_proj", "v_proj", "query", "value"])


def prompt_tuning(task):
    return peft.PromptTuningConfig(task_type=task, num_virtual_tokens=VIRTUAL)


def prefix_tuning(task):
    return peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=VIRTUAL)


def p_tuning(task):
    return peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=VIRTUAL, encoder_hidden_size=8)


WAYS = pytest.mark.parametrize("fused", [True, False], ids=["without logits", "logits"])
ADAPTERS = pytest.mark.parametrize("adapter", [lora, prompt_tuning, prefix_tuning, p_tuning])


def adapted(model, adapter, task):
    torch.manual_seed(1)
    model = peft.get_peft_model(model, adapter(task))
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:  # LoRA starts at zero, where half of its gradients vanish
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def stacked(data):
    return {key: torch.stack([row[key] for row in data]) for key in data[0]}


def skip_if_peft_refuses(model, batch):
    """What a release of PEFT can tune changes with what a release of transformers calls its arguments."""
    try:
        model(**batch)
    except ValueError as refusal:
        pytest.skip(f"peft {peft.__version__} with transformers {transformers.__version__}: {refusal}")


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same_gradients(found, expected):
    """By norm: which of the small elements lose digits differs by processor."""
    assert found.keys() == expected.keys() and any(g.abs().max() > 1e-4 for g in expected.values())
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6 * largest, name


@WAYS
@ADAPTERS
@pytest.mark.parametrize("level", ["token", "sample"])
def test_causal_lm_has_the_gradient_of_the_surrogate(adapter, level, fused, make_args):
    """Where virtual tokens have logits (prompt tuning, p-tuning), the last of them predicts the first real token."""
    model = adapted(llama(), adapter, "CAUSAL_LM").train()
    batch = stacked(token_data())
    trainer = ReweightedTrainer(model, make_args(), tau=20.0, reweighting_level=level, fused_lm_head=fused)
    found = gradients(model, trainer.compute_loss(model, dict(batch)))
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = F.pad(batch["labels"], (logits.shape[1] - batch["labels"].shape[1], 0), value=-100)[:, 1:]
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100
    ).view_as(labels)
    valid = labels != -100
    losses = losses[valid] if level == "token" else losses.sum(1) / valid.sum(1)
    assert_same_gradients(found, gradients(model, rgd_surrogate(losses, "kl", 20.0).mean()))


@WAYS
@ADAPTERS
def test_causal_lm_loss_is_the_models_own(adapter, fused, make_args):
    model = adapted(llama(), adapter, "CAUSAL_LM").train()
    batch = stacked(token_data())
    trainer = ReweightedTrainer(model, make_args(), reweighting="none", fused_lm_head=fused)
    torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), model(**batch).loss)


@ADAPTERS
def test_classification_has_the_gradient_of_the_surrogate(adapter, make_args):
    model = adapted(tiny_bert(), adapter, "SEQ_CLS").train()
    batch = stacked(classification_data(8))
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    skip_if_peft_refuses(model, batch)
    trainer = ReweightedTrainer(model, make_args(), tau=4.0)
    found = gradients(model, trainer.compute_loss(model, dict(batch)))
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    losses = F.cross_entropy(logits, batch["labels"], reduction="none")
    assert_same_gradients(found, gradients(model, rgd_surrogate(losses, "kl", 4.0).mean()))


# --- encoder-decoders -----------------------------------------------------------------------------------------------


PROMPTS = ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING"]


def prompted_t5(kind):
    configurations = {
        "PROMPT_TUNING": peft.PromptTuningConfig,
        "P_TUNING": lambda **keywords: peft.PromptEncoderConfig(encoder_hidden_size=8, **keywords),
        "PREFIX_TUNING": peft.PrefixTuningConfig,
        "MULTITASK_PROMPT_TUNING": lambda **keywords: peft.MultitaskPromptTuningConfig(
            num_tasks=2, **keywords
        ),
    }
    model = t5()
    return adapted(
        model, lambda task: configurations[kind](task_type=task, num_virtual_tokens=VIRTUAL), "SEQ_2_SEQ_LM"
    )


def pairs_of_tasks():
    return [
        {**collate([pair]), "task_ids": torch.tensor([i % 2])}
        for i, pair in enumerate(pairs(8, ragged=False))
    ]


def as_batch(examples):
    return {name: torch.cat([example[name] for example in examples]) for name in examples[0]}


def moved(cls, model, args, **keywords):
    start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    cls(model, args, train_dataset=pairs_of_tasks(), data_collator=as_batch, **keywords).train()
    return torch.cat([(p - start[n]).flatten() for n, p in model.named_parameters() if n in start])


class WithLabels(ReweightedTrainer):
    def compute_per_sample_losses(self, model, inputs):
        outputs = model(**inputs)
        losses = F.cross_entropy(
            outputs.logits[:, VIRTUAL:].transpose(1, 2), inputs["labels"], reduction="none"
        )
        return losses, outputs


@pytest.mark.parametrize("kind", PROMPTS)
def test_an_encoder_decoder_trains_or_is_told_what_does(kind, make_args):
    args = make_args(max_steps=2, learning_rate=0.05, remove_unused_columns=False)
    expected = moved(transformers.Trainer, prompted_t5(kind), args)
    torch.testing.assert_close(
        moved(ReweightedTrainer, prompted_t5(kind), args, reweighting="none"), expected
    )
    if kind != "MULTITASK_PROMPT_TUNING":
        assert moved(ReweightedTrainer, prompted_t5(kind), args, tau=1.0).abs().max() > 0
        return
    with pytest.raises(NotImplementedError, match=f"{kind} .* with its labels .* or set reweighting='none'"):
        moved(ReweightedTrainer, prompted_t5(kind), args)
    own = moved(WithLabels, prompted_t5(kind), args, reweighting="none")
    torch.testing.assert_close(own, expected)
    assert not torch.allclose(moved(WithLabels, prompted_t5(kind), args, tau=1.0), own)


@ADAPTERS
@pytest.mark.parametrize("level", ["token", "sample"])
def test_accumulation_trains_as_the_full_batch_does(adapter, level, make_args):
    """The items are counted before the forward pass, which is what tells whether a first token has a loss."""

    def trained(size, steps):
        args = make_args(
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            learning_rate=0.05,
            max_steps=2,
        )
        model = adapted(llama(), adapter, "CAUSAL_LM")
        trainer = ReweightedTrainer(
            model, args, train_dataset=token_data(), tau=20.0, reweighting_level=level
        )
        trainer.train()
        return [p for p in model.parameters() if p.requires_grad], trainer.state.log_history[0]["loss"]

    (expected, loss), (found, same_loss) = trained(8, 1), trained(3, 3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert same_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    "adapter", [lora, prompt_tuning, prefix_tuning]
)  # of p-tuning's encoder PEFT saves no weights
def test_trains_evaluates_and_resumes_to_the_same_adapter(adapter, make_args, tmp_path):
    data = token_data()

    def trainer(**keywords):
        model = adapted(llama(), adapter, "CAUSAL_LM")
        args = make_args(
            per_device_train_batch_size=2,
            max_steps=4,
            save_strategy="steps",
            save_steps=2,
            learning_rate=0.05,
        )
        return ReweightedTrainer(model, args, train_dataset=data, eval_dataset=data, **keywords)

    whole = trainer()
    before = {n: p.detach().clone() for n, p in whole.model.named_parameters()}
    whole.train()
    assert whole.evaluate()["eval_loss"] > 0
    for name, parameter in whole.model.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[name])
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    for left, right in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(left, right)
