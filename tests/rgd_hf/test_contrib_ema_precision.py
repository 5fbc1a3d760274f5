"""EMA of models in half precision, against the recurrence in float64."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

from rgd_hf.contrib import EMAMixin
from tests.helpers.quiet import QUIET
from tests.helpers.tiny import classification_data, tiny_bert
from tests.helpers.weights_kept import Keep

DECAY, STEPS = 0.99, 24
ROWS = classification_data(16)


class EMATrainer(EMAMixin, Trainer):
    pass


def partly_half():
    """A model of two precisions, as with layers that are kept in float32."""
    model = tiny_bert().to(torch.bfloat16)
    model.classifier.float()
    model.classifier.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    return model


MODELS = {
    "bfloat16": lambda: tiny_bert().to(torch.bfloat16),
    "both": partly_half,
    "float32": tiny_bert,
}
EVERY_MODEL = pytest.mark.parametrize("precision", MODELS)


def trainer_of(tmp_path, precision, **settings):
    args = TrainingArguments(
        output_dir=str(tmp_path), **(QUIET | {"max_steps": STEPS, "learning_rate": 0.01} | settings)
    )
    return EMATrainer(MODELS[precision](), args, train_dataset=ROWS, eval_dataset=ROWS[:4], ema_decay=DECAY)


def trained(trainer, **how):
    keep = Keep()
    trainer.add_callback(keep)
    trainer.train(**how)
    return keep.seen


def average_of(states):
    mean = {name: value.double() for name, value in states[0].items()}
    for state in states[1:]:
        mean = {name: DECAY * mean[name] + (1 - DECAY) * value.double() for name, value in state.items()}
    return mean


def assert_close(found, expected, rtol=1e-5):
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value.double(), rtol=rtol, atol=1e-6, msg=name)


@EVERY_MODEL
def test_the_average_is_that_of_float32_however_often_it_is_evaluated(precision, tmp_path):
    trainer = trainer_of(tmp_path, precision, eval_strategy="steps", eval_steps=2)
    states = trained(trainer)
    expected = average_of(states)
    assert_close(trainer.ema.module.state_dict(), expected)
    with trainer.averaged():
        for name, value in trainer.model.state_dict().items():
            assert value.dtype == states[-1][name].dtype
        assert_close(trainer.model.state_dict(), expected, rtol=1e-2)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, states[-1][name]), name
    assert_close(trainer.ema.module.state_dict(), expected)


@EVERY_MODEL
def test_the_saved_model_has_the_average_in_its_own_precision(precision, tmp_path):
    trainer = trainer_of(tmp_path, precision)
    expected = average_of(trained(trainer))
    trainer.save_model(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    for name, value in trainer.model.state_dict().items():
        assert saved[name].dtype == value.dtype
    assert_close(saved, expected, rtol=1e-2)


@EVERY_MODEL
def test_a_training_resumes_with_the_whole_average(precision, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": STEPS // 2}
    states = trained(trainer_of(tmp_path, precision, **settings))
    resumed = trainer_of(tmp_path / "resumed", precision)
    trained(resumed, resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS // 2}"))
    assert_close(resumed.ema.module.state_dict(), average_of(states))


def test_a_checkpoint_whose_average_is_in_half_precision_is_resumed(tmp_path):
    """As those that were written before the average was kept in float32."""
    settings = {"save_strategy": "steps", "save_steps": STEPS // 2}
    states = trained(trainer_of(tmp_path, "bfloat16", **settings))
    checkpoint = tmp_path / f"checkpoint-{STEPS // 2}"
    old = {n: v.to(torch.bfloat16) for n, v in load_file(checkpoint / "ema.safetensors").items()}
    save_file(old, checkpoint / "ema.safetensors", metadata={"format": "pt"})
    resumed = trainer_of(tmp_path / "resumed", "bfloat16")
    trained(resumed, resume_from_checkpoint=str(checkpoint))
    assert {value.dtype for value in resumed.ema.module.state_dict().values()} == {torch.float32}
    assert_close(resumed.ema.module.state_dict(), average_of(states), rtol=1e-2)


def test_a_prediction_that_changes_the_precision_leaves_the_average_and_the_next_training_alone(tmp_path):
    trainer = trainer_of(tmp_path, "float32", max_steps=4, bf16_full_eval=True)
    for _ in range(2):
        states = trained(trainer)
        average = average_of(states[-4:])
        assert_close(trainer.ema.module.state_dict(), average)
        trainer.predict(ROWS)
        assert_close(trainer.ema.module.state_dict(), average)
        assert_close(trainer.model.state_dict(), states[-1], rtol=0.01)
        trainer.save_model(str(tmp_path / "saved"))
        saved = load_file(tmp_path / "saved" / "model.safetensors")
        assert all(torch.allclose(saved[n].double(), average[n], rtol=0.01, atol=1e-3) for n in saved)
