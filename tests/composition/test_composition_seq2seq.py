"""`ReweightedSeq2SeqTrainer`: generation while evaluating, training on the surrogate."""

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from rgd_hf import (
    ReweightedSeq2SeqTrainer,
    ReweightedSeq2SeqTrainingArguments,
    rgd_surrogate,
)
from tests.helpers.seq2seq import bart, collate, pairs, t5

MODELS = pytest.mark.parametrize("build", [t5, bart])


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
