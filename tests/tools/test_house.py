"""The house as CONTRIBUTING.md draws it: every part is on the map, and imports point one way."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "rgd_hf"


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for file in LIBRARY.rglob("*.py")}


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported(body: list[ast.stmt]) -> set[str]:
    """The names that a module imports when it is imported itself: neither within functions nor for type checkers."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            found |= imported(node.orelse if is_for_type_checkers(node) else [*ast.iter_child_nodes(node)])
    return found


def imports_of(file: Path) -> set[str]:
    return imported(ast.parse(file.read_text(encoding="utf-8")).body)


@pytest.mark.parametrize("folder", ["rgd_hf", "rgd_hf/scripts"])
def test_every_part_of_the_library_is_on_the_map_once(folder):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = text.split(f"| in `{folder}/` | what it is |")[1].split("\n\n")[0].splitlines()
    drawn = [name for row in rows if row for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    entries = [*(ROOT / folder).iterdir()]
    there = [entry.name for entry in entries if entry.suffix == ".py" and entry.stem != "__init__"]
    there += [f"{entry.name}/" for entry in entries if (entry / "__init__.py").exists()]
    assert sorted(drawn) == sorted(there)


def test_modules_of_the_library_do_not_import_each_other_in_circles():
    graph = {name: imports_of(file) & FILES.keys() - {name} for name, file in FILES.items()}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    ("folder", "never"),
    [
        ("rgd_hf", ("recipes", "benchmarks", "tests")),
        ("recipes", ("recipes", "benchmarks", "tests")),
        ("benchmarks", ("recipes", "tests")),
    ],
)
def test_imports_point_one_way(folder, never):
    recipes = tuple(file.stem for file in (ROOT / "recipes").glob("*.py"))
    never = (*never, *recipes) if "recipes" in never else never
    wrong = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in (ROOT / folder).rglob("*.py")
        for name in imports_of(file)
        if name.split(".")[0] in never
    }
    assert not wrong


STEP = {"batches", "heads", "losses", "lm_head", "items", "weightings", "divergences", "loss_sources"}
OUTSIDE = {"scripts", "contrib", "hub", "comparison", "trainer"}


def test_the_way_of_a_step_knows_nothing_outside_it_and_no_task():
    wrong = {
        f"{name} imports {other}"
        for name, file in FILES.items()
        for other in imports_of(file) & FILES.keys()
        for here, there in [(name.split(".")[1:2], other.split(".")[1:2])]
        if (STEP.issuperset(here) and here and OUTSIDE.intersection(there))
        or (here != ["scripts"] and there == ["scripts"])
    }
    assert not wrong


TASKS = {"text", "vision", "tabular", "domains"}
NOT_FOR = {
    "files": {"training", *TASKS},
    "training": TASKS,
    **{task: {"domains", "tabular"} - {task} for task in TASKS},
}


def test_files_know_no_training_and_trainings_no_task():
    wrong = {
        f"{name} imports {other}"
        for name, file in FILES.items()
        for other in imports_of(file) & FILES.keys()
        if name.startswith("rgd_hf.scripts.") and other.startswith("rgd_hf.scripts.")
        if other.split(".")[2] in NOT_FOR.get(name.split(".")[2], set())
    }
    assert not wrong
