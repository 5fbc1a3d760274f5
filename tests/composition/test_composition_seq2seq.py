"""`ReweightedSeq2SeqTrainer`: generation while evaluating, training on the surrogate."""

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)

from rgd_hf import (
    ReweightedSeq2SeqTrainer,
    ReweightedSeq2SeqTrainingArguments,
    rgd_surrogate,
)

VOCABULARY = 30


def t5():
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )


def bart():
    torch.manual_seed(0)
    return BartForConditionalGeneration(
        BartConfig(
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
            init_std=0.3,
        )
    )


MODELS = pytest.mark.parametrize("build", [t5, bart])


def pairs(n=12, seed=0, ragged=True):
    generator = torch.Generator().manual_seed(seed)

    def row(least):
        length = int(torch.randint(least, 8, (), generator=generator)) if ragged else 6
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    return [{"input_ids": row(3), "attention_mask": None, "labels": row(2)} for _ in range(n)]


def collate(examples):
    """Pads inputs with 0 and labels with -100, as `DataCollatorForSeq2Seq` does with a tokenizer."""

    def padded(name, value):
        rows = [torch.tensor(example[name]) for example in examples]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    ids = padded("input_ids", 0)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": padded("labels", -100)}


class SurrogateTrainer(Seq2SeqTrainer):
    """The oracle: autograd through the surrogate of every token's loss, of logits the model gives beside its loss."""

    loss_is_scaled_for_ga = True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = outputs.loss
        if model.training:
            losses = F.cross_entropy(
                outputs.logits.flatten(0, 1), inputs["labels"].flatten(), reduction="none", ignore_index=-100
            )
            loss = rgd_surrogate(losses, "kl", 20.0).sum() / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


def trained(cls, build, make_args, arguments=Seq2SeqTrainingArguments, **keywords):
    ours = {name: keywords.pop(name) for name in ("tau", "reweighting", "fused_lm_head") if name in keywords}
    args = make_args(arguments, max_steps=4, per_device_train_batch_size=4, learning_rate=0.05, **keywords)
    trainer = cls(
        build(), args, train_dataset=pairs(), eval_dataset=pairs(6, 1), data_collator=collate, **ours
    )
    trainer.train()
    return trainer


@MODELS
@pytest.mark.parametrize("fused", [True, False], ids=["without logits", "logits"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_kl_trains_on_the_surrogate_of_every_token(build, accumulation, fused, make_args):
    keywords = {"gradient_accumulation_steps": accumulation}
    expected = trained(SurrogateTrainer, build, make_args, **keywords)
    found = trained(ReweightedSeq2SeqTrainer, build, make_args, tau=20.0, fused_lm_head=fused, **keywords)
    for (name, left), right in zip(expected.model.named_parameters(), found.model.parameters(), strict=True):
        torch.testing.assert_close(right, left, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


@MODELS
@pytest.mark.parametrize("arguments", [Seq2SeqTrainingArguments, ReweightedSeq2SeqTrainingArguments])
def test_generates_while_it_evaluates_and_predicts(build, arguments, make_args):
    seen = []

    def exact_match(prediction):
        seen.append(prediction)
        return {"rows": len(prediction.predictions)}

    trainer = trained(
        ReweightedSeq2SeqTrainer,
        build,
        make_args,
        arguments,
        predict_with_generate=True,
        generation_max_length=6,
        generation_num_beams=2,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.compute_metrics = exact_match
    plain = Seq2SeqTrainer(
        trainer.model,
        trainer.args,
        eval_dataset=pairs(6, 1),
        data_collator=collate,
        compute_metrics=exact_match,
    )
    data = pairs(8, 2, ragged=False)
    found, expected = trainer.predict(data), plain.predict(data)
    assert (found.predictions == expected.predictions).all()
    assert (found.label_ids == expected.label_ids).all()
    assert found.metrics["test_loss"] == pytest.approx(expected.metrics["test_loss"], rel=1e-5)
    assert trainer.evaluate(data, max_length=4, num_beams=1)["eval_rows"] == 8
    assert (seen[-1].predictions == plain.predict(data, max_length=4, num_beams=1).predictions).all()
    bare = [{k: v for k, v in example.items() if k != "labels"} for example in data]
    trainer.data_collator = lambda rows: {
        k: v for k, v in collate(rows_with_labels(rows)).items() if k != "labels"
    }
    assert (trainer.predict(bare).predictions == expected.predictions).all()


def rows_with_labels(rows):
    return [row | {"labels": [1]} for row in rows]


def test_decoder_inputs_of_the_collator_are_used_as_they_are(make_args):
    """`DataCollatorForSeq2Seq(tokenizer, model)` puts them into the batch."""
    model = bart()
    batch = collate(pairs(4))
    batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    trainer = ReweightedSeq2SeqTrainer(model, make_args(Seq2SeqTrainingArguments), reweighting="none")
    torch.testing.assert_close(trainer.compute_loss(model.train(), dict(batch)), model(**batch).loss)
