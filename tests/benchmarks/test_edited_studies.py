"""Studies that are edited or resumed: which of their lines still count, and what is said of them."""

import json

import pytest
from studies import STUDY, changed, lines, write

from benchmarks.study import __main__ as study

FEW = {**STUDY, "datasets": {"few": STUDY["datasets"]["few"]}}
SCORE = ("datasets", "few", "tuning_score")
SEARCH = {"draws": 2, "space": {"learning_rate": {"log_uniform": [1e-5, 1e-1]}}}

pytestmark = pytest.mark.usefixtures("in_the_checkout")


def run(content, folder, *options):
    study.main([write(content, folder), "--output_dir", str(folder), *options])
    return lines(folder)


def test_settings_are_chosen_anew_where_the_score_that_chooses_was_changed(tmp_path):
    before = run(FEW, tmp_path)
    found = run(changed(*SCORE, value="validation_agreement", study=FEW), tmp_path)[len(before) :]
    tuning = [line for line in found if line["stage"] == "tuning"]
    assert len(tuning) == 2 * 2 * 2 and {line["score_name"] for line in tuning} == {"validation_agreement"}
    assert {line["identity"] for line in tuning} < {line["identity"] for line in before}
    assert len(run(changed(*SCORE, value="validation_agreement", study=FEW), tmp_path)) == len(before) + len(
        found
    )


def test_a_random_search_is_drawn_anew_where_the_score_that_chooses_was_changed(tmp_path):
    search = changed("datasets", "few", "random_search", value=SEARCH, study=FEW)
    before = run(search, tmp_path)
    assert {line["validation_score_name"] for line in before} == {"validation_accuracy"}
    after = run(changed(*SCORE, value="validation_agreement", study=search), tmp_path)
    assert [line["cell"] for line in after[len(before) :]] == [line["cell"] for line in before]


def test_finished_runs_of_other_commits_are_told_once(tmp_path, capsys, monkeypatch):
    def at(commit, *seeds):
        for module in ("runner", "training"):
            monkeypatch.setattr(f"benchmarks.study.{module}.git_commit", lambda directory: commit)
        run(FEW, tmp_path, "--methods", "erm", "--seeds", *seeds)
        return [line for line in capsys.readouterr().out.splitlines() if "commit" in line]

    assert at("aaa", "0") == at("aaa", "0") == []
    assert at("bbb", "0", "1") == ["5 of the finished cells are of commits aaa; this is bbb."]
    assert at("ccc", "0", "1", "2") == ["6 of the finished cells are of commits aaa, bbb; this is ccc."]


@pytest.mark.parametrize(("first", "added", "finals"), [(2, 0.5, 6), (0.5, 2, 3)])
def test_tuning_that_is_added_is_waited_for(first, added, finals, tmp_path, capsys):
    """One start trains all that the edited file asks for, and nothing twice: 0.5 is the better one."""
    erm = changed("datasets", "few", "methods", value=["erm"], study=FEW)
    run(changed("learning_rate_factors", value=[first], study=erm), tmp_path)
    edited = changed("learning_rate_factors", value=[first, added], study=erm)
    capsys.readouterr()
    found = run(edited, tmp_path)
    assert "All 7 cells are finished" in capsys.readouterr().out
    assert run(edited, tmp_path) == found
    trained = [line["candidate"] for line in found if line["stage"] == "final"]
    assert len(trained) == finals and set(trained[-3:]) == {"lr0.5"}


def test_failures_whose_settings_are_chosen_again_are_failures(tmp_path, capsys):
    """The final runs of 0.5, the better one, have failed; tuning that is added chooses them once more."""
    erm = changed("datasets", "few", "methods", value=["erm"], study=FEW)
    before = run(changed("learning_rate_factors", value=[0.5], study=erm), tmp_path)
    failed = [
        {key: value for key, value in line.items() if key != "score"} | {"error": "the loss is NaN"}
        if line["stage"] == "final" and line["seed"] < 2
        else line
        for line in before
    ]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in failed))
    edited = changed("learning_rate_factors", value=[0.5, 2], study=erm)
    for _ in range(2):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run(edited, tmp_path)
        assert end.value.code == study.EXIT_RUNS_FAILED
        said = capsys.readouterr().out
        assert "cells are finished:" not in said and "2 cells failed, 2 of them final." in said
        assert said.count("failed: few/erm/") == 2
    assert len(lines(tmp_path)) == len(before) + 4  # of tuning
    assert len(run(edited, tmp_path, "--retry_failed")) == len(before) + 4 + 2
