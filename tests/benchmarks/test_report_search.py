"""What a report says of a random search, and of what it cannot show."""

import pytest
from study_lines import study

from benchmarks.report.html_page import html_page
from benchmarks.report.lines import Records
from benchmarks.report.markdown import build_report
from benchmarks.report.methods import in_order


def records_of(lines) -> Records:
    return Records({(r["dataset"], r["method"], r["seed"]): r for r in lines if r["stage"] == "final"}, {})


@pytest.fixture
def lines():
    return study({"one": "domains", "two": "tabular"}, {"erm": 0.0, "kl_tau1": 1.0}, seeds=3, rows=8)


def test_a_random_search_is_no_want_of_tuning(lines):
    for line in lines:
        line["draws"] = 20
    text = build_report(records_of(lines))[0]
    assert text.startswith("# Re-weighted training against tuned ERM\n")
    assert "12 final runs, each of one, two chosen among the draws of a random search.\n" in text
    assert "and settings chosen by the same random search, in points" in text
    assert "- **Random search.** Methods share the draws" in text
    assert "no learning rate tuned" not in text and "same learning rate" not in text
    assert "- **Tuning.**" not in text
    for line in lines:
        if line["dataset"] == "two":
            del line["draws"]
    text = build_report(records_of(lines))[0]
    assert "by the same random search (on two the same one), in points" in text
    assert "- **Random search on one.**" in text


def test_where_the_first_methods_have_no_pair_others_are_drawn(lines):
    more = [{**line, "method": "cvar"} for line in lines if line["method"] == "kl_tau1"]
    for line in lines:
        if line["method"] == "kl_tau1":
            line["seed"] += 10
    records = Records(records_of([*lines, *more]).final, {}, study={"headline": ["kl_tau1"]})
    assert build_report(records)[1]["gains.png"]().startswith(b"\x89PNG")


def test_erm_stands_first_and_the_page_shows_what_an_error_says():
    assert in_order({"erm_12_epochs", "kl_tau1", "erm"}) == ["erm", "erm_12_epochs", "kl_tau1"]
    assert "&lt;module foo&gt;" in html_page("# A\n\ncannot import from <module foo> here\n", {}, "A")


def test_the_weights_of_mean_one_weights_are_explained(lines):
    assert "logged before they are normalized" in build_report(records_of(lines))[0]
