"""What a comparison asks of `tabular.py`: any first seed, every re-weighting, wrong labels, predictions and logs."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

import tabular
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.tabular.columns import Target
from rgd_hf.scripts.tabular.label_noise import with_label_noise
from rgd_hf.scripts.tabular.objectives import Objective, cross_entropies
from rgd_hf.scripts.tabular.splits import PreparedTable

OPTIONS = [
    "--data",
    "breast_cancer",
    "--rivals",
    "none",
    "--no_save_models",
    "--d_block",
    "8",
    "--n_blocks",
    "1",
]
OPTIONS += ["--num_embeddings", "none", "--num_train_epochs", "2"]


def run(directory, *options):
    return tabular.main([*OPTIONS, *options, "--output_dir", str(directory)])


@pytest.fixture
def prepared():
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"a": draw.normal(size=400), "y": draw.integers(0, 4, 400)})
    target = Target("y", ("p", "q", "r", "s"))
    return PreparedTable("made", frame, frame["y"].to_numpy(), target, [{"name": "a", "kind": "numeric"}])


def test_noise_replaces_the_asked_share_of_training_labels_by_other_classes(prepared):
    splits = prepared.split(3)
    noisy = with_label_noise(splits, 0.25)
    wrong = noisy.train.y != splits.train.y
    assert wrong.sum() == round(0.25 * len(splits.train)) and set(noisy.train.y) == {0, 1, 2, 3}
    assert noisy.validation is splits.validation and noisy.test is splits.test
    assert np.array_equal(with_label_noise(prepared.split(3), 0.25).train.y, noisy.train.y)
    other = prepared.split(4)
    assert not np.array_equal(with_label_noise(other, 0.25).train.y != other.train.y, wrong)
    assert with_label_noise(splits, 0.0) is splits
    with pytest.raises(UserError, match="between 0 and 1"):
        with_label_noise(splits, 1.0)


def test_any_first_seed_gives_the_run_that_a_study_from_0_has(tmp_path):
    every = run(tmp_path / "every", "--seeds", "3", "--objectives", "erm", "kl")
    alone = run(tmp_path / "alone", "--seeds", "1", "--first_seed", "2", "--objectives", "kl")
    (expected,) = (r for r in every if (r["method"], r["seed"]) == ("mlp/kl", 2))
    assert [{**r, "seconds": 0} for r in alone] == [{**expected, "seconds": 0}]


def test_predictions_and_logs_are_those_of_the_run(tmp_path):
    (record,) = run(tmp_path, "--objectives", "kl", "--first_seed", "1", "--save_predictions")
    folder = tmp_path / "breast_cancer" / "mlp_kl_seed1"
    found = pd.read_parquet(folder / "predictions.parquet")
    assert found["correct"].mean() == pytest.approx(record["accuracy"], abs=1e-6)
    assert found["loss"].mean() == pytest.approx(record["log_loss"], abs=1e-5)
    assert (found["correct"] == (found["label"] == found["prediction"])).all()
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert any("effective_sample_size" in entry for entry in log)
    assert sum(record["train_class_counts"]) == round(569 * 0.8 * 0.8)


@pytest.mark.parametrize("objective", ["cvar", "tilted", "reverse_kl"])
def test_every_reweighting_of_the_library_is_an_objective(objective, tmp_path):
    (record,) = run(tmp_path, "--objectives", objective)
    assert record["method"] == f"mlp/{objective}" and record["accuracy"] > 0.5


def test_settings_of_the_weights_reach_the_trainer(tmp_path):
    def logged(name, *options):
        run(tmp_path / name, "--objectives", "erm", "kl", "chi2", "--save_predictions", *options)
        folder = tmp_path / name / "breast_cancer"
        read = {
            method: json.loads((folder / f"mlp_{method}_seed0" / "trainer_state.json").read_text())[
                "log_history"
            ]
            for method in ("erm", "kl", "chi2")
        }
        return {
            method: [entry for entry in log if "effective_sample_size" in entry]
            for method, log in read.items()
        }

    solved = logged("ess", "--target_ess", "0.8")
    assert all(entry["effective_sample_size"] == pytest.approx(0.8, abs=0.05) for entry in solved["kl"])
    assert all(entry["weight_mean"] == pytest.approx(1, abs=0.01) for entry in solved["kl"])
    assert all(entry["weight_mean"] > 1.05 for entry in solved["chi2"]) and not solved["erm"]
    late = logged("late", "--reweighting_warmup_ratio", "0.5")["kl"]
    assert late[0]["weight_mean"] == 1 and late[-1]["weight_mean"] > 1.05


def test_smoothing_is_for_training_alone():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1])
    loss = Objective("erm", label_smoothing=0.1).loss(is_regression=False)
    plain = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(loss({"logits": logits}, labels), plain)
    smoothed = loss({"logits": logits.clone().requires_grad_()}, labels)
    expected = 0.9 * plain - 0.1 * logits.log_softmax(dim=1).mean(dim=1)
    torch.testing.assert_close(smoothed.detach(), expected)
    torch.testing.assert_close(cross_entropies(logits, labels), plain)
