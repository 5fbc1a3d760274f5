"""`benchmarks/cost/lm.py` runs here, and names what does not."""

import json
import sys

from benchmarks.cost import lm


def test_measures_what_runs_and_names_the_rest(tmp_path, monkeypatch, capsys):
    def missing():
        raise ImportError("No module named 'liger_kernel'")

    monkeypatch.setitem(lm.WAYS, "Liger (mean, unweighted)", missing)
    ways = [lm.FULL, "ours", "Liger (mean, unweighted)"]
    output = tmp_path / "lm.json"
    monkeypatch.setattr(
        sys, "argv", ["lm.py", "--quick", "--repeats", "2", "--only", *ways, "--output", str(output)]
    )
    lm.main()
    report = json.loads(output.read_text())
    assert [head["shape"][-1] for head in report["heads"]] == ["trained", "frozen"]
    assert "liger_kernel" in capsys.readouterr().out
    for head in report["heads"]:
        full = head["ways"][0]
        assert list(head["skipped"]) == ["Liger (mean, unweighted)"]
        assert full["time_ratio"]["median"] == full["memory_ratio"] == 1
        assert full["peak_bytes"] >= 256 * 8000 * 4
    for result in (report["heads"][0]["ways"][1], report["step"]["ways"][1]):
        assert result["way"] == "ours" and result["memory_ratio"] < 1 and result["seconds"] > 0
