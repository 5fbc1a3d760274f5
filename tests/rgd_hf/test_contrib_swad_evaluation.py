"""The evaluation with which SWAD ends, in a training and in a search."""

import math

import pytest

from rgd_hf import ReweightedTrainer
from rgd_hf.contrib import SWADMixin
from tests.helpers.averages import SWADTrainer, loss_of, trainer_of
from tests.helpers.tiny import tiny_bert

EVALUATE = {
    "anything": lambda self, *args, **kwargs: self.evaluated(*args, **kwargs),
    "keywords alone": lambda self, **kwargs: self.evaluated(**kwargs),
    "what the Trainer gives": lambda self, ignore_keys=None: self.evaluated(ignore_keys=ignore_keys),
    "the Trainer's own": lambda self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval": (
        self.evaluated(eval_dataset, ignore_keys, metric_key_prefix)
    ),
    "one more argument": lambda self, eval_dataset=None, ignore_keys=None, more=1, **kwargs: self.evaluated(
        eval_dataset, ignore_keys=ignore_keys, **kwargs
    ),
}


@pytest.mark.parametrize("above", [True, False], ids=["above SWAD", "below SWAD"])
@pytest.mark.parametrize("evaluate", EVALUATE.values(), ids=EVALUATE)
def test_swad_evaluates_its_average_as_the_trainer_evaluates(evaluate, above, tmp_path):
    calls = []

    class Own(SWADTrainer if above else ReweightedTrainer):
        def evaluated(self, *args, **kwargs):
            calls.append((args, kwargs))
            return super().evaluate(*args, **kwargs)

    Own.evaluate = evaluate
    trainer = trainer_of(Own if above else type("Both", (SWADMixin, Own), {}), tmp_path, {}, max_steps=6)
    trainer.validation_loss = lambda metrics: 1.0
    trainer.train(ignore_keys_for_eval=["hidden_states"])
    assert len(calls) == 4 and calls[-1] == calls[0] and "hidden_states" in str(calls[0])


def test_a_search_ranks_trials_by_the_average_of_swad(tmp_path):
    pytest.importorskip("optuna")
    made = trainer_of(SWADTrainer, tmp_path, {})
    trainer = SWADTrainer(
        args=made.args,
        model_init=lambda trial=None: tiny_bert(),
        train_dataset=made.train_dataset,
        eval_dataset=made.eval_dataset,
    )
    trainer.validation_loss = lambda metrics: 1.0
    ends = []
    train = trainer.train
    trainer.train = lambda **given: (train(**given), ends.append(loss_of(trainer)))[0]
    rates = [0.05, 0.2]
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", *rates)},
        n_trials=2,
        direction="minimize",
        backend="optuna",
    )
    assert len(ends) == 2 and best.objective == pytest.approx(min(ends), rel=1e-5)


def test_a_trial_that_diverges_has_no_average_of_swad_from_before(tmp_path):
    """Its objective stays NaN, so that Optuna fails it; the other backends are told what its last weights give."""
    optuna = pytest.importorskip("optuna")
    ended = []

    class Ours(SWADTrainer):
        def compute_per_sample_losses(self, model, inputs):
            found = super().compute_per_sample_losses(model, inputs)
            diverges = self.is_in_train and model.training and self.args.learning_rate > 0.1
            factor = math.inf if diverges and self.state.global_step >= 6 else 1
            return found._replace(losses=found.losses * factor)

        def train(self, *args, **kwargs):
            output = super().train(*args, **kwargs)
            ended.append(loss_of(self))
            return output

    made = trainer_of(SWADTrainer, tmp_path, {}, eval_steps=1, logging_steps=1)
    trainer = Ours(
        args=made.args,
        model_init=lambda trial=None: tiny_bert(),
        train_dataset=made.train_dataset,
        eval_dataset=made.eval_dataset,
    )
    trainer.validation_loss = lambda metrics: 1.0 if math.isfinite(metrics["eval_loss"]) else math.nan
    storage = optuna.storages.InMemoryStorage()
    with pytest.warns(UserWarning, match="step 7 of this trial.*the search continues"):
        trainer.hyperparameter_search(
            hp_space=lambda trial: {
                "learning_rate": trial.suggest_float("r", *[[0.05, 0.2][trial.number]] * 2)
            },
            n_trials=2,
            direction="minimize",
            backend="optuna",
            storage=storage,
            study_name="s",
        )
    trials = optuna.load_study(study_name="s", storage=storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL"]
    assert math.isfinite(ended[0]) and not math.isfinite(ended[1])
