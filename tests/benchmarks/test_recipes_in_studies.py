"""Studies through the recipes themselves, over small data."""

import numpy as np
import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from studies import lines, write

from benchmarks.report.lines import read_records
from benchmarks.report.selection import by_rule
from benchmarks.report.summary import difference
from benchmarks.study import __main__ as study
from tests.helpers.domains import blobs
from tests.helpers.recipes import sentences

METHODS = {
    "erm": {"options": {"reweighting": "none"}},
    "kl_tau1": {"options": {"reweighting": "kl", "tau": 1}},
    "erm_lr_scaled": {"options": {"reweighting": "none"}, "scale_learning_rate_by": "kl_tau1"},
}
TRAINING = {"use_cpu": True, "eval_strategy": "no", "per_device_train_batch_size": 8}


def run(tmp_path, datasets, methods=METHODS):
    content = {"seeds": [0], "tuning_seeds": [100], "learning_rate_factors": [0.5, 1]}
    study.main(
        [
            write({**content, "methods": methods, "datasets": datasets}, tmp_path),
            "--output_dir",
            str(tmp_path),
        ]
    )
    found = {(line["dataset"], line["method"], line["stage"]): line for line in lines(tmp_path)}
    assert not any("error" in line for line in found.values())
    return found


def test_texts_and_images(tmp_path, tiny_model_dir, write_rows):
    text = {
        "recipe": "recipes/glue.py",
        "kind": "text",
        "score": "eval_accuracy",
        "options": {
            "train_file": write_rows("train.csv", sentences(40)),
            "validation_file": write_rows("validation.csv", sentences(24, seed=1)),
            "model_name_or_path": tiny_model_dir,
            "learning_rate": 0.001,
            "num_train_epochs": 2,
            **TRAINING,
        },
    }
    images = {
        "recipe": "recipes/imagenet.py",
        "kind": "images",
        "score": "eval_accuracy",
        "options": {
            "dataset_name": "digits",
            "model_name_or_path": "timm/vit_tiny_patch16_224",
            "from_scratch": True,
            "image_size": 8,
            "model_args": {"crop_pct": 1.0, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1},
            "max_train_samples": 100,
            "max_eval_samples": 50,
            "learning_rate": 0.001,
            "num_train_epochs": 1,
            **TRAINING,
        },
    }
    found = run(tmp_path, {"text": text, "images": images})
    for dataset, rows in (("text", 40), ("images", 100)):
        for method in METHODS:
            line = found[dataset, method, "final"]
            assert len(line["history"]) >= 4 and "unweighted_loss" in line["history"][0]
            assert ("weight_histogram" in line) == (method == "kl_tau1")
        # Before the first step nothing differs but the weights.
        plain, weighted = (found[dataset, method, "final"]["history"][0] for method in ("erm", "kl_tau1"))
        assert plain["unweighted_loss"] == pytest.approx(weighted["unweighted_loss"], rel=1e-5)
        assert weighted["weight_mean"] > 1.1 and "weight_mean" not in plain
        assert found[dataset, "erm_lr_scaled", "final"]["learning_rate_scale"] > 1.1
        # Tuning is scored on a fifth of the training rows.
        score = found[dataset, "erm", "tuning"]["score"] * rows / 5
        assert score == pytest.approx(round(score), abs=1e-4)
    counts = found["text", "kl_tau1", "final"]["weight_histogram"]["counts"]
    assert np.sum(counts) == 2 * 40


def test_a_network_beside_boosting_in_one_report(tmp_path):
    table = {
        "recipe": "recipes/tabular.py",
        "kind": "tabular",
        "score": "test_accuracy",
        "tuning_score": "eval_accuracy",
        "data": {"data": "breast_cancer"},
        "options": {"learning_rate": 0.001, "num_train_epochs": 2, "d_block": 8, "n_blocks": 1},
    }
    boosting = {"recipe": "benchmarks/tables/baselines.py", "options": {"model": "hist_gradient_boosting"}}
    found = run(tmp_path, {"cancer": table}, {**METHODS, "boosting": boosting})
    network, trees = found["cancer", "kl_tau1", "final"], found["cancer", "boosting", "final"]
    # The same test rows and training classes, and the score is that of the rows kept.
    assert network["samples"]["n"] == trees["samples"]["n"] == 114
    assert found["cancer", "erm", "tuning"]["score_name"] == "eval_accuracy"
    records = read_records(tmp_path)
    assert not records.mixed() and difference(records, "cancer", "kl_tau1", "boosting").n == 1
    for line in (network, trees):
        right = np.unpackbits(
            np.frombuffer(bytes.fromhex(line["samples"]["correct"]), dtype=np.uint8), count=114
        )
        assert right.mean() == pytest.approx(line["score"])


