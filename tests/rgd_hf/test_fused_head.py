"""Which models give their losses without logits, and that nothing else changes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
)

from rgd_hf import ReweightedTrainer, rgd_surrogate
from rgd_hf.heads import FusedHead
from tests.helpers.fused_heads import SIZE, VOCABULARY, assert_same, batch, gradients, is_fused, llama, run
from tests.helpers.operators import Largest
from tests.helpers.releases import compiles
from tests.helpers.tiny import parameters_of

# --- what models do behind their heads --------------------------------------------------------------------------------


def gemma():
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**SIZE, final_logit_softcapping=2.0))


def cohere():
    torch.manual_seed(0)
    return CohereForCausalLM(CohereConfig(**SIZE, logit_scale=0.25))


class Scaled(LlamaForCausalLM):
    """As a model of tomorrow may: a factor and a cap under other names."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = 5 * torch.tanh(outputs.logits * 0.7 / 5)
        return outputs


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("build", [gemma, cohere, llama])
def test_scaled_and_capped_logits(build, smoothing, make_args):
    assert_same(build(), make_args, batch(), label_smoothing_factor=smoothing)


def test_a_factor_and_a_cap_that_no_config_names():
    model = llama(Scaled)
    _, (outputs, losses) = run(model)
    inputs = batch()
    targets = F.pad(inputs.pop("labels")[:, 1:], (0, 1), value=-100)
    logits = model(**inputs).logits
    expected = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    assert outputs.logits is None
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)


def test_a_constant_bias_behind_the_head(make_args):
    """Marian's checkpoints have the bias of their output in a buffer."""
    torch.manual_seed(0)
    model = MarianMTModel(
        MarianConfig(
            vocab_size=VOCABULARY,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_position_embeddings=32,
            dropout=0.0,
            init_std=0.5,
            pad_token_id=0,
            decoder_start_token_id=0,
        )
    )
    model.final_logits_bias.copy_(torch.randn(1, VOCABULARY))
    assert_same(model, make_args, batch())


