"""`predict_with_generate`: the plain loss of the evaluation set beside the generated tokens, as without generation."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from rgd_hf import ReweightedSeq2SeqTrainer, ReweightingMixin
from tests.helpers.processes import run_on
from tests.helpers.seq2seq import bart, collate, pairs, t5

DATA = pairs(7, 1)


def trainer_of(
    make_args, build=bart, cls=ReweightedSeq2SeqTrainer, generate=True, batch=4, ours=None, **settings
):
    seen = []

    def keep(prediction):
        seen.append(prediction)
        return {}

    args = make_args(
        Seq2SeqTrainingArguments,
        predict_with_generate=generate,
        per_device_eval_batch_size=batch,
        generation_max_length=6,
        **settings,
    )
    trainer = cls(
        build(), args, eval_dataset=DATA, data_collator=collate, compute_metrics=keep, **(ours or {})
    )
    trainer.seen = seen
    return trainer


def mean_over_tokens(build):
    model = build().eval()
    losses = []
    with torch.no_grad():
        for row in DATA:
            batch = collate([row])
            losses.append(F.cross_entropy(model(**batch).logits[0], batch["labels"][0], reduction="none"))
    return torch.cat(losses).mean().item()


@pytest.mark.parametrize("build", [t5, bart])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_the_loss_is_the_mean_over_the_tokens_and_the_tokens_are_the_stock_trainers(
    batch, smoothing, build, make_args
):
    settings = {"batch": batch, "label_smoothing_factor": smoothing}
    ours = trainer_of(make_args, build, **settings)
    stock = trainer_of(make_args, build, Seq2SeqTrainer, **settings)
    smoother = ours.label_smoother
    metrics = ours.evaluate()
    stock.evaluate()
    assert metrics["eval_loss"] == pytest.approx(mean_over_tokens(build), rel=1e-6)
    assert ours.predict(DATA).metrics["test_loss"] == pytest.approx(mean_over_tokens(build), rel=1e-6)
    assert len(ours.eval_losses) == len(DATA)
    assert (ours.seen[0].predictions == stock.seen[0].predictions).all()
    assert (ours.seen[0].label_ids == stock.seen[0].label_ids).all()
    assert ours.label_smoother is smoother


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_there_are_no_more_forward_passes_than_the_stock_trainers(smoothing, make_args):
    passes = []
    for cls in (Seq2SeqTrainer, ReweightedSeq2SeqTrainer):
        trainer = trainer_of(make_args, cls=cls, label_smoothing_factor=smoothing)
        count = []
        for module in (trainer.model, trainer.model.model.encoder, trainer.model.model.decoder):
            module.register_forward_pre_hook(lambda module, _, count=count: count.append(type(module)))
        trainer.evaluate()
        passes.append(count)
    assert passes[0] == passes[1]


class PassesOn:
    def prediction_step(self, *args, **kwargs):
        return super().prediction_step(*args, **kwargs)


class LooksAtTheModel:
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None, **kwargs):
        assert isinstance(model, torch.nn.Module) and not model.training
        assert model.config.vocab_size == model.lm_head.out_features
        with torch.no_grad():
            outputs = model(**inputs)
            without = model(
                **{k: v for k, v in inputs.items() if k != "labels"},
                decoder_input_ids=inputs["labels"].clamp(0),
            )
        assert outputs.logits.shape == without.logits.shape and outputs[0] is outputs.loss
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **kwargs)


@pytest.mark.parametrize("override", [PassesOn, LooksAtTheModel])
def test_an_override_behind_the_mixin_leaves_it_exact(override, make_args):
    cls = type("Ours", (ReweightingMixin, override, Seq2SeqTrainer), {})
    trainer = trainer_of(make_args, cls=cls, label_smoothing_factor=0.3)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(mean_over_tokens(bart), rel=1e-6)


class AddsToTheLoss:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = 2 * loss + model.lm_head.weight.square().mean()
        return (loss, outputs) if return_outputs else loss


class SquaresThem:
    def compute_per_sample_losses(self, model, inputs):
        losses, outputs, *rest = super().compute_per_sample_losses(model, inputs)
        return losses**2, outputs, *rest


@pytest.mark.parametrize("override", [AddsToTheLoss, SquaresThem])
def test_a_loss_of_ones_own_is_that_of_an_evaluation_without_generation(override, make_args):
    cls = type("Ours", (override, ReweightedSeq2SeqTrainer), {})
    with_generation, without = (
        trainer_of(make_args, cls=cls, generate=generate).evaluate()["eval_loss"]
        for generate in (True, False)
    )
    assert with_generation == pytest.approx(without, rel=1e-6)
    assert abs(without - mean_over_tokens(bart)) > 0.1


def test_on_two_processes(tmp_path):
    """Seven samples: the last batch of the second process is filled up with a repeat."""
    run_on(2, __file__, tmp_path)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["eval_loss"] == pytest.approx(mean_over_tokens(bart), rel=1e-6)
        assert found["samples"] == len(DATA)


def evaluate_on_this_process(folder):
    def make(cls, **settings):
        return cls(output_dir=folder, use_cpu=True, report_to=[], **settings)

    trainer = trainer_of(make, batch=2)
    loss = trainer.evaluate()["eval_loss"]
    found = {"eval_loss": loss, "samples": len(trainer.eval_losses)}
    (Path(folder) / f"{trainer.args.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    evaluate_on_this_process(sys.argv[1])
