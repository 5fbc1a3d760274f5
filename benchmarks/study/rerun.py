"""Finished cells trained again: whether a line still says what its cell gives."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.study.cells import Cell
from benchmarks.study.specification import Study
from benchmarks.study.training import Line, train_cell
from rgd_hf.scripts.errors import UserError, listed

TOLERANCE = 1.5e-6
"""One of the last digit that lines keep. On the same kind of processor, with the same packages and code, runs are equal to the bit:
more is no rounding, but another model, be it by one test row."""
MACHINE = ("commit", "device", "processor", "threads")
UNKNOWN = "not recorded"
NEAR = 3


def find_cells(known: Mapping[str, tuple[Cell, Line]], names: Sequence[str]) -> list[tuple[Cell, Line]]:
    """Finished cells and their lines by name.

    Raises:
        UserError: no finished cell has one of these names; the message has near ones.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=NEAR, cutoff=0)
            raise UserError(
                f"--rerun: no finished cell of this study is called {name!r}: choose among those that --plan shows as "
                f"finished; near it: {listed(near)}."
            )
    return [known[name] for name in names]


def rerun(study: Study, cells: Sequence[tuple[Cell, Line]], report: Callable[[str], None]) -> bool:
    """Train cells again, as the study does, without a trace, and say what differs; whether all scores are the same.

    Args:
        study: the study of the cells.
        cells: with the settings that tuning chose, and their lines.
        report: shows a line.
    """
    same = True
    for cell, line in cells:
        found = train_cell(study, cell)
        report(cell.name)
        for difference in _other_conditions(line, found):
            report(f"  {difference}")
        if "error" in found:
            report(f"  failed: {found['error']}")
            same = False
            continue
        equal = abs(found["score"] - line["score"]) <= TOLERANCE
        verdict = "the same" if equal else "DIFFERENT"
        report(
            f"  {line['score_name']}: {line['score']:.6f} in the line, {found['score']:.6f} now: {verdict}"
        )
        for difference in _other_values(line["metrics"], found["metrics"]):
            report(f"  {difference}")
        same &= equal
    return same


def _other_conditions(line: Line, found: Line) -> Iterator[str]:
    before = {name: line.get(name) for name in MACHINE} | line.get("versions", {})
    now = {name: found.get(name) for name in MACHINE} | found["versions"]
    for name, value in before.items():
        if value != now.get(name):
            then, here = (UNKNOWN if one is None else one for one in (value, now.get(name)))
            yield f"{name}: {then} then, {here} now"


def _other_values(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            yield f"{name}: {before.get(name)} in the line, {now.get(name)} now"