def test_a_masked_lm_with_a_bias_that_is_trained(make_args):
    torch.manual_seed(0)
    config = BertConfig(
        **{k: v for k, v in SIZE.items() if k not in ("num_key_value_heads", "head_dim")},
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForMaskedLM(config)
    nn.init.normal_(model.cls.predictions.bias)
    assert_same(model, make_args, batch())


# --- nothing else changes ---------------------------------------------------------------------------------------------


def test_a_pass_leaves_no_trace():
    model = llama(attention_dropout=0.5).train()
    inputs = batch()
    torch.manual_seed(5)
    logits = model(input_ids=inputs["input_ids"]).logits[:, :-1]
    drawn = torch.get_rng_state()
    torch.manual_seed(5)
    _, (_, losses) = run(model, inputs)
    # The measurement took no random numbers from the training.
    expected = F.cross_entropy(logits.transpose(1, 2), inputs["labels"][:, 1:], reduction="none")
    torch.testing.assert_close(losses[:, :-1], expected)
    assert torch.equal(torch.get_rng_state(), drawn)
    for module in (model, model.lm_head):
        assert "forward" not in vars(module) and not module._forward_hooks


def test_modules_in_evaluation_mode_stay_there():
    model = llama().train()
    model.model.layers[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    head = FusedHead(model)
    inputs = batch()
    head.run(model, {"input_ids": inputs["input_ids"]}, inputs["labels"])
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_a_forward_replaced_by_another_library_is_kept():
    model = llama()
    plain, calls = model.forward, []

    def theirs(*args, **kwargs):
        calls.append(1)
        return plain(*args, **kwargs)

    model.forward = theirs
    _, (_, losses) = run(model)
    assert losses is not None and model.forward is theirs and len(calls) == 2


def test_an_error_in_the_forward_restores_the_model():
    model = llama()
    head, _ = run(model)
    with pytest.raises(IndexError):
        head.run(model, {"input_ids": torch.full((2, 3), VOCABULARY)}, torch.zeros(2, 3, dtype=torch.long))
    assert "forward" not in vars(model) and "forward" not in vars(model.lm_head)


def test_outputs_cast_to_half_precision_do_not_round_the_losses():
    """As FSDP with mixed precision casts what a model returns."""

    class Casts(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, **inputs):
            outputs = self.model(**inputs)
            outputs.logits = outputs.logits.bfloat16()
            return outputs

    model = llama()
    inputs = batch()
    exact, rounded = (
        FusedHead(model).run(wrapped, {"input_ids": inputs["input_ids"]}, inputs["labels"])[1]
        for wrapped in (model, Casts(model))
    )
    assert torch.equal(exact, rounded)
    found, expected = (gradients(model, losses.mean()) for losses in (rounded, exact))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0.02, atol=1e-4)


def test_no_tensor_of_tokens_times_vocabulary_is_made(make_args):
    torch.manual_seed(0)
    vocabulary, rows, tokens = 9000, 8, 64
    model = LlamaForCausalLM(LlamaConfig(**SIZE | {"vocab_size": vocabulary, "max_position_embeddings": 64}))
    ids = torch.randint(3, vocabulary, (rows, tokens))
    trainer = ReweightedTrainer(model.train(), make_args(), tau=20.0)
    for _ in range(2):  # the first batch measures
        with Largest() as largest:
            trainer.compute_loss(model, {"input_ids": ids, "labels": ids}).backward()
        assert largest.elements < rows * tokens * vocabulary / 2
    trainer = ReweightedTrainer(model.train(), make_args(), tau=20.0, fused_lm_head=False)
    with Largest() as largest:
        trainer.compute_loss(model, {"input_ids": ids, "labels": ids}).backward()
    assert largest.elements >= rows * tokens * vocabulary


def test_ignored_tokens_never_reach_the_head(make_args):
    inputs = batch()
    inputs["labels"][:, :-1] = -100  # one token a row is left
    model = llama()
    model.lm_head = type("Head", (nn.Linear,), {})(16, VOCABULARY)
    seen = []
    model.lm_head.__class__.forward = lambda self, x: (seen.append(x.shape), F.linear(x, self.weight))[1]
    trainer = ReweightedTrainer(model.train(), make_args(), tau=20.0)
    trainer.compute_loss(model, dict(inputs))
    seen.clear()
    trainer.compute_loss(model, dict(inputs))
    assert seen == [torch.Size([4, 16])]


def test_a_batch_without_any_label_has_loss_zero_and_gradients(make_args):
    inputs = batch()
    inputs["labels"][:] = -100
    model = llama()
    loss = ReweightedTrainer(model.train(), make_args()).compute_loss(model, inputs)
    assert loss.item() == 0
    assert not any(g.any() for g in gradients(model, loss).values())


@pytest.mark.parametrize(
    "compute_metrics", [None, lambda prediction: {"shape": prediction.predictions.shape[-1]}]
)
def test_evaluation_makes_logits_for_metrics_alone(compute_metrics, make_args):
    data = [{name: values[i] for name, values in batch().items()} for i in range(4)]
    trainer = ReweightedTrainer(llama(), make_args(), eval_dataset=data, compute_metrics=compute_metrics)
    trainer.evaluate()  # the first batch measures
    with Largest() as largest:
        metrics = trainer.evaluate()
    assert (largest.elements >= 4 * 9 * VOCABULARY) == (compute_metrics is not None)
    model = trainer.model
    plain = ReweightedTrainer(model, make_args(), eval_dataset=data, fused_lm_head=False).evaluate()
    assert metrics["eval_loss"] == pytest.approx(plain["eval_loss"], rel=1e-6)
    assert compute_metrics is None or metrics["eval_shape"] == VOCABULARY


def test_who_looks_at_the_outputs_finds_logits_in_them(make_args):
    class Penalized(ReweightedTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            loss = loss + 0.1 * outputs.logits.square().mean()
            return (loss, outputs) if return_outputs else loss

    data = [{name: values[i] for name, values in batch(8).items()} for i in range(8)]
    trained = []
    for fused in (True, False):
        trainer = Penalized(
            llama(),
            make_args(learning_rate=0.05),
            train_dataset=data,
            eval_dataset=data,
            tau=20.0,
            fused_lm_head=fused,
        )
        trainer.train()
        trained.append((parameters_of(trainer.model), trainer.evaluate()["eval_loss"]))
    torch.testing.assert_close(*trained)


@compiles
def test_a_compiled_model_trains_without_logits_too(make_args):
    torch._dynamo.reset()
    data = [{name: values[i] for name, values in batch(8).items()} for i in range(8)]
    trained = []
    for compiled in (False, True):
        args = make_args(
            max_steps=3,
            per_device_train_batch_size=4,
            learning_rate=0.05,
            torch_compile=compiled,
            torch_compile_backend="aot_eager" if compiled else None,
        )
        trainer = ReweightedTrainer(llama(), args, train_dataset=data, tau=20.0)
        trainer.train()
        assert is_fused(trainer)
        trained.append(parameters_of(trainer.model))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(*trained, rtol=1e-5, atol=1e-6)
    torch._dynamo.reset()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_lora_on_the_head_itself(dropout, make_args):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "lm_head"], lora_dropout=dropout
    )
    model = peft.get_peft_model(llama(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    inputs = batch()
    trainer = ReweightedTrainer(model.train(), make_args(), tau=20.0)
    found = gradients(model, trainer.compute_loss(model, dict(inputs)))
    assert is_fused(trainer) and any("lm_head.lora_A" in name for name in found)
    if not dropout:
        logits = model(input_ids=inputs["input_ids"]).logits[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2), inputs["labels"][:, 1:], reduction="none")
        losses = losses[inputs["labels"][:, 1:] != -100]
        expected = gradients(model, rgd_surrogate(losses, "kl", 20.0).mean())
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def test_a_head_that_is_saved_as_a_whole_beside_lora(make_args):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, modules_to_save=["lm_head"])
    assert_same(peft.get_peft_model(llama(), config), make_args, batch())


