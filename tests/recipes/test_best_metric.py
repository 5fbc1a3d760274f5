"""`--metric_for_best_model`: what chooses the best model, and names that no evaluation has, refused before training."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss, mean_absolute_error
from transformers import EvalPrediction

import domainbed
import glue
import imagenet
import tabular
from helpers.domains import DIGITS
from helpers.recipes import tiny
from helpers.tables import SIZES, arguments, learnable, splits_of
from rgd_hf.observers.statistics import NonFiniteLossError
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.tabular.trainer import KeepBest
from rgd_hf.scripts.tabular.training import train_network
from rgd_hf.scripts.training.metrics import FUNCTIONS, make_compute_metrics, metric_names
from rgd_hf.scripts.vision.metrics import image_metric_names, make_image_metrics


def noisy():
    """A table of unequal classes with wrong labels: its best epoch is seldom the last."""
    frame = learnable(400)
    draw = np.random.default_rng(1)
    frame = frame[(frame["y"] == "small") | (draw.random(len(frame)) < 0.4)].reset_index(drop=True)
    wrong = draw.random(len(frame)) < 0.25
    return frame.assign(y=np.where(wrong, draw.permutation(frame["y"]), frame["y"]))


@pytest.mark.parametrize(
    ("metric", "oracle"),
    [
        ("balanced_accuracy", lambda y, p: balanced_accuracy_score(y, p.argmax(1))),
        ("eval_f1_macro", lambda y, p: f1_score(y, p.argmax(1), average="macro")),
        ("log_loss", lambda y, p: -log_loss(y, p)),
    ],
)
def test_a_table_keeps_the_epoch_with_the_best_asked_score(metric, oracle, tmp_path):
    splits = splits_of(noisy())
    args = arguments(tmp_path, metric_for_best_model=metric, num_train_epochs=12, reweighting="none")
    trained = train_network(splits, "mlp", SIZES, args)
    name = f"eval_{metric.removeprefix('eval_')}"
    logged = [entry[name] for entry in trained.trainer.state.log_history if name in entry]
    assert abs(trained.validation_score) == pytest.approx((min if "loss" in name else max)(logged))
    table = splits.validation
    with torch.no_grad():
        logits = trained.model.eval()(**table.features()).logits
    expected = oracle(table.y, logits.double().softmax(1).numpy())
    assert trained.validation_score == pytest.approx(expected, abs=1e-6)


def test_a_regression_is_in_the_targets_units_and_the_record_names_the_score(tmp_path):
    frame = learnable(regression=True)
    frame["y"] = 1000 + 50 * frame["y"]
    frame.to_csv(tmp_path / "mine.csv", index=False)
    options = ["--data", str(tmp_path / "mine.csv"), "--target", "y", "--num_train_epochs", "3", "--use_cpu"]
    options += ["--n_blocks", "1", "--d_block", "16", "--metric_for_best_model", "mae"]
    record = tabular.main([*options, "--output_dir", str(tmp_path / "out")])
    splits = splits_of(frame)
    of_the_mean = mean_absolute_error(splits.test.y, np.full(len(splits.test), splits.train.y.mean()))
    assert 0.1 * of_the_mean < record["eval_mae"] < 1.5 * of_the_mean and "eval_rmse" not in record


def test_a_scheduler_that_watches_the_loss_leaves_the_choice_to_accuracy(tmp_path):
    options = ["--data", "wine", "--num_train_epochs", "2", "--output_dir", str(tmp_path), "--use_cpu"]
    assert "eval_accuracy" in tabular.main([*options, "--lr_scheduler_type", "reduce_lr_on_plateau"])


def test_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(UserError, match=r"metric_for_best_model auroc: .* not a number; choose another"):
        KeepBest("auroc", 3).on_evaluate(
            None, None, None, metrics={"eval_auroc": float("nan"), "eval_loss": 1.0}
        )


@pytest.mark.parametrize("metric", [None, "log_loss"])
def test_a_table_that_diverges_says_so(metric, tmp_path):
    more = {} if metric is None else {"metric_for_best_model": metric}
    args = arguments(tmp_path, learning_rate=1e30, gradient_accumulation_steps=99, **more)
    with pytest.raises(NonFiniteLossError, match="NaN or infinite"):
        train_network(splits_of(learnable(regression=metric is None)), "mlp", SIZES, args)


@pytest.mark.parametrize("metric", FUNCTIONS)
def test_the_names_are_those_that_evaluation_computes(metric):
    real = metric in ("correlations", "regression")
    labels = np.array([0, 1, 1]) if metric != "multi_label" else np.eye(3)
    logits = np.arange(3.0)[:, None] if real else np.eye(3)[labels] if labels.ndim == 1 else labels
    computed = make_compute_metrics(metric)(EvalPrediction(predictions=logits, label_ids=labels))
    assert list(computed) == metric_names(metric)


@pytest.mark.parametrize("classes", [3, 7])
def test_the_names_of_images_are_those_that_evaluation_computes(classes):
    groups = {"many": np.array([0]), "few": np.arange(1, classes)}
    best = np.tile(np.arange(min(5, classes)), (classes, 1))
    prediction = EvalPrediction(predictions=(best, np.ones(classes)), label_ids=np.arange(classes))
    assert list(make_image_metrics(groups)(prediction)) == image_metric_names(classes, groups)


def test_a_wrong_name_is_refused_before_training(tiny_run, tmp_path):
    wrong = ["--metric_for_best_model", "f1"]
    cases = [
        (glue.main, tiny_run, "'accuracy', 'f1_macro', 'loss'"),
        (imagenet.main, tiny(tmp_path / "images"), "'accuracy', 'top5_accuracy', 'worst_class_accuracy'"),
        (tabular.main, ["--data", "wine", "--output_dir", str(tmp_path / "t")], "'balanced_accuracy'"),
        (tabular.main, ["--data", "diabetes", "--output_dir", str(tmp_path / "r")], "'rmse', 'mae', 'r2', 'loss'"),
        (domainbed.main, [*DIGITS, "--output_dir", str(tmp_path / "d")], "leave it out"),
    ]  # fmt: skip
    for main, options, allowed in cases:
        with pytest.raises(UserError, match=f"--metric_for_best_model.*{allowed}"):
            main([*options, *wrong])
    assert not list(tmp_path.rglob("trainer_state.json"))


def test_an_allowed_name_of_a_text_chooses_its_checkpoint(tiny_run):
    more = ["--metric_for_best_model", "f1_macro", "--load_best_model_at_end", "--save_strategy", "epoch"]
    record = glue.main([*tiny_run, *more])
    directory = tiny_run[tiny_run.index("--output_dir") + 1]
    with open(f"{directory}/trainer_state.json") as file:
        state = json.load(file)
    assert record["eval_f1_macro"] == state["best_metric"]
