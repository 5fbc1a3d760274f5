"""EMA in the ways into evaluating, saving and training: several evaluation sets, tied weights, several trainings."""

import pytest
import torch
from torch.nn import functional as F

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments
from rgd_hf.contrib import EMAMixin
from tests.helpers.quiet import QUIET
from tests.helpers.tiny import classification_data, stack, tiny_bert


class EMATrainer(EMAMixin, ReweightedTrainer):
    pass


ROWS = classification_data(16)


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
