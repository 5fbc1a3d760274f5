"""Settings reach the trainer when they are used, not when it is made: search, shared and pickled arguments."""

import itertools

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments
from rgd_hf.divergences import largest_weight
from tests.helpers.tiny import classification_data, parameters_of, tiny_bert

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.ERROR)

DATA = classification_data(16)


class Used(TrainerCallback):
    """The settings at the end of every run, and the largest weight that was logged."""

    def __init__(self):
        self.runs = []

    def on_train_end(self, args, state, control, **kwargs):
        logged = [entry.get("weight_max") for entry in state.log_history if "loss" in entry]
        self.runs.append((args.reweighting, args.tau, logged))


GRID = {"reweighting": ["kl", "chi2", "none"], "tau": [0.25, 0.5]}


def search(args, seen, **keywords):
    trainer = ReweightedTrainer(
        args=args,
        model_init=lambda trial: tiny_bert(),
        train_dataset=DATA,
        eval_dataset=DATA,
        callbacks=[seen],
        **keywords,
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {
            name: trial.suggest_categorical(name, values) for name, values in GRID.items()
        },
        n_trials=6,
        direction="minimize",
        backend="optuna",
        sampler=optuna.samplers.GridSampler(GRID, seed=0),
        compute_objective=lambda metrics: metrics["eval_loss"],
    )
    return trainer, best


@pytest.mark.parametrize(
    ("cls", "keywords"),
    [
        (TrainingArguments, {}),
        (ReweightedTrainingArguments, {}),
        (TrainingArguments, {"tau": 9.0, "reweighting": "chi2"}),
        (ReweightedTrainingArguments, {"tau": 9.0, "reweighting": "chi2"}),
    ],
    ids=["plain", "own", "plain with keywords", "own with keywords"],
)
def test_optuna_searches_over_reweighting_and_tau(cls, keywords, make_args):
    seen = Used()
    trainer, best = search(make_args(cls, max_steps=3, eval_strategy="no"), seen, **keywords)
    assert best.hyperparameters["tau"] in GRID["tau"]
    assert sorted(run[:2] for run in seen.runs) == sorted(itertools.product(*GRID.values()))
    for reweighting, tau, logged in seen.runs:
        # Some losses of this model lie above every tau, so that the largest weight is reached.
        bound = None if reweighting == "none" else largest_weight(reweighting, tau)
        assert logged == [bound if bound is None else pytest.approx(bound)] * 3
    assert trainer.args.tau in GRID["tau"]


def test_a_search_that_suggests_a_wrong_value_says_what_is_allowed(make_args):
    trainer = ReweightedTrainer(
        args=make_args(), model_init=lambda trial: tiny_bert(), train_dataset=DATA, eval_dataset=DATA
    )
    with pytest.raises(ValueError, match="positive"):
        trainer.hyperparameter_search(
            hp_space=lambda trial: {"tau": trial.suggest_float("tau", -1, -1)}, n_trials=1, backend="optuna"
        )


@pytest.mark.parametrize("cls", [TrainingArguments, ReweightedTrainingArguments])
def test_one_arguments_object_serves_several_trainers(cls, make_args):
    args = make_args(cls, max_steps=4)
    before = dict(vars(args))

    def trained(trainer_cls, **keywords):
        trainer = trainer_cls(tiny_bert(), args, train_dataset=DATA, **keywords)
        return trainer

    first = trained(ReweightedTrainer, reweighting="none")
    second = trained(ReweightedTrainer, reweighting="kl", tau=2.0)
    third = trained(Trainer)
    for trainer in (second, first, third):
        trainer.train()
    assert (first.args.reweighting, second.args.reweighting, second.args.tau) == ("none", "kl", 2.0)
    assert {k: v for k, v in vars(args).items() if k in before} == before
    torch.testing.assert_close(parameters_of(first.model), parameters_of(third.model), rtol=1e-5, atol=1e-7)
    assert not torch.allclose(parameters_of(first.model), parameters_of(second.model), rtol=1e-4)


def test_settings_may_change_between_two_runs(make_args):
    trainer = ReweightedTrainer(tiny_bert(), make_args(max_steps=2), train_dataset=DATA, reweighting="none")
    trainer.train()
    assert "weight_max" not in trainer.state.log_history[0]
    trainer.args.reweighting, trainer.args.tau = "kl", 0.1
    trainer.train()
    assert trainer.state.log_history[0]["weight_max"] == pytest.approx(torch.tensor(0.1 / 1.1).exp().item())


@pytest.mark.parametrize("cls", [TrainingArguments, ReweightedTrainingArguments])
def test_pickled_arguments_load(cls, make_args, tmp_path):
    trainer = ReweightedTrainer(tiny_bert(), make_args(cls), train_dataset=DATA, tau=2.5, reweighting="chi2")
    trainer.save_model(str(tmp_path / "model"))
    loaded = torch.load(tmp_path / "model" / "training_args.bin", weights_only=False)
    assert isinstance(loaded, cls)
    assert (loaded.tau, loaded.reweighting, loaded.max_steps) == (2.5, "chi2", 2)
    again = ReweightedTrainer(tiny_bert(), loaded, train_dataset=DATA)
    assert (again.args.tau, again.args.reweighting) == (2.5, "chi2")
    again.train()
