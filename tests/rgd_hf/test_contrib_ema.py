"""EMA in the ways into evaluating, saving and training: several evaluation sets, tied weights, several trainings."""

import copy
import logging

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import EarlyStoppingCallback, T5Config, T5ForConditionalGeneration, TrainerCallback

from rgd_hf import (
    ReweightedSeq2SeqTrainer,
    ReweightedSeq2SeqTrainingArguments,
    ReweightedTrainer,
    ReweightedTrainingArguments,
)
from rgd_hf.contrib import EMAMixin, MIROMixin
from tests.helpers.quiet import QUIET
from tests.helpers.tiny import classification_data, stack, tiny_bert, tiny_gpt2
from tests.helpers.weights_kept import Keep


class EMATrainer(EMAMixin, ReweightedTrainer):
    pass


ROWS = classification_data(16)
TEXTS = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in ROWS]


def trainer_of(tmp_path, model=None, cls=EMATrainer, rows=ROWS, keywords=None, **settings):
    args = ReweightedTrainingArguments(output_dir=str(tmp_path), **(QUIET | {"max_steps": 3} | settings))
    if not (keywords and "model_init" in keywords):
        model = model or tiny_bert()
    return cls(model, args, train_dataset=rows, **({"ema_decay": 0.5} | (keywords or {})))


@torch.no_grad()
def loss_of(model, rows):
    batch = stack(rows)
    return F.cross_entropy(model.eval()(input_ids=batch["input_ids"]).logits, batch["labels"]).item()


# --- evaluating -----------------------------------------------------------------------------------------------------


def test_every_one_of_several_sets_is_evaluated_with_both_weights(tmp_path):
    sets = {"a": classification_data(8, seed=5), "b": classification_data(8, seed=6)}
    trainer = trainer_of(tmp_path, keywords={"eval_dataset": sets})
    trainer.train()
    metrics = trainer.evaluate()
    found = {name: value for name, value in metrics.items() if name.endswith("loss")}
    expected = {f"eval_{name}_loss": loss_of(trainer.ema.module, rows) for name, rows in sets.items()}
    expected |= {f"eval_last_{name}_loss": loss_of(trainer.model, rows) for name, rows in sets.items()}
    assert found == pytest.approx(expected, rel=1e-5)
    assert found["eval_a_loss"] != pytest.approx(found["eval_last_a_loss"], rel=1e-2)


def test_the_averaged_weights_are_used_once_however_often_they_are_asked_for(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    last, averaged = loss_of(trainer.model, ROWS), loss_of(trainer.ema.module, ROWS)
    with trainer.averaged():
        with trainer.averaged():
            assert loss_of(trainer.model, ROWS) == averaged != last
        assert trainer.predict(ROWS).metrics["test_loss"] == pytest.approx(averaged, rel=1e-5)
        metrics = trainer.evaluate(ROWS)
        assert metrics["eval_loss"] == pytest.approx(averaged, rel=1e-5) and "eval_last_loss" not in metrics
    assert loss_of(trainer.model, ROWS) == last


def test_callbacks_see_one_evaluation_and_early_stopping_goes_by_it(tmp_path, caplog):
    class Evaluations(TrainerCallback):
        def __init__(self):
            self.losses = []

        def on_evaluate(self, args, state, control, metrics, **kwargs):
            self.losses.append(metrics["eval_loss"])

    seen = Evaluations()
    settings = {
        "max_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "eval_loss",
    }
    trainer = trainer_of(
        tmp_path,
        keywords={"eval_dataset": classification_data(8, seed=5), "ema_decay": 0.9},
        learning_rate=2.0,
        **settings,
    )
    trainer.add_callback(seen)
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        trainer.train()
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert "early stopping is disabled" not in caplog.text
    logged = trainer.state.log_history
    assert seen.losses == [entry["eval_loss"] for entry in logged if "eval_loss" in entry]
    assert len(seen.losses) == len([entry for entry in logged if "eval_last_loss" in entry])
    best = next(
        n for n in range(len(seen.losses)) if min(seen.losses[n + 1 : n + 3]) > min(seen.losses[: n + 1])
    )
    assert trainer.state.global_step == best + 3 < 6


def test_keywords_of_an_evaluation_go_to_the_trainer(tmp_path):
    class Texts(EMAMixin, ReweightedSeq2SeqTrainer):
        pass

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0))
    args = ReweightedSeq2SeqTrainingArguments(output_dir=str(tmp_path), predict_with_generate=True, **QUIET)
    trainer = Texts(model, args, eval_dataset=TEXTS[:8], ema_decay=0.5, compute_metrics=lambda _: {})
    generate, lengths = model.generate, []
    model.generate = lambda *given, **kwargs: (
        lengths.append(kwargs["max_length"]) or generate(*given, **kwargs)
    )
    trainer.evaluate(max_length=5)
    trainer.predict(TEXTS[:8], max_length=4)
    assert lengths == [5, 5, 4]


