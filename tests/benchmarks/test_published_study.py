"""The published study still reports, and says what it said."""

from pathlib import Path

import pytest

from benchmarks.report import __main__ as report
from benchmarks.report.lines import read_records
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


def test_report_and_readme_are_up_to_date(monkeypatch):
    monkeypatch.chdir(ROOT)
    report.main(["--readme", "README.md", "--check"])
