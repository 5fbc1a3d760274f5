"""Studies that are run: killed and resumed, in shards, within a budget, with failures, through all four recipes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.study import __main__ as compare
from rgd_hf.scripts.errors import UserError

TABLES = {
    "seeds": [0, 1],
    "tuning_seeds": [100],
    "learning_rate_factors": [0.5, 2],
    "methods": {
        "erm": {"options": {"reweighting": "none"}},
        "kl_tau1": {"options": {"reweighting": "kl", "tau": 1}},
        "erm_lr_scaled": {"options": {"reweighting": "none"}, "scale_learning_rate_by": "kl_tau1"},
    },
    "datasets": {
        "cancer": {
            "recipe": "tabular",
            "score": "accuracy",
            "options": {
                "data": "breast_cancer",
                "learning_rate": 0.001,
                "num_train_epochs": 3,
                "d_block": 8,
                "n_blocks": 1,
                "num_embeddings": "none",
            },
        }
    },
}
CELLS = 2 * 2 + 3 * 2
OF_THE_CLOCK = ("seconds", "finished", "peak_memory_mb", "commit")


def write(study, folder):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return str(path)


def changed(**entries):
    """`TABLES` with entries of its data set changed."""
    return {**TABLES, "datasets": {"cancer": {**TABLES["datasets"]["cancer"], **entries}}}


def lines(directory):
    return [
        json.loads(line)
        for path in sorted(Path(directory).glob("runs*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def by_cell(directory):
    """What was measured, without what depends on the clock."""
    return {
        line["cell"]: {key: value for key, value in line.items() if key not in OF_THE_CLOCK}
        for line in lines(directory)
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished study of tables: its file and its directory."""
    folder = tmp_path_factory.mktemp("whole")
    study = write(TABLES, folder)
    compare.main([study, "--output_dir", str(folder / "out")])
    return study, folder / "out"


def test_every_cell_leaves_one_line_with_all_that_the_report_reads(whole):
    found = lines(whole[1])
    assert len(found) == CELLS and len({line["cell"] for line in found}) == CELLS
    for line in found:
        assert line["cell"].startswith(
            f"{line['dataset']}/{line['method']}/lr{line['learning_rate_factor']:g}/"
        )
        assert line["kind"] == "tabular" and line["seconds"] > 0 and line["peak_memory_mb"] > 100
        assert {"torch", "transformers"} <= set(line["versions"]) and line["settings"]["recipe"] == "tabular"
        assert 0 <= line["score"] <= 1
    tuning = [line for line in found if line["stage"] == "tuning"]
    assert all(line["score_name"] == "validation_accuracy" and line["seed"] == 100 for line in tuning)
    final = [line for line in found if line["stage"] == "final"]
    assert all(
        line["score_name"] == "accuracy" and line["score"] == line["metrics"]["accuracy"] for line in final
    )
    for line in final:
        samples = line["samples"]
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(samples["correct"]), dtype=np.uint8))[: samples["n"]]
        assert bits.mean() == pytest.approx(line["score"], abs=1e-6)
        assert ("losses" in samples) == (line["method"] == "erm")
        assert [point["step"] for point in line["history"]] == [point["step"] for point in line["history"]]
        assert all("unweighted_loss" in point for point in line["history"])
    first = next(line for line in final if line["method"] == "erm" and line["seed"] == 0)
    assert len(first["labels"]) == first["samples"]["n"] == len(first["samples"]["losses"])
    assert sum(first["train_class_counts"]) > 300
    assert sum("labels" in line for line in final) == 1


def test_the_scaled_rate_is_that_of_the_other_run_times_its_mean_weight(whole):
    runs = {(line["method"], line["seed"]): line for line in lines(whole[1]) if line["stage"] == "final"}
    for seed in (0, 1):
        scaled, source = runs["erm_lr_scaled", seed], runs["kl_tau1", seed]
        assert scaled["learning_rate_factor"] == source["learning_rate_factor"]
        assert scaled["learning_rate_scale"] == source["metrics"]["weight_mean"] > 1
        rate = source["settings"]["learning_rate"] * scaled["learning_rate_scale"]
        assert scaled["settings"]["learning_rate"] == pytest.approx(rate)


def test_methods_of_a_seed_start_alike_and_see_the_same_batches(tmp_path):
    study = write(changed(seeds=[0, 7], learning_rate_factors=[1]), tmp_path)
    compare.main([study, "--output_dir", str(tmp_path / "out"), "--methods", "erm", "kl_tau1"])
    first = {(line["method"], line["seed"]): line["history"][0] for line in lines(tmp_path / "out")}
    # One epoch of a few steps: the parameters have hardly moved apart, the batches are the same.
    for seed in (0, 7):
        assert first["erm", seed]["unweighted_loss"] == pytest.approx(
            first["kl_tau1", seed]["unweighted_loss"], rel=0.02
        )
    assert abs(first["erm", 0]["unweighted_loss"] - first["erm", 7]["unweighted_loss"]) > 0.01