# --- tied weights and checkpoints -----------------------------------------------------------------------------------


def average_of(states, decay=0.5):
    """The recurrence from the first of `states`, which have no whole numbers that change."""
    mean = states[0]
    for state in states[1:]:
        mean = {name: decay * mean[name] + (1 - decay) * value for name, value in state.items()}
    return mean


def assert_same_weights(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


TIED = ("transformer.wte.weight", "lm_head.weight")


def test_tied_weights_are_swapped_saved_and_resumed(tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole, keep = trainer_of(tmp_path, tiny_gpt2(), rows=TEXTS, **settings), Keep()
    whole.add_callback(keep)
    whole.train()
    expected = average_of(keep.seen)
    with whole.averaged():
        assert_same_weights(whole.model.state_dict(), expected)
    assert_same_weights(whole.model.state_dict(), keep.seen[-1])
    assert (expected[TIED[0]] - keep.seen[-1][TIED[0]]).abs().max() > 1e-2
    saved = load_file(tmp_path / "checkpoint-2" / "ema.safetensors")
    assert len(set(TIED) & set(saved)) == 1

    resumed = trainer_of(tmp_path, tiny_gpt2(), rows=TEXTS, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same_weights(resumed.ema.module.state_dict(), expected)
    first, second = (resumed.ema.module.get_parameter(name) for name in TIED)
    assert first is second


@pytest.mark.parametrize("name", ["final", "checkpoint-final", "checkpoint-3", "checkpoint-3/export"])
def test_what_a_user_saves_is_the_average_whatever_the_folder_is_called(name, tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / name))
    assert_same_weights(load_file(tmp_path / name / "model.safetensors"), trainer.ema.module.state_dict())
    assert not (tmp_path / name / "ema.safetensors").exists()


def test_a_checkpoint_has_both_weights(tmp_path):
    trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=3)
    trainer.train()
    folder = tmp_path / "checkpoint-3"
    assert_same_weights(load_file(folder / "model.safetensors"), trainer.model.state_dict())
    assert_same_weights(load_file(folder / "ema.safetensors"), trainer.ema.module.state_dict())


# --- several trainings ----------------------------------------------------------------------------------------------


def wider():
    """Models of two sizes in turn, as a search over sizes has them."""
    wider.calls += 1
    return tiny_bert(num_labels=3 + wider.calls % 2)


@pytest.mark.parametrize("model_init", [None, lambda: tiny_bert(), wider])
def test_every_training_begins_its_own_average(model_init, tmp_path):
    wider.calls = 0
    trainer = trainer_of(tmp_path, keywords={"model_init": model_init} if model_init else None)
    for _ in range(2):
        keep = Keep()
        trainer.add_callback(keep)
        trainer.train()
        trainer.remove_callback(keep)
        assert_same_weights(trainer.ema.module.state_dict(), average_of(keep.seen))


def test_before_a_training_there_is_no_average(tmp_path):
    trainer = trainer_of(tmp_path)
    with torch.no_grad():
        trainer.model.classifier.bias += 1.0
    weights = copy.deepcopy(trainer.model.state_dict())
    metrics = trainer.evaluate(ROWS)
    assert metrics["eval_loss"] == metrics["eval_last_loss"] == pytest.approx(loss_of(trainer.model, ROWS))
    with trainer.averaged():
        assert_same_weights(trainer.model.state_dict(), weights)


def test_a_training_that_resumes_goes_on_with_the_average_of_the_checkpoint(tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole, keep = trainer_of(tmp_path, **settings), Keep()
    whole.add_callback(keep)
    whole.train()
    whole.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same_weights(whole.ema.module.state_dict(), average_of(keep.seen[:4]))


@pytest.mark.parametrize("mixins", [(EMAMixin, MIROMixin), (MIROMixin, EMAMixin)])
def test_miro_has_its_average_in_every_order(mixins, tmp_path):
    trainer = trainer_of(tmp_path, cls=type("Both", (*mixins, ReweightedTrainer), {}))
    keep = Keep()
    trainer.add_callback(keep)
    trainer.train()
    expected = average_of(keep.seen)
    with trainer.averaged():
        assert_same_weights(trainer.model.state_dict(), expected)
    trainer.save_model(str(tmp_path / "saved"))
    bare = {name: value for name, value in expected.items() if not name.startswith("miro")}
    assert_same_weights(load_file(tmp_path / "saved" / "model.safetensors"), bare)
    assert_same_weights(trainer.model.state_dict(), keep.seen[-1])
