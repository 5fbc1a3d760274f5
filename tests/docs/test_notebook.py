"""The notebook runs, says what its text says it does, and is the script that it is made from."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCRIPT = (DOCS / "notebook.py").read_text(encoding="utf-8")


def test_it_trains_compares_and_shows_hard_examples(tmp_path, capsys, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib", reason="the recipes' requirements are not installed")
    pytest.importorskip("sklearn", reason="the recipes' requirements are not installed")
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    short = SCRIPT
    for name, value in {"EPOCHS": "3", "SEEDS": "[0, 1]"}.items():
        short, replaced = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value}", short)
        assert replaced == 1
    exec(compile(short, "notebook.py", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert re.search(r"RGD \(kl, tau=3\) +2 .*\[[-+].*\]", printed)
    found, listed = map(int, re.findall(r"(\d+) of the (\d+) hardest samples have a wrong label", printed)[0])
    # One sample in ten has a wrong label; the text promises most of those listed.
    assert found > listed / 2


def test_the_notebook_has_the_cells_of_the_script():
    jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed")
    notebook = jupytext.read(DOCS / "notebook.ipynb")
    made = jupytext.reads(SCRIPT, fmt="py:percent")
    cells = [[(cell.cell_type, cell.source) for cell in document.cells] for document in (notebook, made)]
    assert cells[0] == cells[1], "run make notebook"