def test_curves_of_validation_are_of_the_plain_loss_alone(tmp_path):
    methods = {**TABLES["methods"], "focal": {"options": {"reweighting": "focal"}}}
    study = write({**changed(seeds=[0], learning_rate_factors=[1]), "methods": methods}, tmp_path)
    compare.main([study, "--output_dir", str(tmp_path / "out")])
    found = {line["method"]: line["history"] for line in lines(tmp_path / "out")}
    logged = {method: any("eval_loss" in point for point in history) for method, history in found.items()}
    assert logged == {"erm": True, "kl_tau1": True, "erm_lr_scaled": True, "focal": False}


def test_a_finished_study_is_left_alone_and_an_edited_one_runs_what_changed(whole, tmp_path, capsys):
    before = lines(whole[1])
    compare.main([whole[0], "--output_dir", str(whole[1])])
    assert lines(whole[1]) == before and f"All {CELLS} runs are finished" in capsys.readouterr().out
    out = tmp_path / "out"
    out.mkdir()
    (out / "runs.jsonl").write_text((whole[1] / "runs.jsonl").read_text())
    methods = {**TABLES["methods"], "kl_tau1": {"options": {"reweighting": "kl", "tau": 5}}}
    compare.main([write({**TABLES, "methods": methods}, tmp_path), "--output_dir", str(out)])
    new = lines(out)[CELLS:]
    assert {line["method"] for line in new} == {"kl_tau1", "erm_lr_scaled"} and len(new) == 2 + 2 + 2
    assert all(line["settings"]["tau"] == 5 for line in new if line["method"] == "kl_tau1")


def test_a_study_killed_in_the_middle_and_resumed_gives_the_same_lines(whole, tmp_path):
    study, out = whole[0], tmp_path / "out"
    command = [sys.executable, compare.__file__, study, "--output_dir", str(out)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 200
    while not (out.is_dir() and lines(out)) and time.time() < deadline and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    half = lines(out)
    assert 1 <= len(half) < CELLS
    with (out / "runs.jsonl").open("a") as file:
        file.write('{"cell": "cancer/erm')  # the worst moment to be killed: in the middle of a line
    compare.main([study, "--output_dir", str(out)])
    whole_lines = [line for line in (out / "runs.jsonl").read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line) for line in whole_lines[: len(half)]] == half and len(whole_lines) == CELLS
    found = {json.loads(line)["cell"]: json.loads(line) for line in whole_lines}
    plain = {cell: {k: v for k, v in run.items() if k not in OF_THE_CLOCK} for cell, run in found.items()}
    assert plain == by_cell(whole[1])


def test_shards_together_give_the_same_lines(whole, tmp_path):
    for shard in ("1/2", "2/2"):
        compare.main([whole[0], "--output_dir", str(tmp_path), "--shard", shard])
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["runs-1of2.jsonl", "runs-2of2.jsonl"]
    assert len(lines(tmp_path)) == CELLS and by_cell(tmp_path) == by_cell(whole[1])
    with pytest.raises(UserError, match="--shard must be i/n"):
        compare.main([whole[0], "--output_dir", str(tmp_path), "--shard", "3/2"])


