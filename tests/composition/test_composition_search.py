"""Settings reach the trainer when they are used, not when it is made: search, shared and pickled arguments."""

import itertools
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments
from rgd_hf.divergences import largest_weight
from rgd_hf.trainer import NonFiniteLossError
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


RATES = [1e-3, 1e38, 1e-2]


def search_over_rates(cls, make_args, data=DATA, logging_steps=1, **settings):
    """The second of three trials diverges."""
    args = make_args(
        max_steps=4,
        optim="sgd",
        max_grad_norm=0.0,
        eval_strategy="steps",
        eval_steps=1,
        logging_steps=logging_steps,
    )
    trainer = cls(
        args=args, model_init=lambda trial: tiny_bert(), train_dataset=data, eval_dataset=data, **settings
    )
    steps, study = [], []

    class Ends(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    def space(trial):
        study[:] = [trial.study]
        return {"learning_rate": trial.suggest_float("learning_rate", *[RATES[trial.number]] * 2)}

    trainer.add_callback(Ends)
    best = trainer.hyperparameter_search(space, n_trials=3, direction="minimize", backend="optuna")
    states = [trial.state.name for trial in study[0].trials]
    return best, states, steps


@pytest.mark.parametrize("logging_steps", [1, 100])
@pytest.mark.parametrize("stops", [None, True, False])
def test_a_trial_that_diverges_fails_and_the_search_goes_on(stops, logging_steps, make_args):
    class Ours(ReweightedTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.stop_on_non_finite_loss = stops

    stock, states, _ = search_over_rates(Trainer, make_args, logging_steps=logging_steps)
    assert states == ["COMPLETE", "FAIL", "COMPLETE"]
    if stops is False:
        best, found, steps = search_over_rates(Ours, make_args, logging_steps=logging_steps)
    else:
        with pytest.warns(UserWarning, match="at optimizer step 2 of this trial.*the search continues"):
            best, found, steps = search_over_rates(Ours, make_args, logging_steps=logging_steps)
    assert (found, best.run_id) == (states, stock.run_id)
    assert steps == [4, 2 if stops is not False and logging_steps == 1 else 4, 4]


def test_the_objective_of_a_trial_is_not_that_before_it_diverged(make_args):
    """An accuracy is a number even of a model that is none."""
    _, states, _ = search_over_rates(
        ReweightedTrainer, make_args, compute_metrics=lambda prediction: {"accuracy": 0.0}
    )
    assert states == ["COMPLETE", "FAIL", "COMPLETE"]


def test_a_later_training_outside_of_the_search_stops_with_an_error(make_args):
    args = make_args(max_steps=3, optim="sgd", max_grad_norm=0.0, learning_rate=1e38)
    trainer = ReweightedTrainer(
        args=args, model_init=lambda trial: tiny_bert(), train_dataset=DATA, eval_dataset=DATA
    )
    trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-3)},
        n_trials=1, direction="minimize", backend="optuna",
    )  # fmt: skip
    trainer.args.learning_rate = 1e38
    with pytest.raises(NonFiniteLossError, match=r"step 2.*stop_on_non_finite_loss = False"):
        trainer.train()


@pytest.mark.parametrize(
    "cls, keywords",
    [
        (TrainingArguments, {}),
        (TrainingArguments, {"tau": 2.0}),
        (ReweightedTrainingArguments, {}),
        (ReweightedTrainingArguments, {"tau": 2.0}),
    ],
)
def test_arguments_changed_after_the_trainer_was_made_count_as_with_the_stock_trainer(
    cls, keywords, make_args
):
    args = make_args(cls, max_steps=1)
    trainer = ReweightedTrainer(tiny_bert(), args, train_dataset=DATA, eval_dataset=DATA, **keywords)
    args.max_steps, args.learning_rate, args.tau, args.reweighting = 3, 1e-4, 7.0, "chi2"
    assert trainer.train().global_step == 3
    assert (trainer.args.learning_rate, trainer.args.reweighting) == (1e-4, "chi2")
    # What the Trainer itself was given comes first.
    assert trainer.args.tau == (2.0 if keywords else 7.0)
    args.per_device_eval_batch_size = 3
    trainer.evaluate()
    assert trainer.args.per_device_eval_batch_size == 3


def test_what_is_set_on_the_trainer_itself_is_kept(make_args):
    args = make_args(max_steps=1)
    trainer = ReweightedTrainer(tiny_bert(), args, train_dataset=DATA)
    trainer.args.max_steps = 2
    args.max_steps = 3
    assert trainer.train().global_step == 2


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


def test_what_is_set_for_the_next_trainer_is_not_for_those_before(make_args, tmp_path):
    """As in a loop over methods, whose directories would be one."""
    args, trainers = make_args(max_steps=1), []
    for name in ("none", "kl"):
        args.output_dir = str(tmp_path / name)
        trainers.append(ReweightedTrainer(tiny_bert(), args, train_dataset=DATA, reweighting=name))
    args.seed = 7
    for trainer in trainers:
        trainer.train()
    assert [Path(trainer.args.output_dir).name for trainer in trainers] == ["none", "kl"]
    assert [trainer.args.seed for trainer in trainers] == [42, 7]


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
