"""The scores on model cards: which evaluation they are of, and of which data."""

import re
from typing import Any

import pytest
from datasets import Dataset, NamedSplit

from rgd_hf import ReweightedTrainer
from rgd_hf.contrib import EMAMixin
from tests.helpers.cards import accuracy, trained, written
from tests.helpers.tiny import classification_data, tiny_bert


class WithEMA(EMAMixin, ReweightedTrainer):
    """Evaluates every set twice: the averaged weights, and the last ones."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, ema_decay=0.5, **kwargs)


def test_scores_are_those_of_the_best_checkpoint_that_was_loaded(make_args):
    args = make_args(load_best_model_at_end=True, save_strategy="steps", eval_strategy="steps")
    trainer = ReweightedTrainer(tiny_bert(), args, eval_dataset=Dataset.from_list(classification_data(8)))
    trainer.state.best_global_step = 1
    trainer.state.log_history = [
        {"eval_loss": 0.25, "step": 1},
        {"eval_loss": 0.75, "step": 2},
        {"train_runtime": 1.0, "step": 2},
    ]
    assert "| Loss | 0.2500 |" in written(trainer).text
    trainer.state.log_history.append({"eval_loss": 0.5, "step": 2})
    assert "| Loss | 0.5000 |" in written(trainer).text, "an evaluation after training comes first"


def test_several_evaluation_sets(make_args):
    data = Dataset.from_list(classification_data(8))
    trainer = ReweightedTrainer(
        tiny_bert(),
        make_args(),
        eval_dataset={"matched": data, "mismatched": data},
        compute_metrics=accuracy,
    )
    trainer.evaluate()
    card = written(trainer, dataset_tags="nyu-mll/glue", dataset_args="mnli")
    assert "| Accuracy (matched) |" in card.text and "| Loss (mismatched) |" in card.text
    assert {result.dataset_split for result in card.data.eval_results} == {"matched", "mismatched"}


def rows(n: int, seed: int, split: str | None) -> Dataset:
    data = Dataset.from_list(classification_data(n, seed=seed))
    return Dataset(data.data, split=None if split is None else NamedSplit(split))


def names_and_values(trainer: Any) -> tuple[dict[str, str], dict[tuple[str, str], float]]:
    """The losses of a card: of its table by their names, of its metadata by split."""
    card = written(trainer, dataset_tags="nyu-mll/glue")
    table = dict(re.findall(r"\| (Loss.*?) \| (.*?) \|", card.text))
    results = card.data.eval_results or []
    return table, {r.dataset_split: r.metric_value for r in results if r.metric_name == "Loss"}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
@pytest.mark.parametrize(
    ("trainer_class", "best"), [(ReweightedTrainer, False), (ReweightedTrainer, True), (WithEMA, False)]
)
def test_scores_of_other_data_are_not_those_of_the_evaluation_set(make_args, trainer_class, best, order):
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = trainer_class(
        tiny_bert(),
        make_args(max_steps=3, load_best_model_at_end=best, **(steps if best else {})),
        train_dataset=rows(8, 0, "train"),
        eval_dataset=rows(8, 1, "validation"),
    )
    trainer.train()
    evaluations = [
        (lambda: trainer.evaluate(), "validation"),
        (lambda: trainer.evaluate(rows(8, 2, "test")), "test"),
    ]
    found = {}
    for i in order:
        evaluate, split = evaluations[i]
        found[split] = evaluate()["eval_loss"]
    assert found["test"] != found["validation"]
    table, results = names_and_values(trainer)
    assert results == found
    assert table["Loss"] == f"{found['validation']:.4f}" and table["Loss (test)"] == f"{found['test']:.4f}"
    # Under no name, or one that is taken, there is nothing to tell it by.
    trainer.evaluate(rows(8, 3, None))
    trainer.evaluate(eval_dataset=rows(8, 4, "validation"))
    trainer.evaluate(rows(8, 5, "test"), metric_key_prefix="test")
    assert names_and_values(trainer) == (table, results)
    # Passed by names, they have these.
    several = trainer.evaluate({"short": rows(4, 6, None), "long": rows(4, 7, "validation")})
    expected = {name: several[f"eval_{name}_loss"] for name in ("short", "long")}
    assert names_and_values(trainer)[1] == results | expected
    # The evaluation set by another way is the evaluation set; another one in its place has its own split.
    trainer.evaluate(trainer.eval_dataset)
    assert names_and_values(trainer)[1] == results | expected
    trainer.eval_dataset, before = rows(8, 2, "test_2"), trainer.eval_dataset
    swapped = trainer.evaluate()["eval_loss"]
    trainer.eval_dataset = before
    assert names_and_values(trainer)[1].get("test_2") == swapped


def test_scores_of_other_data_alone_leave_those_of_training(make_args):
    trainer = trained(make_args, eval_strategy="steps", eval_steps=1, max_steps=2)
    of_training = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    trainer.evaluate(rows(8, 2, None))
    assert names_and_values(trainer)[0]["Loss"] == f"{of_training:.4f}"


def test_one_of_several_evaluation_sets_has_its_name(make_args):
    sets = {"matched": rows(8, 1, None), "mismatched": rows(8, 2, "validation_mismatched")}
    trainer = ReweightedTrainer(tiny_bert(), make_args(), eval_dataset=sets)
    found = {name: trainer.evaluate(name, metric_key_prefix=f"eval_{name}") for name in sets}
    expected = {
        "matched": found["matched"]["eval_matched_loss"],
        "validation_mismatched": found["mismatched"]["eval_mismatched_loss"],
    }
    assert names_and_values(trainer)[1] == expected
    trainer.evaluate(sets["matched"])
    table, results = names_and_values(trainer)
    assert results == expected and set(table) == {"Loss (matched)", "Loss (mismatched)"}