def test_a_time_budget_ends_the_study_before_a_run_that_would_not_fit(whole, tmp_path, capsys):
    def slow(directory, seconds):
        """The finished lines but those of seed 1, as if each had taken so long."""
        directory.mkdir()
        kept = [line | {"seconds": seconds} for line in lines(whole[1]) if line["seed"] != 1]
        (directory / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
        return len(kept)

    kept = slow(tmp_path / "slow", 3600.0)
    compare.main([whole[0], "--output_dir", str(tmp_path / "slow"), "--time_budget", "59"])
    output = capsys.readouterr().out
    assert len(lines(tmp_path / "slow")) == kept
    assert f"3 of {CELLS} runs are left, about 3 h 00 min of work left" in output
    slow(tmp_path / "fast", 0.5)
    compare.main([whole[0], "--output_dir", str(tmp_path / "fast"), "--time_budget", "10"])
    assert by_cell(tmp_path / "fast") == by_cell(whole[1])
    compare.main([whole[0], "--output_dir", str(tmp_path / "none"), "--time_budget", "0"])
    assert lines(tmp_path / "none") == []
    with pytest.raises(UserError, match="--time_budget must not be negative"):
        compare.main([whole[0], "--time_budget", "-1"])
    with pytest.raises(UserError, match="--time_budget must not be negative"):
        compare.main([whole[0], "--time_budget", "nan"])


def test_the_cells_can_be_listed(whole, tmp_path, capsys):
    compare.main([whole[0], "--output_dir", str(whole[1]), "--list"])
    output = capsys.readouterr().out
    assert output.count("finished  cancer/") == CELLS and f"{CELLS} of {CELLS} runs are finished." in output
    compare.main([whole[0], "--output_dir", str(tmp_path), "--list", "--seeds", "1", "--methods", "erm"])
    output = capsys.readouterr().out
    assert "missing   cancer/erm/lr?/seed1/final" in output and "0 of 3 runs are finished." in output
    assert lines(tmp_path) == []


def test_a_run_that_fails_does_not_stop_the_study_and_is_tried_again_once_it_is_put_right(tmp_path, capsys):
    table = tmp_path / "table.csv"
    options = {**TABLES["datasets"]["cancer"]["options"], "data": str(table), "target": "y"}
    datasets = {"bad": {**TABLES["datasets"]["cancer"], "options": options}, **TABLES["datasets"]}
    study = write({**TABLES, "datasets": datasets, "seeds": [0]}, tmp_path)
    out, whole = tmp_path / "out", 2 * 2 + 3
    with pytest.raises(SystemExit) as stopped:
        compare.main([study, "--output_dir", str(out)])
    assert stopped.value.code == 1
    output = capsys.readouterr().out
    failed = [line for line in lines(out) if "error" in line]
    assert [line["cell"] for line in failed] == [
        f"bad/{method}/lr{factor}/seed100/tuning" for method in ("erm", "kl_tau1") for factor in (0.5, 2)
    ]
    assert all("there is no file" in line["error"] and "score" not in line for line in failed)
    recipes = str(Path(compare.__file__).resolve().parent)
    assert all('File "recipes' in line["traceback"] and recipes not in line["traceback"] for line in failed)
    assert "failed: bad/erm/lr?/seed0/final: no learning rate of bad/erm has finished" in output
    assert "7 runs failed, 3 of them final." in output
    assert sum("error" not in line for line in lines(out)) == whole
    table.write_text("x,y\n" + "".join(f"{number},{'ab'[number % 2]}\n" for number in range(60)))
    compare.main([study, "--output_dir", str(out)])
    assert f"All {2 * whole} runs are finished" in capsys.readouterr().out
    assert sum("error" not in line for line in lines(out)) == 2 * whole


def test_a_run_whose_own_error_would_come_again_is_left_alone(tmp_path, capsys, monkeypatch):
    """A learning rate that ends in NaN is out: no failure of a study whose final runs have another."""
    study, out = write(changed(learning_rate_factors=[1, 1e33], seeds=[0]), tmp_path), tmp_path / "out"

    def start(*options):
        compare.main([study, "--output_dir", str(out), "--methods", "kl_tau1", *options])
        failed = [line["cell"] for line in lines(out) if "error" in line]
        return capsys.readouterr().out, failed

    cell = "cancer/kl_tau1/lr1e+33/seed100/tuning"
    output, failed = start()
    assert failed == [cell] and f"failed: {cell}: NonFiniteLossError" in output
    assert "1 run failed, 0 of them final." in output and "All final runs are finished" in output
    output, failed = start()
    assert failed == [cell] and f"failed: {cell}: NonFiniteLossError" in output
    assert "2 of 3 runs are finished already, 1 failed before." in output
    output, _ = start("--list")
    assert f"failed    {cell}" in output and "2 of 3 runs are finished. 1 run failed." in output
    _, failed = start("--retry_failed")
    assert failed == [cell] * 2
    monkeypatch.setattr("study.runner.git_commit", lambda directory: "another")
    _, failed = start()
    assert failed == [cell] * 3


def test_a_score_that_the_data_does_not_have_is_found_in_the_first_run(tmp_path, capsys):
    """R2 of classes: tuning goes by another score, and would only find out when all of it is spent."""
    study = write(changed(score="r2"), tmp_path)
    with pytest.raises(SystemExit):
        compare.main([study, "--output_dir", str(tmp_path / "out"), "--methods", "erm"])
    first = lines(tmp_path / "out")[0]
    assert first["stage"] == "tuning" and "the recipe gave no 'r2', but 'accuracy'" in first["error"]


def test_a_directory_that_cannot_be_written_ends_the_study_before_the_first_run(whole, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*--output_dir"):
        compare.main([whole[0], "--output_dir", str(tmp_path / "file")])
    assert "/tuning" not in capsys.readouterr().out


def test_nothing_of_a_run_is_left_behind(whole, tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    before = dict(os.environ)
    compare.main([whole[0], "--output_dir", str(tmp_path / "out"), "--methods", "erm", "--seeds", "0"])
    assert list(folder.iterdir()) == [] and dict(os.environ) == before


# --- all recipes ----------------------------------------------------------------------------------------------------


def test_all_four_recipes_over_small_data(tmp_path, tiny_model_dir, write_rows, capsys):
    from conftest import sentences

    training = {"use_cpu": True, "eval_strategy": "no", "per_device_train_batch_size": 8}
    study = {
        "seeds": [0],
        "tuning_seeds": [100],
        "learning_rate_factors": [0.5, 1],
        "methods": TABLES["methods"],
        "datasets": {
            "sentences": {
                "recipe": "glue",
                "score": "eval_accuracy",
                "options": {
                    "train_file": write_rows("train.csv", sentences(40)),
                    "validation_file": write_rows("validation.csv", sentences(24, seed=1)),
                    "model_name_or_path": tiny_model_dir,
                    "learning_rate": 0.001,
                    "num_train_epochs": 2,
                    **training,
                },
            },
            "digits": {
                "recipe": "imagenet",
                "score": "eval_accuracy",
                "options": {
                    "dataset_name": "digits",
                    "timm_model": "vit_tiny_patch16_224",
                    "from_scratch": True,
                    "image_size": 8,
                    "crop_pct": 1.0,
                    "model_args": {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1},
                    "max_train_samples": 100,
                    "max_eval_samples": 50,
                    "learning_rate": 0.001,
                    "num_train_epochs": 1,
                    **training,
                },
            },
            "rotated": {
                "recipe": "domainbed",
                "score": "accuracy",
                "options": {
                    "dataset": "rotated_digits",
                    "held_out": ["0"],
                    "model_name_or_path": "test_convnext",
                    "pretrained": False,
                    "augment": False,
                    "image_size": 32,
                    "max_steps": 4,
                    "eval_steps": 2,
                    "max_eval_samples": 8,
                    "use_cpu": True,
                    "per_device_train_batch_size": 4,
                    "learning_rate": 0.001,
                },
            },
        },
    }
    compare.main([write(study, tmp_path), "--output_dir", str(tmp_path / "out")])
    found = {(line["dataset"], line["method"], line["stage"]): line for line in lines(tmp_path / "out")}
    assert len(lines(tmp_path / "out")) == 3 * (2 * 2 + 3) and not any(
        "error" in run for run in found.values()
    )
    kinds = {"sentences": "text", "digits": "images", "rotated": "domains"}
    names = {"sentences": "eval_accuracy", "digits": "eval_accuracy", "rotated": "accuracy"}
    for dataset, kind in kinds.items():
        for method in TABLES["methods"]:
            run = found[dataset, method, "final"]
            assert (run["kind"], run["score_name"]) == (kind, names[dataset])
            assert len(run["history"]) >= 4 and "unweighted_loss" in run["history"][0]
            assert ("weight_histogram" in run) == (method == "kl_tau1")
            # Of domains every seed has other samples, which are numbered.
            assert ("rows" in run["samples"]) == (dataset == "rotated") and run["samples"]["n"] >= 8
        # Before the first step nothing differs but the weights.
        plain, weighted = (found[dataset, method, "final"]["history"][0] for method in ("erm", "kl_tau1"))
        assert plain["step"] == weighted["step"] == 1
        assert plain["unweighted_loss"] == pytest.approx(weighted["unweighted_loss"], rel=1e-5)
        assert weighted["weight_mean"] > 1.1 and "weight_mean" not in plain
        assert found[dataset, "erm_lr_scaled", "final"]["learning_rate_scale"] > 1.1
    assert found["sentences", "erm", "final"]["train_class_counts"] == [20, 20]
    assert found["sentences", "erm", "final"]["labels"] == [0, 1] * 12
    assert sum(found["digits", "erm", "final"]["train_class_counts"]) == 100
    histogram = found["digits", "kl_tau1", "final"]["weight_histogram"]
    counts = np.array(histogram["counts"])
    assert len(histogram["edges"]) == counts.shape[1] + 1 and 1 < len(counts) <= 10 and counts.sum() == 100
    assert np.sum(found["sentences", "kl_tau1", "final"]["weight_histogram"]["counts"]) == 2 * 40
    rotated = found["rotated", "erm", "tuning"]
    assert rotated["score_name"] == "training_domain_validation_accuracy"
    assert rotated["score"] == pytest.approx(
        rotated["metrics"]["training_domain_validation_accuracy"], abs=1e-6
    )
    # Tuning of texts and images is scored on training rows: 8 of 40, 20 of 100.
    assert (found["sentences", "erm", "tuning"]["score"] * 8) % 1 == pytest.approx(0)
    assert (found["digits", "erm", "tuning"]["score"] * 20) % 1 == pytest.approx(0, abs=1e-6)
