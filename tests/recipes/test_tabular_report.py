"""Scores and reports of the tabular recipe against scikit-learn, scipy and hand-made numbers."""

import json

import numpy as np
import pytest
from scipy.stats import t
from sklearn.metrics import roc_auc_score

from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.tabular.report import _signed, differences, paired_difference, ranks, summarize
from rgd_hf.scripts.tabular.scores import expected_calibration_error, macro_auroc, regression_scores, scores
from rgd_hf.scripts.tabular.study import StudyArguments, methods_of, read_runs
from rgd_hf.scripts.tabular.tuning import search_space, tune


def test_calibration_error_by_hand():
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 2)
    y = np.array([0, 0, 0, 1, 1, 1])
    # Confidence 0.9, right 3 of 4; confidence 0.6, right 2 of 2.
    expected = 4 / 6 * abs(0.75 - 0.9) + 2 / 6 * abs(1.0 - 0.6)
    assert expected_calibration_error(y, probabilities) == pytest.approx(expected)


def test_auroc_is_scikit_learns_and_skips_absent_classes():
    draw = np.random.default_rng(0)
    probabilities = draw.dirichlet(np.ones(4), size=60)
    y = draw.integers(0, 4, 60)
    assert macro_auroc(y, probabilities) == pytest.approx(roc_auc_score(y, probabilities, multi_class="ovr"))
    assert np.isfinite(macro_auroc(np.where(y == 3, 0, y), probabilities))
    two = probabilities[:, :2] / probabilities[:, :2].sum(1, keepdims=True)
    assert macro_auroc(y % 2, two) == pytest.approx(roc_auc_score(y % 2, two[:, 1]))


def test_perfect_predictions():
    y = np.array([0, 1, 2, 1])
    found = scores(y, np.eye(3)[y], is_regression=False)
    assert found["accuracy"] == found["f1_macro"] == found["auroc"] == 1 and found["ece"] == 0
    assert regression_scores(np.array([1.0, 3.0]), np.array([2.0, 2.0]))["rmse"] == 1


def run(data: str, method: str, seed: int, accuracy: float) -> dict:
    names = ("balanced_accuracy", "f1_macro", "auroc", "log_loss", "ece", "seconds")
    return {"data": data, "method": method, "seed": seed, "accuracy": accuracy, **dict.fromkeys(names, 0.5)}


def test_paired_interval_is_students():
    one, other = {0: 0.9, 1: 0.8, 2: 0.85, 7: 0.1}, {0: 0.88, 1: 0.79, 2: 0.80}
    found = paired_difference(one, other)
    difference = np.array([0.02, 0.01, 0.05])
    half = t.ppf(0.975, 2) * difference.std(ddof=1) / np.sqrt(3)
    assert found["seeds"] == 3 and found["mean"] == pytest.approx(difference.mean())
    assert found["interval"] == pytest.approx([difference.mean() - half, difference.mean() + half])
    assert paired_difference({0: 0.9}, {0: 0.8})["interval"] is None
    assert paired_difference({0: 0.9}, {1: 0.8}) is None


def test_ranks_share_ties_and_take_methods_that_ran_everywhere():
    accuracy = {"a": {"linear": 0.9, "lightgbm": 0.9, "mlp/erm": 0.5}, "b": {"linear": 0.6, "lightgbm": 0.7}}
    records = [run(d, m, s, a) for d, of in accuracy.items() for m, a in of.items() for s in (0, 1)]
    assert ranks(records) == {
        "lightgbm": {"a": 1.5, "b": 1.0, "mean": 1.25},
        "linear": {"a": 1.5, "b": 2.0, "mean": 1.75},
    }


def test_summary_and_differences():
    accuracy = {"lightgbm": (0.9, 0.92), "mlp/erm": (0.8, 0.9), "mlp/kl": (0.82, 0.91), "linear": (0.7, 0.7)}
    records = [run("a", m, s, v) for m, values in accuracy.items() for s, v in enumerate(values)]
    first = summarize(records)[0]
    assert first["method"] == "lightgbm" and first["seeds"] == 2
    assert first["accuracy"]["std"] == pytest.approx(np.std([0.9, 0.92], ddof=1))
    found = {(entry["method"], entry["against"]): entry["mean"] for entry in differences(records)}
    assert found == pytest.approx({("mlp/erm", "lightgbm"): -0.06, ("mlp/kl", "mlp/erm"): 0.015})


def test_an_unfinished_last_line_is_cut_off_and_another_bad_line_is_an_error(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps({"a": 1}) + "\n" + '{"a": ')
    assert read_runs(path) == [{"a": 1}] and path.read_text() == '{"a": 1}\n'
    path.write_text('{"a": \n{"a": 1}\n')
    with pytest.raises(UserError, match="line 1"):
        read_runs(path)


def test_methods_by_name():
    args = StudyArguments(networks=["mlp", "tabm"], rivals=["linear"])
    assert methods_of(args, "chi2", is_regression=True) == [
        "linear", "mlp/erm", "mlp/chi2", "tabm/erm", "tabm/chi2",
    ]  # fmt: skip
    assert "mlp/focal" in methods_of(args, "kl", is_regression=False)
    for wrong in ({"networks": ["cnn"]}, {"objectives": ["dro"]}, {"rivals": ["svm"]}):
        with pytest.raises(UserError, match="choose among"):
            methods_of(StudyArguments(**wrong), "kl", is_regression=False)
    with pytest.raises(UserError, match="need classes"):
        methods_of(StudyArguments(objectives=["focal"]), "kl", is_regression=True)


@pytest.mark.parametrize("name", ["mlp/erm", "mlp/kl", "lightgbm", "linear"])
def test_tuning_spends_its_budget_and_keeps_the_best(name):
    seen = []

    def validation_score(settings: dict) -> float:
        seen.append(settings)
        if len(seen) == 2:
            raise FloatingPointError("diverged")
        return float(len(seen) % 5)

    best = tune(name, validation_score, trials=6)
    assert len(seen) == 6 and seen[0] == {} and best == seen[3]
    assert all(set(settings) == set(search_space(name)) for settings in seen[1:])
    assert ("tau" in search_space(name)) == (name == "mlp/kl")


def test_tuning_that_only_diverges_says_so():
    def validation_score(settings: dict) -> float:
        raise FloatingPointError("diverged")

    with pytest.raises(UserError, match="all 2 trials of mlp/erm diverged"):
        tune("mlp/erm", validation_score, trials=2)


def test_differences_have_the_unit_of_their_score():
    assert (_signed(0.0123, "accuracy"), _signed(-0.00012346, "rmse")) == ("+1.23", "-0.0001235")
