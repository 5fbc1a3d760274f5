"""What transformers and its neighbours have that this release has not seen: `python tests/tools/upstream_report.py`.

A list with what to do about each, printed at the end of `make test-latest`; nothing here is an error.
"""

import importlib.metadata
import sys
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "tools"), str(ROOT / "tests" / "rgd_hf"), str(ROOT)]

from test_heads_table import differing_losses  # noqa: E402
from test_upstream_private import PRIVATE, is_there  # noqa: E402

from rgd_hf.heads import HEADS, VERIFIED_CLASSES  # noqa: E402

WATCHED = ("torch", "transformers", "accelerate", "peft", "trl", "datasets")


def new_versions() -> list[str]:
    """Packages that are installed in another version than constraints.txt has for this Python."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = [Requirement(line) for line in lines if line]
    tested = {
        pin.name: str(pin.specifier).removeprefix("==")
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }
    found = [(name, importlib.metadata.version(name), tested.get(name)) for name in WATCHED]
    return [
        f"{name} {version}" + (f" (tested: {pin})" if pin else " (a range, see pyproject.toml)")
        for name, version, pin in found
        if version != pin
    ]


def new_classes() -> list[str]:
    """Classes in the auto classes' lists that nobody has read, each with what to do about it."""
    unread = set(HEADS) - VERIFIED_CLASSES
    different: dict[str, list[str]] = {}
    for name, loss in differing_losses(unread):
        different.setdefault(name, []).append(loss)
    return [
        f"{name}: its source has {' and '.join(different[name])}, which is not known to be the loss of {HEADS[name].name}: "
        "read its forward, then give it a row in rgd_hf/heads/table.py or a name in EXCLUDED"
        if name in different
        else f"{name}: its source has the loss of {HEADS[name].name}: add it to rgd_hf/heads/verified_classes.txt"
        for name in sorted(unread)
    ]


def moved_members() -> list[str]:
    """Rows of the table of private members that are gone, each with what it was needed for."""
    return [
        f"{name}: {why}; look for what took its place, public if there is one, and change its row in "
        "tests/tools/test_upstream_private.py"
        for name, (_, why) in PRIVATE.items()
        if not is_there(name)
    ]


def main() -> None:
    """Print the report."""
    for title, lines in (
        ("Other versions than those tested (make lock-newest raises them)", new_versions()),
        ("New model classes (until read, users' are checked on the first batch)", new_classes()),
        ("Private members that have moved", moved_members()),
    ):
        print(f"\n{title}: {len(lines) or 'none'}")
        for line in lines:
            print(f"- {line}")


if __name__ == "__main__":
    main()
