"""Docstrings, help texts, messages and pages use the words of the field."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    path for folder in ("rgd_hf", "recipes", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
# A phrase that newcomers stumble over, and what to write.
PHRASES = {
    r"\bso (many|much) (rows|samples|images|tokens|steps)\b": "maximum number of ...",
    r"\b(row|loss|element|weight|label|number|index) an? (sample|token|seed|class|row|item|step)\b": "... per ...",
    r"\bgoes on\b|\bgo on with\b": "resumes, continues",
    r"\bbegin anew\b|\bstarts? anew\b|\bmade anew\b": "start again, reset",
    r"\bun-reduced\b": "unreduced",
    r"\bstop growing\b": "clipping threshold",
    r"\bfound by itself\b": "inferred",
    r"\bis told\b": "is reported",
}
FRAGMENT = re.compile(r"^ +\*{0,2}\w+: (of|at) (the|a|an|its|every|each|this|that|order)\b.*", re.MULTILINE)


def strings(path: Path) -> list[tuple[int, str]]:
    """The string constants of a module with their lines, docstrings included; a page is one string."""
    if path.suffix == ".md":
        return [(1, path.read_text(encoding="utf-8"))]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in MODULES + PAGES]
)
def test_words(path):
    found = [
        f"line {line}: {match[0].strip()!r}: {advice}"
        for line, text in strings(path)
        for phrase, advice in [*PHRASES.items(), (FRAGMENT, "name the thing: 'seed: random seed of ...'")]
        for match in re.finditer(phrase, text if phrase is FRAGMENT else " ".join(text.split()))
    ]
    assert not found, "\n".join(found)
