"""The walk-throughs of docs/extend.md: their code runs, and so does the test that each ends with."""

import inspect
import re
from pathlib import Path

import pytest

from rgd_hf.heads import HEADS
from rgd_hf.weightings import WEIGHTINGS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "extend.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n)+)", PAGE, re.MULTILINE))


@pytest.fixture
def tables():
    """A walk-through may add rows."""
    saved = [(table, dict(table)) for table in (HEADS, WEIGHTINGS)]
    yield
    for table, rows in saved:
        table.clear()
        table.update(rows)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("title", SECTIONS)
def test_walk_through(title, tables, make_args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": "extend"}
    for block in re.findall(r"^```python\n(.*?)^```", SECTIONS[title], re.DOTALL | re.MULTILINE):
        exec(block, scope)
    tests = [value for name, value in scope.items() if name.startswith("test_")]
    assert tests, "a walk-through ends with a test"
    fixtures = {"make_args": make_args, "tmp_path": tmp_path}
    for test in tests:
        test(**{name: fixtures[name] for name in inspect.signature(test).parameters})


def test_there_are_five():
    assert list(SECTIONS) == [
        "A divergence",
        "A rule with state",
        "A model head",
        "An observer",
        "A recipe",
    ]
