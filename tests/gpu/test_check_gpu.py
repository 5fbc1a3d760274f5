"""The script behind `make check-gpu`: what it writes, and that a part that fails leaves the others alone."""

import json
import sys

from benchmarks.cost import check_gpu


def checked(tmp_path, monkeypatch, *arguments):
    output = tmp_path / "check.json"
    monkeypatch.setattr(sys, "argv", ["check_gpu.py", "--output", str(output), *arguments])
    code = check_gpu.main()
    return code, {part["name"]: part for part in json.loads(output.read_text())}


def test_the_environment_names_device_and_versions(tmp_path, monkeypatch):
    code, parts = checked(tmp_path, monkeypatch, "--only", "environment")
    assert code == 0 and parts["environment"]["status"] == "ok"
    assert {"device", "torch", "transformers", "accelerate"} <= parts["environment"]["numbers"].keys()


def test_a_part_that_fails_says_why_and_the_next_still_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check_gpu, "ROOT", tmp_path)  # where there is no script to run
    code, parts = checked(tmp_path, monkeypatch, "--only", "lm", "environment")
    assert code == 1
    assert parts["lm"]["status"] == "failed" and "lm.log" in parts["lm"]["summary"]
    assert parts["environment"]["status"] == "ok"
