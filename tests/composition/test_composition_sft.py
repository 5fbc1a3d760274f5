"""`class X(ReweightingMixin, SFTTrainer)`: TRL's fused LM head gives no logits, so ours asks for them, and is right.

The oracle is autograd through the surrogate of every token's loss, from the logits of the model's plain forward.
"""

import pytest
import torch
from packaging.version import Version
from torch.nn import functional as F
from transformers import (
    DataCollatorWithFlattening,
    MixtralConfig,
    MixtralForCausalLM,
)

from rgd_hf import ReweightedTrainer, ReweightingMixin, rgd_surrogate
from rgd_hf.heads import why_unverified
from rgd_hf.weightings import GroupDRO
from tests.helpers.language import llama, text, tokenizer

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")

TAU = 20.0


class ReweightedSFTTrainer(ReweightingMixin, trl.SFTTrainer):
    """What a user writes."""


def trainer_of(cls, make_args, data=None, model=None, ours=None, **settings):
    defaults = {"max_length": 32, "max_steps": 2, "bf16": False, "gradient_checkpointing": False}
    args = make_args(trl.SFTConfig, **defaults | settings)
    return cls(
        model or llama(),
        args,
        train_dataset=text() if data is None else data,
        eval_dataset=text() if data is None else data,
        processing_class=tokenizer(),
        **(ours or {}),
    )


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-7)


def token_losses(model, batch, smoothing=0.0):
    labels = batch["labels"][:, 1:]
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1]
    losses = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100, label_smoothing=smoothing
    )
    return losses[labels.flatten() != -100]


SETTINGS = pytest.mark.parametrize(
    ("settings", "completions"),
    [
        ({}, False),
        ({}, True),
        ({"completion_only_loss": False}, True),
        ({"label_smoothing_factor": 0.2}, False),
        ({"packing": True, "packing_strategy": "wrapped"}, False),
        ({"padding_free": True, "max_length": None}, False),
        ({"gradient_checkpointing": True}, False),
    ],
    ids=["text", "completions", "prompts too", "label smoothing", "packed", "padding-free", "checkpointing"],
)


@SETTINGS
def test_kl_has_the_gradient_of_the_surrogate(settings, completions, make_args):
    trainer = trainer_of(
        ReweightedSFTTrainer, make_args, text(completions=completions), ours={"tau": TAU}, **settings
    )
    model = trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    found = gradients(model, trainer.compute_loss(model, dict(batch)))
    losses = token_losses(model, batch, settings.get("label_smoothing_factor", 0.0))
    assert 4 < len(losses) < batch["input_ids"].numel()
    assert_same_gradients(found, gradients(model, rgd_surrogate(losses, "kl", TAU).mean()))