def test_reweighting_on_top_of_an_algorithm_over_held_out_domains(tmp_path):
    domains = {
        "recipe": "recipes/domainbed.py",
        "kind": "domains",
        "score": "test_accuracy",
        "tuning_score": "eval_validation_accuracy",
        "parts": {"held_out": ["0", "75"]},
        "options": {
            "dataset": "rotated_digits",
            "model_name_or_path": "test_convnext",
            "weights": "none",
            "augment": False,
            "image_size": 32,
            "max_steps": 4,
            "eval_steps": 2,
            "max_eval_samples": 8,
            "use_cpu": True,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.001,
        },
    }
    methods = {
        "erm": METHODS["erm"],
        "coral": {"options": {"reweighting": "none", "algorithm": "coral"}},
        "coral_kl": {"options": {"reweighting": "kl", "algorithm": "coral"}, "compared_with": "coral"},
    }
    run(tmp_path, {"rotated": domains | {"learning_rate_factors": [1]}}, methods)
    found = {(line["method"], line["part"]): line for line in lines(tmp_path)}
    assert len(found) == 3 * 2 and all(len(line["checkpoints"]) == 2 for line in found.values())
    for method, part in found:
        line = found[method, part]
        # The checkpoint is the one that the training domains choose; its predictions are those kept.
        best = max(
            line["checkpoints"],
            key=lambda p: np.mean(
                [v for k, v in p.items() if k.endswith("_out_accuracy") and not k.startswith(f"{part}_")]
            ),
        )
        assert line["score"] == pytest.approx(best[f"{part}_in_accuracy"])
        right = np.unpackbits(
            np.frombuffer(bytes.fromhex(line["samples"]["correct"]), dtype=np.uint8), count=8
        )
        assert right.mean() == pytest.approx(line["score"])
    # Before the first step nothing differs but weights and penalty.
    first = {method: found[method, "0"]["history"][0]["unweighted_loss"] for method in methods}
    assert first["coral_kl"] == pytest.approx(first["erm"], rel=1e-4)
    records = read_records(tmp_path)
    assert not records.mixed() and difference(records, "rotated", "coral_kl", "coral").n == 1


def test_domainbeds_random_search_and_its_three_rules(tmp_path):
    data = blobs()
    for environment in data.environments:
        images = [Image.fromarray(image) for image in environment.inputs]
        rows = Dataset.from_dict({"image": images, "label": environment.labels.tolist()})
        rows.cast_column("image", ImageFeature()).to_parquet(
            tmp_path / "data" / f"{environment.name}.parquet"
        )
    space = {"learning_rate": {"log_uniform": [1e-3, 1e-2]}, "coral_weight": {"log_uniform": [0.1, 10]}}
    domains = {
        "recipe": "recipes/domainbed.py",
        "kind": "domains",
        "score": "test_accuracy",
        "tuning_score": "eval_validation_accuracy",
        "parts": {"held_out": data.names},
        "pairs": True,
        "random_search": {"draws": 2, "space": space},
        "options": {
            "dataset_dir": str(tmp_path / "data"),
            "model_name_or_path": "test_resnet",
            "weights": "none",
            "image_size": 32,
            "max_steps": 2,
            "eval_steps": 1,
            "use_cpu": True,
            "per_device_train_batch_size": 2,
            "learning_rate": 0.001,
        },
    }
    methods = {"erm": METHODS["erm"], "coral": {"options": {"reweighting": "none", "algorithm": "coral"}}}
    run(tmp_path, {"blobs": domains}, methods)
    every = lines(tmp_path)
    assert len(every) == 2 * 2 * (3 + 3)
    for line in every:
        test = [line["metrics"]["test_accuracy"], line["metrics"]["test_ece"]]
        best = next(p for p in line["checkpoints"] if p["step"] == line["metrics"]["step"])
        held_out = line["part"].split("+")
        assert test == pytest.approx(
            [np.mean([best[f"{name}_in_{score}"] for name in held_out]) for score in ("accuracy", "ece")],
            abs=1e-6,
        )
    # Methods share the draws of what they have in common.
    rates = {(line["candidate"], line["settings"]["learning_rate"]) for line in every}
    assert len(rates) == 2
    text = "\n".join(by_rule(read_records(tmp_path), "blobs"))
    for rule in ("training-domain validation", "leave-one-domain-out cross-validation", "test-domain oracle"):
        assert rule in text
    assert text.lower().count("| coral |") == 3
