"""The script behind `make check-gpu`: what it writes, and that a part that fails leaves the others alone."""

import json
import sys

import pytest

from benchmarks.cost import check_gpu
from rgd_hf import __version__


def checked(tmp_path, monkeypatch, *arguments):
    output = tmp_path / "check.json"
    monkeypatch.setattr(sys, "argv", ["check_gpu.py", "--output", str(output), *arguments])
    code = check_gpu.main()
    return code, {part["name"]: part for part in json.loads(output.read_text())}


def test_the_environment_names_device_and_versions(tmp_path, monkeypatch):
    code, parts = checked(tmp_path, monkeypatch, "--only", "environment")
    assert code == 0 and parts["environment"]["status"] == "ok"
    numbers = parts["environment"]["numbers"]
    assert {"device", "torch", "transformers", "accelerate"} <= numbers.keys()
    assert numbers["rgd-hf"] == __version__ and "rgd-hf" not in parts["environment"]["summary"]


def test_a_part_that_fails_says_why_and_the_next_still_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check_gpu, "ROOT", tmp_path)  # where there is no script to run
    code, parts = checked(tmp_path, monkeypatch, "--only", "lm", "environment")
    assert code == 1
    assert parts["lm"]["status"] == "failed" and "lm.log" in parts["lm"]["summary"]
    assert parts["environment"]["status"] == "ok"


@pytest.mark.parametrize("package", ["pytest", "hypothesis"])
def test_a_part_without_its_packages_is_skipped_by_name(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, parts = checked(tmp_path, monkeypatch, "--only", "tests")
    assert code == 0 and parts["tests"]["status"] == "skipped"
    assert parts["tests"]["summary"] == f"{package} is not installed"


def test_many_names_of_few_drawn_images(tmp_path):
    check_gpu.draw_images(tmp_path, classes=2, drawn=3, each=7)
    for split, names in (("train", 7), ("val", 1)):
        for number in range(2):
            assert len(list((tmp_path / split / f"class_0{number}").glob("*.jpg"))) == names
    files = list(tmp_path.rglob("*.jpg"))
    assert len({file.stat().st_ino for file in files}) == 6
    assert len({file.read_bytes() for file in files}) == 6
