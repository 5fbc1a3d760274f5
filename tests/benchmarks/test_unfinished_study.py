"""A report says how much of the study's file there is, and marks what may change with the rest."""

import json
import shutil

import pytest
from studies import lines
from study_lines import write_lines

from benchmarks.report.lines import read_records
from benchmarks.report.markdown import build_report
from benchmarks.report.progress import family, interim, is_partial, unfinished
from benchmarks.report.summary import difference


@pytest.fixture
def left(whole, tmp_path):
    """A function: the report's records of the lines that are kept of a finished study."""

    def keep(kept, study=True):
        write_lines(tmp_path, [line for line in lines(whole[1]) if kept(line)])
        if study:
            shutil.copy(whole[1] / "study.json", tmp_path)
        return read_records(tmp_path)

    return keep


def two_methods_two_seeds(line):
    return line["method"] in ("erm", "kl") and (line["stage"] == "tuning" or line["seed"] < 2)


def section(text, name):
    return text.split(f"\n## {name}\n")[1].split("\n## ")[0]


def test_a_finished_study_has_no_such_words(whole):
    records = read_records(whole[1])
    text = build_report(records)[0]
    assert not is_partial(records) and not any(unfinished(records, name) for name in records.datasets)
    assert all(word not in text for word in ("(partial)", "interim", "incomplete", "not finished"))


def test_methods_and_seeds_of_which_there_is_no_line_are_missed(left):
    records = left(two_methods_two_seeds)
    assert not records.missing()  # as far as lines tell
    text = build_report(records)[0]
    assert text.split("\n")[0].endswith("(partial)")
    assert "- digits: no final run yet: `kl_tuned`, `scaled`\n" in text
    assert "- few: 2 of 3 seeds\n" in text
    assert "**Not finished:** 2 of 3 seeds.\n" in section(text, "few")
    assert "**Not finished:** no final run yet: `kl_tuned`, `scaled`.\n" in section(text, "digits")


def test_verdicts_of_fewer_pairs_than_planned_are_interim(left):
    records = left(two_methods_two_seeds)
    text = build_report(records)[0]
    rows = [line for line in section(text, "few").splitlines() if line.startswith("| KL |")]
    assert rows[0].endswith(" (interim, 2 of 3) |") and rows[1].startswith("| KL | ")
    few = difference(records, "few", "kl")
    assert interim(records, "few", few, "kl") == " (interim, 2 of 3)"
    assert interim(records, "digits", difference(records, "digits", "kl"), "kl") == ""
    table = section(text, "Data sets")
    assert "| 2 of 3 |" in table
    assert "(interim, 2 of 3) |" in table and "(interim) |" in table
    assert "Interim, with fewer pairs than planned: 1 of 2." in section(text, "Summary")


def test_what_has_no_interval_is_no_interim_verdict(left):
    records = left(
        lambda line: two_methods_two_seeds(line) and (line["method"] == "erm" or line["seed"] == 0)
    )
    assert "Interim, with fewer" not in section(build_report(records)[0], "Summary")


def test_a_method_with_fewer_seeds_than_others_is_named(left):
    records = left(lambda line: line["dataset"] == "few" and (line["method"] == "erm" or line["seed"] != 2))
    assert unfinished(records, "few") == "2 of 3 seeds of `kl`"
    text = build_report(records)[0]
    assert "`few/kl/seed2`" not in text  # one line a data set, not one a run
    assert "**Data sets of the study that have no final run yet:** digits." in text


def test_holms_family_is_all_that_the_study_compares(left):
    text = build_report(left(two_methods_two_seeds))[0]
    words = "Holm's family is incomplete: 2 methods of the study cannot be compared with ERM yet."
    assert words in section(text, "digits") and "incomplete" not in section(text, "few")
    assert words in section(text, "Summary")
    assert family(["erm", "kl", "ess"], ["kl"]).endswith(
        "1 method of the study cannot be compared with ERM yet."
    )


def test_questions_and_means_are_interim_too(whole, left):
    records = left(lambda line: line["dataset"] == "digits" or line["seed"] != 2)
    questions = [{"ask": "Does it gain?", "compare": ["kl", "erm"], "datasets": [], "metric": "score"}]
    text = build_report(type(records)(records.final, {}, study={**records.study, "questions": questions}))[0]
    rows = {row.split(" | ")[0]: row for row in text.split("### Does it gain?")[1].splitlines() if "|" in row}
    assert "(interim, 2 of 3) |" in rows["| few"] and "interim" not in rows["| digits"]
    assert "(interim) |" in rows["| mean over data sets"]


def test_lines_alone_are_reported_as_far_as_they_tell(left):
    records = left(two_methods_two_seeds, study=False)
    assert not is_partial(records) and "interim" not in build_report(records)[0]
    assert json.dumps(records.study) == "{}"
