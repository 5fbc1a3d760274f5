"""Finished cells trained again, and compared with their lines."""

import json

import pytest
from studies import lines

from benchmarks.study import __main__ as study
from benchmarks.study.machine import processor_name
from rgd_hf.scripts.errors import UserError

pytestmark = pytest.mark.usefixtures("in_the_checkout")


def again(whole, folder, *cells, edit=lambda line: line):
    """Rerun cells in a copy of the study's directory, whose lines are edited."""
    text = "".join(json.dumps(edit(line)) + "\n" for line in lines(whole[1]))
    (folder / "runs.jsonl").write_text(text)
    try:
        study.main([whole[0], "--output_dir", str(folder), "--rerun", *cells])
    finally:
        assert (folder / "runs.jsonl").read_text() == text
        assert [path.name for path in folder.iterdir()] == ["runs.jsonl"]


def names(whole, **wanted):
    return [line["cell"] for line in lines(whole[1]) if wanted.items() <= line.items()]


def test_a_cell_of_every_stage_gives_its_line_again(whole, tmp_path, capsys):
    cells = [
        *names(whole, dataset="digits", method="kl_tuned", stage="tuning")[:1],
        *names(whole, dataset="digits", method="scaled", seed=1),  # its learning rate is by another's weights
        "few/kl/lr?/seed2/final",
    ]
    again(whole, tmp_path, *cells)
    output = capsys.readouterr().out
    assert output.count(": the same") == 3 and "DIFFERENT" not in output and "then" not in output
    assert len(output.splitlines()) == 2 * 3, "no metric differs"


@pytest.mark.parametrize("recorded", [True, False])
def test_what_differs_is_told_and_another_score_is_an_error(whole, tmp_path, capsys, recorded):
    cell = names(whole, dataset="few", method="erm", stage="final")[0]

    def edit(line):
        other = {"metrics": line["metrics"] | {"mean_loss": 9.0}, "commit": "abc"}
        other |= {"processor": "Z80, DEFAULT"} if recorded else {"processor": None}
        return line | other | {"versions": line["versions"] | {"torch": "1.0"}}

    again(whole, tmp_path, cell, edit=edit)
    output = capsys.readouterr().out
    assert ": the same" in output and "mean_loss: 9.0 in the line, " in output
    assert "commit: abc then, " in output and "torch: 1.0 then, " in output
    assert (
        f"processor: {'Z80, DEFAULT' if recorded else 'not recorded'} then, {processor_name()} now" in output
    )
    with pytest.raises(SystemExit) as stopped:
        again(whole, tmp_path, cell, edit=lambda line: line | {"score": line["score"] - 0.0025})
    assert stopped.value.code == 1 and "DIFFERENT" in capsys.readouterr().out


def test_a_cell_that_is_not_finished_is_refused_with_near_names(whole, tmp_path):
    with pytest.raises(UserError, match=r"called 'few/erm/lr2/seed7/final'.*near it: 'few/erm/lr"):
        again(whole, tmp_path, "few/erm/lr2/seed7/final")
    with pytest.raises(UserError, match="--rerun trains here"):
        study.main([whole[0], "--rerun", "few", "--processes", "2"])
