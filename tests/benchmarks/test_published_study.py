"""The published studies still report, and say what they said."""

from pathlib import Path

import pytest

from benchmarks.report import __main__ as report
from benchmarks.report.lines import read_records
from benchmarks.report.progress import unfinished
from benchmarks.report.sections import _tuning
from benchmarks.report.summary import difference, overall

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "benchmarks" / "results" / "compare"


@pytest.fixture(scope="module")
def records():
    return read_records(PUBLISHED)


def test_its_lines_are_all_read(records):
    assert (len(records.final), len(records.tuning), len(records.failed)) == (1888, 647, 1)
    assert len(records.datasets) == 16 and not records.missing() and not records.mixed()
    assert len(overall(records)) == 23


def test_paired_differences_are_those_of_the_lines(records):
    """Counted once by hand from the lines, before the report moved."""
    assert difference(records, "breast_cancer", "kl_tau1").mean == pytest.approx(2.0175, abs=1e-3)
    assert difference(records, "cifar10_long_tailed", "class_weights").mean == pytest.approx(5.44, abs=1e-6)
    assert difference(records, "pacs", "ess_90").n == 3


@pytest.mark.parametrize(("study", "page"), [("evidence", "README.md"), ("compare", "docs/evidence.md")])
def test_reports_and_tables_are_up_to_date(study, page, monkeypatch):
    monkeypatch.chdir(ROOT)
    report.main(["--results_dir", f"benchmarks/results/{study}", "--readme", page, "--check"])


def test_the_evidence_is_not_mixed_and_every_pair_has_its_seeds():
    found = read_records(PUBLISHED.parent / "evidence")
    assert not found.failed and not found.mixed() and not found.left_out
    assert not found.missing()
    seeds = {"pacs": 3, "cifar10_long_tailed": 5}
    for name in found.datasets:
        for method in found.methods(name) - {"erm"}:
            assert difference(found, name, method).n == seeds.get(name, 10), (name, method)


@pytest.mark.parametrize("study", ["evidence", "gpu/cola", "plateau"])
def test_what_is_published_before_it_is_finished_says_so(study):
    directory = PUBLISHED.parent / study
    found = read_records(directory)
    text = (directory / "REPORT.md").read_text(encoding="utf-8")
    begun = [name for name in found.datasets if unfinished(found, name)]
    assert begun and all(f"- {name}: {unfinished(found, name)}\n" in text for name in begun)
    assert "(interim, " in text and ("Holm's family is incomplete: " in text or study == "plateau")


def test_tuning_scores_stand_by_learning_rate_and_other_settings():
    lines = _tuning(read_records(PUBLISHED.parent / "evidence"), "adult")
    rows = {row.split(" | ")[0].removeprefix("| "): row.split(" | ")[1:] for row in lines[2:-1]}
    assert all(len(row) == 5 for row in rows.values())  # four rates, and what the final runs have
    assert [title for title in rows if title.startswith("KL, τ chosen")] == [
        f"KL, τ chosen; tau{tau}" for tau in (1, 3, 5, 7)
    ]
    chosen = {title: row[-1].removesuffix(" |").strip() for title, row in rows.items()}
    assert [title for title, final in chosen.items() if "chosen" in title and final] == ["KL, τ chosen; tau5"]
    assert chosen["KL, τ chosen; tau5"] == "× 1, tau5"
