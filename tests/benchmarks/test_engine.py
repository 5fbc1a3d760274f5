"""Studies that are run: killed and resumed, in shards, within a budget, with failures, in parts, by random search."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from studies import STUDY, by_cell, changed, lines, write

from benchmarks.report.lines import read_records
from benchmarks.study import __main__ as study
from benchmarks.study.runner import Runner
from benchmarks.study.study_file import read_study
from rgd_hf.scripts.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ONLY_FEW = {**STUDY, "datasets": {"few": STUDY["datasets"]["few"]}}
CELLS = (2 + 2 + 4) * 2 + (2 + 2) * 2 + 4 * 2 + 2 * 3

pytestmark = pytest.mark.usefixtures("in_the_checkout")


def test_every_cell_leaves_one_line_with_all_that_the_report_reads(whole):
    found = lines(whole[1])
    assert len(found) == CELLS and len({line["cell"] for line in found}) == CELLS
    for line in found:
        assert line["cell"].startswith(f"{line['dataset']}/{line['method']}/{line['candidate']}/")
        assert line["seconds"] > 0 and line["peak_memory_mb"] > 50 and line["device"]
        assert line["processor"].endswith(f", {torch.backends.cpu.get_cpu_capability()}")
        assert line["batch_size"] == 40
        assert {"torch", "transformers", "lightgbm", "numpy", "pandas", "scipy", "python"} <= set(
            line["versions"]
        )
        assert line["settings"]["recipe"] == "tests/benchmarks/own_script.py"
    tuning = [line for line in found if line["stage"] == "tuning"]
    assert all(line["score"] == pytest.approx(line["metrics"]["validation_accuracy"]) for line in tuning)
    assert {line["score_name"] for line in tuning} == {"validation_accuracy"}
    final = [line for line in found if line["stage"] == "final"]
    for line in final:
        samples = line["samples"]
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(samples["correct"]), dtype=np.uint8))[: samples["n"]]
        assert bits.mean() == pytest.approx(line["score"]) and line["score_name"] == "accuracy"
        assert ("losses" in samples) == (line["method"] == "erm") and len(samples["rows"]) == samples["n"]
        assert {"macro_f1", "mean_loss", "worst_class_accuracy", "rarest_class_recall"} <= set(
            line["metrics"]
        )
        assert line["history"] and line["looked_at"] == ["macro_f1", "mean_loss"]
    assert sum("labels" in line for line in final) == 2
    kl_tuned = next(line for line in final if line["method"] == "kl_tuned")
    assert kl_tuned["method_options"] == ["reweighting", "tau"] and kl_tuned["compared_with"] == "kl"


def test_the_records_of_a_study_are_all_read(whole):
    records = read_records(whole[1])
    assert len(records.final) == 4 * 2 + 2 * 3 and not records.missing() and not records.mixed()
    assert records.compared_with("kl_tuned") == "kl" and records.study["methods"]["kl"]["options"]["tau"] == 1


def test_the_scaled_rate_is_that_of_the_other_run_times_its_mean_weight(whole):
    final = [line for line in lines(whole[1]) if line["stage"] == "final" and line["dataset"] == "digits"]
    runs = {(line["method"], line["seed"]): line for line in final}
    for seed in (0, 1):
        scaled, source = runs["scaled", seed], runs["kl", seed]
        assert scaled["candidate"] == source["candidate"]
        assert scaled["learning_rate_scale"] == source["metrics"]["weight_mean"] > 1
        rate = source["settings"]["learning_rate"] * scaled["learning_rate_scale"]
        assert scaled["settings"]["learning_rate"] == pytest.approx(rate)


def test_a_finished_study_is_left_alone_and_an_edited_one_runs_what_changed(whole, tmp_path, capsys):
    before = lines(whole[1])
    study.main([whole[0], "--output_dir", str(whole[1])])
    assert lines(whole[1]) == before and f"All {CELLS} cells are finished" in capsys.readouterr().out
    # Lines from before they told processor and batch size are finished as well.
    old = [{k: v for k, v in line.items() if k not in ("processor", "batch_size")} for line in before]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    study.main([whole[0], "--output_dir", str(tmp_path)])
    assert lines(tmp_path) == old
    study.main(
        [write(changed("methods", "kl", "options", "tau", value=5), tmp_path), "--output_dir", str(tmp_path)]
    )
    new = lines(tmp_path)[CELLS:]
    assert {line["method"] for line in new} == {"kl", "scaled"} and len(new) == 2 * 2 * 2 + 2 * 2 + 3
    assert all(line["settings"]["tau"] == 5 for line in new if line["method"] == "kl")


def test_a_study_killed_in_the_middle_and_resumed_gives_the_same_lines(whole, tmp_path):
    command = [sys.executable, "-m", "benchmarks.study", whole[0], "--output_dir", str(tmp_path)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.time() + 200
    while not lines(tmp_path) and time.time() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    half = lines(tmp_path)
    assert 1 <= len(half) < CELLS
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write('{"cell": "cancer/erm')  # the worst moment to be killed: in the middle of a line
    study.main([whole[0], "--output_dir", str(tmp_path)])
    assert lines(tmp_path)[: len(half)] == half and by_cell(tmp_path) == by_cell(whole[1])


def test_shards_together_give_the_same_lines(whole, tmp_path):
    for shard in ("1/2", "2/2"):
        study.main([whole[0], "--output_dir", str(tmp_path), "--shard", shard])
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["runs-1of2.jsonl", "runs-2of2.jsonl"]
    assert len(lines(tmp_path)) == CELLS and by_cell(tmp_path) == by_cell(whole[1])
    for options, message in (
        (["--shard", "3/2"], "--shard must be i/n"),
        (["--shard", "1/2", "--ray"], "either --ray"),
        (["--processes", "2", "--ray"], "either --ray"),
        (["--processes", "0"], "--processes must be at least 1"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--time_budget", "nan"], "--time_budget must not be negative"),
    ):
        with pytest.raises(UserError, match=message):
            study.main([whole[0], *options])


def test_a_time_budget_ends_the_study_before_a_run_that_would_not_fit(whole, tmp_path, capsys):
    kept = [
        line | {"seconds": 3600.0}
        for line in lines(whole[1])
        if line["stage"] == "tuning" or line["seed"] == 0
    ]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    study.main([whole[0], "--output_dir", str(tmp_path), "--time_budget", "59"])
    left = CELLS - len(kept)
    assert len(lines(tmp_path)) == len(kept)
    said = capsys.readouterr().out
    assert f"{left} of {CELLS} cells are left, about {left} h 00 min" in said
    assert "few: a final run may take 1 h 30 min, longer than the whole time budget of 59 min" in said
    study.main([write(changed("time_budget", value=0), tmp_path), "--output_dir", str(tmp_path / "none")])
    assert lines(tmp_path / "none") == []


def test_one_run_of_a_machine_that_stood_still_keeps_no_other_from_beginning(whole, tmp_path):
    kept = [line | {"seconds": 10.0} for line in lines(whole[1]) if line["dataset"] == "few"]
    kept[0]["seconds"] = kept[-1]["seconds"] = 10_000.0
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    runner = Runner(read_study(whole[0]), tmp_path, (1, 1), print)
    now = time.perf_counter()
    for cell in (cell for cell in runner.cells if cell.dataset == "few"):
        assert runner._fits(cell, 20.0, now) and not runner._fits(cell, 14.0, now)


def test_the_plan_is_shown_without_training(whole, tmp_path, capsys):
    study.main([whole[0], "--output_dir", str(whole[1]), "--plan"])
    output = capsys.readouterr().out
    assert output.count("finished  ") == CELLS and f"{CELLS} of {CELLS} cells are finished." in output
    study.main(
        [whole[0], "--output_dir", str(tmp_path / "new"), "--plan", "--seeds", "1", "--methods", "erm"]
    )
    output = capsys.readouterr().out
    assert "missing   digits/erm/lr?/seed1/final" in output and "digits: 4 of tuning, 1 others" in output
    assert not (tmp_path / "new").exists()


def test_a_run_that_fails_does_not_stop_the_study_and_is_tried_again_once_it_may_pass(
    tmp_path, capsys, monkeypatch
):
    failing = changed("methods", "kl", "options", "fail", value="now")
    file = write({**failing, "datasets": ONLY_FEW["datasets"]}, tmp_path)

    def start(*options):
        with pytest.raises(SystemExit) as stopped:
            study.main([file, "--output_dir", str(tmp_path), *options])
        assert stopped.value.code == 1
        return capsys.readouterr().out, [line for line in lines(tmp_path) if "error" in line]

    output, failed = start()
    assert len(failed) == 4 and all(line["method"] == "kl" and "score" not in line for line in failed)
    assert all("FloatingPointError: the loss is NaN" in line["error"] for line in failed)
    assert all(str(ROOT) not in line["traceback"] for line in failed)
    assert "failed: few/kl/lr?/seed0/final: no settings of few/kl have finished" in output
    assert "7 cells failed, 3 of them final." in output
    assert sum("error" not in line for line in lines(tmp_path)) == 4 + 3
    # Its own error would come again, as long as the code is the same.
    assert len(start()[1]) == 4
    assert len(start("--retry_failed")[1]) == 8
    monkeypatch.setattr("benchmarks.study.runner.git_commit", lambda directory: "another")
    assert len(start()[1]) == 12


@pytest.mark.parametrize(
    ("key", "name", "processes"), [("score", "r2", "1"), ("tuning_score", "f1", "1"), ("score", "r2", "2")]
)
def test_a_score_that_the_script_does_not_give_costs_one_run_of_its_data_set(
    key, name, processes, tmp_path, capsys
):
    both = changed("datasets", "digits", "methods", value=["erm"])
    file = write(changed("datasets", "few", key, value=name, study=both), tmp_path)
    for start in (1, 2):
        with pytest.raises(SystemExit) as stopped:
            study.main([file, "--output_dir", str(tmp_path), "--processes", processes])
        assert stopped.value.code == 1
        failed = [line for line in lines(tmp_path) if "error" in line]
        assert start <= len(failed) <= start * int(processes) and {line["stage"] for line in failed} == {
            "tuning"
        }
        expected = f"datasets: few: {key}: the recipe gave no '{name}', but 'accuracy', 'validation_accuracy'"
        assert all(expected in line["error"] for line in failed)
    assert sum(line["dataset"] == "digits" and "error" not in line for line in lines(tmp_path)) == 2 * 2 + 2
    output = capsys.readouterr().out
    assert "cells would have had no score and were left out" in output and "All " not in output


def test_a_score_that_a_script_of_a_methods_own_does_not_give_costs_the_others_nothing(tmp_path):
    script = tmp_path / "scoreless.py"
    own = Path("tests/benchmarks/own_script.py").read_text()
    script.write_text(own.replace('"accuracy":', '"hits":'))
    other = {"recipe": str(script), "options": {}}
    content = changed("methods", "other", value=other, study=ONLY_FEW)
    content = changed("datasets", "few", "methods", value=["other", "erm"], study=content)
    with pytest.raises(SystemExit):
        study.main([write(content, tmp_path), "--output_dir", str(tmp_path)])
    found = lines(tmp_path)
    assert sum("error" in line for line in found) == 1
    assert sum(line["method"] == "erm" for line in found) == 2 * 2 + 3


def test_a_directory_that_cannot_be_written_ends_the_study_before_the_first_run(whole, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*--output_dir"):
        study.main([whole[0], "--output_dir", str(tmp_path / "file")])
    assert "/tuning" not in capsys.readouterr().out


def test_nothing_of_a_run_is_left_behind(whole, tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    before = dict(os.environ)
    study.main([whole[0], "--output_dir", str(tmp_path / "out"), "--methods", "erm", "--seeds", "0"])
    assert list(folder.iterdir()) == [] and dict(os.environ) == before


def test_parts_and_random_search_make_one_run_a_seed(tmp_path):
    few = {
        **STUDY["datasets"]["few"],
        "parts": {"domain": ["a", "bbb"]},
        "random_search": {"draws": 2, "space": {"learning_rate": {"log_uniform": [1e-5, 1e-1]}}},
    }
    study.main([write({**STUDY, "datasets": {"few": few}}, tmp_path), "--output_dir", str(tmp_path)])
    found = lines(tmp_path)
    assert len(found) == 2 * 3 * 2 * 2 and all("validation_score" in line for line in found)
    records = read_records(tmp_path)
    assert len(records.final) == 2 * 3 and not records.mixed()
    for (_, method, seed), run in records.final.items():
        best = [
            max(
                (r for r in found if (r["method"], r["seed"], r["part"]) == (method, seed, part)),
                key=lambda r: r["validation_score"],
            )
            for part in ("a", "bbb")
        ]
        assert run["score"] == pytest.approx(np.mean([line["score"] for line in best]))
        assert run["samples"]["n"] == 800 and len(set(run["samples"]["rows"])) == 800
