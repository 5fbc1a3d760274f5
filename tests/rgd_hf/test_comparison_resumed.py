"""What a second call of `compare` trains again: metrics that a run lacks, early stopping that was interrupted."""

import json

import numpy as np
import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments, compare
from tests.helpers.tiny import classification_data, tiny_bert

DATA = classification_data(12)


def builder(make_args, cls=ReweightedTrainer, callbacks=lambda: (), compute_metrics=None, **options):
    def make_trainer(seed, reweighting):
        return cls(
            model=tiny_bert(seed),
            args=make_args(ReweightedTrainingArguments, **{"seed": seed, "max_steps": 2, **options}),
            reweighting=reweighting,
            train_dataset=DATA,
            eval_dataset=DATA,
            callbacks=[*callbacks()],
            compute_metrics=compute_metrics,
        )

    return make_trainer


def accuracy(prediction):
    return {"accuracy": (prediction.predictions.argmax(-1) == prediction.label_ids).mean()}


@pytest.mark.parametrize("saves", ["no", "steps"])
def test_both_remedies_for_a_missing_metric_can_be_followed(saves, make_args, tmp_path, capsys):
    options = {"save_strategy": saves, "save_steps": 1}
    given = {"seeds": [0, 1], "output_dir": tmp_path / "c"}
    with pytest.raises(
        ValueError, match=r"no 'eval_accuracy', but .*eval_loss.*choose one of these, or return it"
    ):
        compare(builder(make_args, **options), metric="eval_accuracy", **given)
    lines = (tmp_path / "c" / "runs.jsonl").read_text().splitlines()
    assert len(lines) == 1
    losses = compare(builder(make_args, **options), **given)
    assert (tmp_path / "c" / "runs.jsonl").read_text().splitlines()[:1] == lines, (
        "the first is not trained again"
    )
    capsys.readouterr()
    found = compare(builder(make_args, compute_metrics=accuracy, **options), metric="eval_accuracy", **given)
    assert capsys.readouterr().out.count("finished without 'eval_accuracy', and is trained again") == 4
    assert [run["metrics"]["eval_loss"] for run in found.runs] == pytest.approx(
        [run["metrics"]["eval_loss"] for run in losses.runs]
    )
    again = compare(builder(make_args, compute_metrics=accuracy, **options), metric="eval_accuracy", **given)
    assert again.scores == found.scores and "run 1" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "half", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), np.array(0.5)[()], 0.5]
)
def test_scores_may_be_numbers_of_any_library(half, make_args, tmp_path):
    class Evaluates(ReweightedTrainer):
        def evaluate(self, *args, **kwargs):
            return {**super().evaluate(*args, **kwargs), "eval_accuracy": half}

    found = compare(
        builder(make_args, Evaluates), seeds=[0], metric="eval_accuracy", output_dir=tmp_path / "c"
    )
    line = json.loads((tmp_path / "c" / "runs.jsonl").read_text().splitlines()[0])
    assert found.scores["ERM"] == {0: 0.5} and line["metrics"]["eval_accuracy"] == 0.5


class Interrupt(TrainerCallback):
    def __init__(self, step, ended):
        self.step, self.ended = step, ended

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt

    def on_train_end(self, args, state, control, **kwargs):
        self.ended.append(state.global_step)


class Patience(EarlyStoppingCallback):
    """The Trainer cannot make it again from what its state names."""

    def __init__(self):
        super().__init__(3)


class Noted(EarlyStoppingCallback):
    """Made again, it would lack what its state does not name."""

    def __init__(self, *args, notes=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.notes = notes

    def on_evaluate(self, args, state, control, **kwargs):
        super().on_evaluate(args, state, control, **kwargs)
        self.notes.append(state.global_step)


STOPPING = {
    "stock": lambda notes: [EarlyStoppingCallback(3)],
    "own": lambda notes: [Patience()],
    "own with an object": lambda notes: [Noted(3, notes=notes)],
    "two": lambda notes: [EarlyStoppingCallback(3), EarlyStoppingCallback(9)],
}


@pytest.mark.parametrize("stopping, anew", [*((name, False) for name in STOPPING), ("stock", True)])
def test_early_stopping_counts_on_where_it_was_interrupted(stopping, anew, make_args, tmp_path):
    """The loss is best at first, so that it stops after as many evaluations as its patience."""
    options = {
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 9,
        "learning_rate": 0.0, "metric_for_best_model": "eval_loss", "restore_callback_states_from_checkpoint": anew,
    }  # fmt: skip
    given = {"seeds": [0], "reweightings": ["kl", "none"], "output_dir": tmp_path / "c"}
    notes = []

    def run(interrupted):
        ended, first = [], []

        def callbacks():
            made = STOPPING[stopping](notes)
            first.extend(made[:1])
            return (*made, Interrupt(interrupted, ended))

        compare(builder(make_args, callbacks=callbacks, **options), **given)
        return ended, first[0].early_stopping_patience_counter

    with pytest.raises(KeyboardInterrupt):
        run(3)
    # The last one is the evaluation of compare. An object that the Trainer replaces counts nothing.
    assert run(None) == ([4, 4], 0 if anew else 4)
    assert notes == ([1, 2, 3, 4, 4] * 2 if stopping == "own with an object" else [])