@SETTINGS
def test_none_trains_as_the_stock_sft_trainer(settings, completions, make_args):
    if "label_smoothing_factor" in settings:
        # TRL's chunked loss, the default of some releases, has none.
        settings = settings | {"eval_strategy": "no", "loss_type": "nll"}
    runs = []
    for cls, ours in ((trl.SFTTrainer, {}), (ReweightedSFTTrainer, {"reweighting": "none"})):
        trainer = trainer_of(
            cls,
            make_args,
            text(completions=completions),
            ours=ours,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=0.05,
            **settings,
        )
        trainer.train()
        runs.append(trainer)
    stock, ours = runs
    for (name, left), right in zip(stock.model.named_parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(right, left, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    for before, after in zip(stock.state.log_history[:2], ours.state.log_history[:2], strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-4)


def test_evaluates_the_plain_loss(make_args):
    model = llama()
    # One batch: the stock trainer averages over batches, ours over tokens.
    stock, ours = (trainer_of(cls, make_args, model=model) for cls in (trl.SFTTrainer, ReweightedSFTTrainer))
    assert ours.evaluate()["eval_loss"] == pytest.approx(stock.evaluate()["eval_loss"], rel=1e-5)


def mixtral():
    """Keeps its own copy of the coefficient, which TRL's setting does not reach."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=33,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        router_aux_loss_coef=0.001,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=1,
    )
    return MixtralForCausalLM(config)


@pytest.mark.skipif(
    not hasattr(trl.SFTConfig, "router_aux_loss_coef"), reason="this TRL has no router_aux_loss_coef"
)
class TestRouter:
    """The load-balancing loss has the coefficient of TRL's setting, and never a weight."""

    @pytest.mark.parametrize("coefficient", [None, 0.0, 5.0])
    @pytest.mark.parametrize("fused", [True, False], ids=["without logits", "logits"])
    def test_the_setting_is_the_coefficient(self, fused, coefficient, make_args):
        ours = {"tau": TAU, "fused_lm_head": fused}
        settings = {"router_aux_loss_coef": coefficient}
        trainer = trainer_of(ReweightedSFTTrainer, make_args, model=mixtral(), ours=ours, **settings)
        model = trainer.model.train()
        batch = next(iter(trainer.get_train_dataloader()))
        found = gradients(model, trainer.compute_loss(model, dict(batch)))
        objective = rgd_surrogate(token_losses(model, batch), "kl", TAU).mean()
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        router = model(**inputs, output_router_logits=True).aux_loss
        coefficient = 0.001 if coefficient is None else coefficient
        assert_same_gradients(found, gradients(model, objective + coefficient * router))

    @pytest.mark.skipif(
        Version(trl.__version__) < Version("1.16"),
        reason="before TRL 1.16 the loss is the model's, which does not read the setting",
    )
    @pytest.mark.parametrize("coefficient", [None, 0.0, 5.0])
    def test_none_is_as_the_stock_sft_trainer(self, coefficient, make_args):
        settings = {"router_aux_loss_coef": coefficient, "learning_rate": 0.05}
        stock, ours = (
            trainer_of(cls, make_args, model=mixtral(), ours=keywords, **settings)
            for cls, keywords in (
                (trl.SFTTrainer, {}),
                (ReweightedSFTTrainer, {"reweighting": "none"}),
            )
        )
        assert ours.evaluate()["eval_loss"] == pytest.approx(stock.evaluate()["eval_loss"], rel=1e-5)
        stock.train()
        ours.train()
        for left, right in zip(stock.model.parameters(), ours.model.parameters(), strict=True):
            torch.testing.assert_close(right, left, rtol=1e-4, atol=1e-6)


ONE_COUNTS = [0.0, 0.0, 3.0, 0.0]
PACKED = pytest.mark.parametrize("strategy", ["bfd", "wrapped"])


class TestColumns:
    """A weight, or a group, is one sample's: what puts several samples into one row leaves it no place."""

    def data(self, column, stream=False):
        rows = text(4).add_column(column, ONE_COUNTS if column == "sample_weight" else [0, 1, 1, 0])
        return rows.to_iterable_dataset() if stream else rows

    def trainer(self, make_args, data, ours=None, **settings):
        defaults = {"per_device_train_batch_size": 4, "max_steps": 1}
        return trainer_of(
            ReweightedSFTTrainer,
            make_args,
            data,
            ours=ours or {"reweighting": "none"},
            eval_strategy="no",
            **defaults | settings,
        )

    def expected(self, trainer):
        model = llama().train()
        (row,) = (row for row in trainer.train_dataset if row["sample_weight"])
        ids = torch.tensor([row["input_ids"]])
        return model(input_ids=ids, labels=ids).loss.item()

    @PACKED
    @pytest.mark.parametrize("stream", [False, True])
    def test_packing_refuses_weights_and_the_remedies_work(self, stream, strategy, make_args):
        data = self.data("sample_weight", stream)
        with pytest.raises(ValueError, match=r"'sample_weight', which packing=True drops.*packing=False, or"):
            self.trainer(make_args, data, packing=True, packing_strategy=strategy)
        trainer = self.trainer(make_args, data, packing=False)
        trainer.train()
        assert trainer.state.log_history[0]["loss"] == pytest.approx(self.expected(trainer), rel=1e-4)
        bare = data.remove_columns("sample_weight")
        self.trainer(make_args, bare, packing=True, packing_strategy=strategy).train()

    def test_a_data_set_given_by_position_is_looked_at_too(self, make_args):
        args = make_args(trl.SFTConfig, max_length=32, bf16=False, packing=True)
        with pytest.raises(ValueError, match=r"'sample_weight', which packing=True drops"):
            ReweightedSFTTrainer(
                llama(), args, None, self.data("sample_weight"), processing_class=tokenizer()
            )

    @PACKED
    def test_packing_refuses_groups_and_the_remedies_work(self, strategy, make_args):
        rule = {"reweighting": GroupDRO(num_groups=2)}
        packed = {"packing": True, "packing_strategy": strategy}
        data = self.data("group")
        with pytest.raises(
            ValueError, match=r"'group', which packing=True drops.*packing=False, or.*GroupDRO"
        ):
            self.trainer(make_args, data, rule, **packed)
        self.trainer(make_args, data, rule, packing=False).train()
        self.trainer(make_args, data, **packed).train()  # nothing reads it

    @pytest.mark.parametrize("column", ["sample_weight", "group"])
    def test_padding_free_batches_are_named_and_the_remedy_works(self, column, make_args):
        ours = {"reweighting": "none" if column == "sample_weight" else GroupDRO(num_groups=2)}
        data = self.data(column)
        with pytest.raises(ValueError, match=rf"{column}.* has 4 elements.*set padding_free=False"):
            self.trainer(make_args, data, ours, padding_free=True, max_length=None).train()
        self.trainer(make_args, data, ours, padding_free=False, max_length=None).train()


def test_lora_through_peft_config(make_args):
    peft = pytest.importorskip("peft")
    trainer = ReweightedSFTTrainer(
        llama(),
        make_args(trl.SFTConfig, max_length=32, bf16=False),
        train_dataset=text(),
        processing_class=tokenizer(),
        peft_config=peft.LoraConfig(task_type="CAUSAL_LM", r=2),
        tau=TAU,
    )
    trainer.train()
    assert trainer.state.log_history[0]["weight_max"] > 1
    assert any("lora_B" in n and p.abs().sum() > 0 for n, p in trainer.model.named_parameters())


@pytest.mark.parametrize("reweighting", ["kl", "none"])
def test_another_loss_type_is_refused(reweighting, make_args):
    """DFT weights tokens by their own probability; training on plain losses instead would be silent."""
    stock = trainer_of(trl.SFTTrainer, make_args, loss_type="dft")
    if stock.compute_loss_func is not None:  # before TRL 1.16
        refusal = "compute_loss_func"
        if reweighting == "none":
            pytest.skip(f"trl {trl.__version__} hands DFT to the Trainer, which trains on it as it is")
    else:
        refusal = "loss_type"
    with pytest.raises(ValueError, match=refusal):
        trainer_of(ReweightedSFTTrainer, make_args, ours={"reweighting": reweighting}, loss_type="dft")


def test_its_forward_leaves_the_loss_of_the_model_known_and_another_one_does_not(make_args):
    """What TRL puts around a forward of the model's class is not doubted; it made full logits of the first batch."""
    assert why_unverified(trainer_of(ReweightedSFTTrainer, make_args).model) is None
    model = llama()
    plain = model.forward

    def other(input_ids=None, labels=None, **kwargs):
        outputs = plain(input_ids=input_ids, labels=labels, **kwargs)
        if outputs.loss is not None:
            outputs["loss"] = outputs.loss * 2
        return outputs

    model.forward = other
    trainer = trainer_of(ReweightedSFTTrainer, make_args, model=model)
    with pytest.raises(
        NotImplementedError, match="has another forward than that of transformers, so its loss"
    ):
        trainer.train()


JOINED = pytest.mark.parametrize(
    "settings",
    [{"padding_free": True, "max_length": None}, {"packing": True}],
    ids=["padding-free", "packed"],
)


@JOINED
@pytest.mark.parametrize("size", [1, 4])
def test_one_weight_for_the_samples_of_a_row_is_refused(settings, size, make_args):
    ours = {"reweighting_level": "sample", "tau": TAU}
    settings = settings | {"per_device_train_batch_size": size}
    if size == 1 and "packing" not in settings:  # a row of its own for every sample
        assert trainer_of(ReweightedSFTTrainer, make_args, ours=ours, **settings).train().global_step == 2
        return
    with pytest.raises(ValueError, match=r"one row for each sample.*packing=False and padding_free=False"):
        trainer_of(ReweightedSFTTrainer, make_args, ours=ours, **settings)
    # As the message says.
    settings |= {"packing": False, "padding_free": False}
    trainer = trainer_of(ReweightedSFTTrainer, make_args, ours=ours, **settings)
    model = trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    found = gradients(model, trainer.compute_loss(model, dict(batch)))
    rows = [{name: column[i : i + 1] for name, column in batch.items()} for i in range(size)]
    losses = torch.stack([token_losses(model, row).mean() for row in rows])
    assert_same_gradients(found, gradients(model, rgd_surrogate(losses, "kl", TAU).mean()))


@pytest.mark.parametrize("told_by", ["position_ids", "cu_seq_lens", "seq_idx"])
def test_rows_of_several_samples_are_seen_in_the_batch(told_by, make_args):
    """Of a collator that is not TRL's."""
    collator = DataCollatorWithFlattening(
        return_position_ids=told_by == "position_ids",
        return_flash_attn_kwargs=told_by == "cu_seq_lens",
        return_seq_idx=told_by == "seq_idx",
    )
    data = [{"input_ids": tokenizer()(line)["input_ids"]} for line in text()["text"]]

    def trainer_with(level, size):
        return ReweightedTrainer(
            llama(),
            make_args(per_device_train_batch_size=size),
            train_dataset=data,
            data_collator=collator,
            reweighting_level=level,
        )

    with pytest.raises(ValueError, match=r"several samples in it.*reweighting_level='token'"):
        trainer_with("sample", 4).train()
    assert trainer_with("sample", 1).train().global_step == 2
    assert trainer_with("token", 4).train().global_step == 2
