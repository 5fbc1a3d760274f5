"""What a study asks of the recipes, and what it reads of their runs."""

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import domainbed
from benchmarks.report.lines import read_records
from benchmarks.report.parts import by_difficulty, correctness
from benchmarks.study import __main__ as compare
from benchmarks.study.adapters import RECIPES
from benchmarks.study.cells import FINAL, TUNING, Cell, identity
from benchmarks.study.study import read_study
from rgd_hf.scripts.domains.environments import split
from rgd_hf.scripts.domains.predictions import predictions_file
from rgd_hf.scripts.weight_histogram import BOUNDS, HISTOGRAM
from tests.benchmarks.test_study_statistics import packed, records, run

CONFIGS = Path(__file__).resolve().parents[2] / "benchmarks" / "configs"
DIGITS = {
    "dataset": "rotated_digits",
    "held_out": ["75", "0"],
    "model_name_or_path": "test_convnext",
    "pretrained": False,
    "augment": False,
    "image_size": 32,
    "max_steps": 4,
    "eval_steps": 2,
    "max_eval_samples": 60,
    "use_cpu": True,
    "per_device_train_batch_size": 4,
    "learning_rate": 0.003,
}
ANGLES = ["0", "15", "30", "45", "60", "75"]


@pytest.mark.parametrize("name", ["cifar10", "sst2"])
def test_curves_of_final_runs_leave_the_tuning_runs_as_they_are(name, tmp_path):
    content = yaml.safe_load((CONFIGS / "compare.yaml").read_text())
    more = copy.deepcopy(content)
    more["datasets"][name]["options"] |= {"eval_strategy": "steps", "eval_steps": 0.1}
    fewer = content
    for option in ("eval_strategy", "eval_steps"):
        fewer["datasets"][name]["options"].pop(option, None)
    studies = []
    for number, each in enumerate((fewer, more)):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(each))
        studies.append(read_study(path))
    before, after = studies
    tuning = Cell(name, "kl_tau1", TUNING, 100, 0.5)
    assert identity(before, tuning) == identity(after, tuning)
    final = Cell(name, "kl_tau1", FINAL, 0, 0.5)
    assert identity(before, final) != identity(after, final)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A finished study of two held-out domains, ERM and RGD, with two seeds: its directory."""
    folder = tmp_path_factory.mktemp("domains")
    methods = {"erm": {"options": {"reweighting": "none"}}, "kl_tau1": {"options": {"reweighting": "kl"}}}
    # All rows of a split, so that seeds share most of them.
    data = {"recipe": "domainbed", "score": "accuracy", "options": {**DIGITS, "max_eval_samples": None}}
    study = {"seeds": [0, 1], "learning_rate_factors": [1], "methods": methods, "datasets": {"digits": data}}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    compare.main([str(folder / "study.yaml"), "--output_dir", str(folder / "out")])
    return folder / "out"


def test_domains_give_the_chosen_checkpoints_predictions(tmp_path):
    recipe = RECIPES["domainbed"]
    own = recipe.options({**DIGITS, "reweighting": "kl"}, seed=1, tuning=False, holdout_fraction=0.2)
    arguments = [
        word
        for name, value in own.items()
        for word in (f"--{name}", *map(str, value if isinstance(value, list) else [value]))
    ]
    runs = domainbed.main([*arguments, "--output_dir", str(tmp_path)])
    # So that the earlier checkpoint of one run is chosen.
    runs[0]["checkpoints"][0] |= {f"{angle}_out_accuracy": 1.0 for angle in ANGLES}
    outcome = recipe.outcome(runs, tmp_path, own, "accuracy", tuning=False)
    assert [run["held_out"] for run in runs] == [["0"], ["75"]] and outcome.train_class_counts() is None
    table = outcome.predictions
    assert len(table) == 120 and table["row"].is_unique
    # Read back what a row's number means, and look the samples up in the data.
    data = domainbed.load_data(domainbed.DataArguments(dataset="rotated_digits"))
    place = {name: number for number, name in enumerate(ANGLES)}
    assert data.names == ANGLES
    for number, run_ in enumerate(runs):
        (name,) = run_["held_out"]
        part = table.iloc[60 * number : 60 * (number + 1)]
        assert (part["row"] % 6 == place[name]).all()
        labels = data.environments[place[name]].labels
        rows = split(len(labels), 1, place[name])[0][:60]
        assert (part["row"] // 6).tolist() == rows.tolist()
        assert part["label"].tolist() == labels[rows].tolist()
        # Training-domain validation by hand: the first of the best.
        others = [angle for angle in ANGLES if angle != name]
        validation = [np.mean([point[f"{a}_out_accuracy"] for a in others]) for point in run_["checkpoints"]]
        best = run_["checkpoints"][int(np.argmax(validation))]
        assert part["correct"].mean() == pytest.approx(best[f"{name}_in_accuracy"], abs=1e-12)
        assert part["loss"].mean() == pytest.approx(best[f"{name}_in_loss"], rel=1e-6)
        assert outcome.metrics[f"{name}_accuracy"] == best[f"{name}_in_accuracy"]
        of_run = pd.read_parquet(predictions_file(tmp_path, run_["name"]))
        chosen = of_run[of_run["step"] == best["step"]]
        assert part["prediction"].tolist() == chosen["prediction"].tolist()
    assert table["correct"].mean() == pytest.approx(outcome.score, abs=1e-12)
    # The weights of both models are counted, at the same steps.
    for entry in outcome.log:
        logged = [e for run_ in runs for e in run_["training_log"] if e["step"] == entry["step"]]
        assert len(logged) == 2 and (entry[HISTOGRAM] == np.sum([e[HISTOGRAM] for e in logged], axis=0)).all()
        assert entry[BOUNDS] == logged[0][BOUNDS] and sum(entry[HISTOGRAM]) == 2 * 5 * 4
        assert entry["loss"] == pytest.approx(np.mean([e["loss"] for e in logged]))
    tuning = recipe.options({**DIGITS, "reweighting": "kl"}, seed=1, tuning=True, holdout_fraction=0.2)
    assert "save_predictions" not in tuning


def test_a_study_of_domains_says_which_rows_are_hard(digits):
    lines = [json.loads(line) for line in (digits / "runs.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and not any("error" in line for line in lines)
    for line in lines:
        assert line["samples"]["n"] == len(line["samples"]["rows"]) > 400
        assert correctness(line).mean() == pytest.approx(line["score"], abs=1e-6)
        assert ("losses" in line["samples"]) == (line["method"] == "erm")
        assert len(json.dumps(line["samples"])) < 12 * line["samples"]["n"]
        assert line.get("train_class_counts") is None
        assert ("weight_histogram" in line) == (line["method"] == "kl_tau1")
        if line["method"] == "kl_tau1":
            assert np.sum(line["weight_histogram"]["counts"]) == 4 * 2 * 5 * 4
    rows = [set(line["samples"]["rows"]) for line in lines if line["method"] == "erm"]
    assert 0.7 < len(rows[0] & rows[1]) / len(rows[0]) < 0.9
    found = by_difficulty(read_records(digits), "digits", ["kl_tau1"])
    assert len(found.names) == 10 and found.difference["kl_tau1"][0].n == 2


def brute_force(lines, seeds):
    """Accuracy of every method in tenths, row by row: mean over seeds."""
    losses = {
        seed: dict(zip(line["samples"]["rows"], line["samples"]["losses"]))
        for (method, seed), line in lines.items()
        if method == "erm" and "rows" in line["samples"]
    }
    shares = {}
    for seed in seeds:
        difficulty = {}
        for place, row in enumerate(lines["erm", seed]["samples"]["rows"]):
            others = [losses[s][row] / 100 for s in losses if s != seed and row in losses[s]]
            if others:
                difficulty[place] = sum(others) / len(others)
        ranked = sorted(difficulty, key=lambda place: (difficulty[place], place))
        for method in ("erm", "kl_tau1"):
            line = lines.get((method, seed))
            if line is None or line["samples"].get("rows") != lines["erm", seed]["samples"]["rows"]:
                continue
            right = correctness(line)
            tenths = np.array_split(ranked, 10)
            shares.setdefault(method, []).append([100 * np.mean([right[p] for p in t]) for t in tenths])
    return {method: np.mean(found, axis=0) for method, found in shares.items()}


def test_difficulty_of_rows_that_differ_by_seed_is_a_brute_force_reading():
    draw, lines = np.random.default_rng(4), {}
    # Of 90 samples every seed has its own choice; seed 4 hardly shares any.
    for seed in range(5):
        rows = draw.permutation(90)[:45] if seed < 4 else np.arange(86, 131)
        for method in ("erm", "kl_tau1"):
            samples = packed(list(draw.random(45) < 0.6)) | {"rows": rows.tolist()}
            if method == "erm":
                samples["losses"] = draw.integers(0, 400, 45).tolist()
            lines[method, seed] = run("a", method, seed, 0.5, samples=samples)
    # A run of an edited study over other rows, and an older line that does not say which rows it has.
    lines["kl_tau1", 2]["samples"]["rows"] = lines["kl_tau1", 2]["samples"]["rows"][::-1]
    old = packed([1] * 45) | {"losses": [0] * 45}
    lines["erm", 5] = run("a", "erm", 5, 0.5, samples=old)
    lines["kl_tau1", 5] = run("a", "kl_tau1", 5, 0.5, samples=packed([1] * 45))
    found = by_difficulty(records(list(lines.values())), "a", ["kl_tau1"])
    expected = brute_force(lines, seeds=range(4))
    assert set(found.accuracy) == set(expected)
    for method, accuracies in expected.items():
        np.testing.assert_allclose(found.accuracy[method], accuracies)
    assert found.difference["kl_tau1"][0].n == 3


def test_rows_that_no_other_seed_has_give_no_tenths():
    samples = [packed([1] * 20) | {"losses": [5] * 20, "rows": list(range(n, n + 20))} for n in (0, 11)]
    lines = [run("a", "erm", seed, 0.5, samples=each) for seed, each in enumerate(samples)]
    assert by_difficulty(records(lines), "a", []) is None  # nine rows of twenty are in both
    lines[1]["samples"]["rows"] = list(range(10, 30))
    assert by_difficulty(records(lines), "a", []).accuracy == {"erm": [100.0] * 10}
    for line in lines:
        line["samples"] = packed([1] * 8) | {"losses": [5] * 8, "rows": list(range(8))}
    assert by_difficulty(records(lines), "a", []) is None  # eight rows have no tenths