def test_tied_weights_get_both_gradients(make_args):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
    )
    assert_same(GPT2LMHeadModel(config), make_args, batch())


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def runs_two_rows_at_most(error=OUT_OF_MEMORY):
    model = llama()

    def raise_above(module, args, kwargs):
        if len(kwargs["input_ids"]) > 2:
            raise error

    model.model.register_forward_pre_hook(raise_above, with_kwargs=True)
    return model


@pytest.mark.parametrize(
    "error",
    [
        OUT_OF_MEMORY,
        torch.OutOfMemoryError("XPU has no memory left"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
        ),
    ],
    ids=lambda error: str(error)[:4],
)
def test_a_batch_that_is_too_large_says_nothing_about_the_model(error, make_args):
    model = runs_two_rows_at_most(error)
    trainer = ReweightedTrainer(model, make_args())
    inputs = batch()
    with pytest.raises(type(error)):
        trainer.compute_loss(model, dict(inputs))
    assert is_fused(trainer) is None
    trainer.compute_loss(model, {name: rows[:2] for name, rows in inputs.items()})
    assert is_fused(trainer)


def test_a_smaller_batch_is_found_and_needs_no_logits(make_args):
    rows = [{"input_ids": torch.arange(3, 9), "labels": torch.arange(3, 9)}] * 8
    args = make_args(auto_find_batch_size=True, per_device_train_batch_size=8, max_steps=2)
    trainer = ReweightedTrainer(runs_two_rows_at_most(), args, train_dataset=rows)
    trainer.train()
    assert trainer._train_batch_size == 2 and is_fused(trainer)
