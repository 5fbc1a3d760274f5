"""constraints.txt has one version of everything that pyproject.toml asks for, on every Python that it allows."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
# setuptools too: some releases of torch ask for a range of it.
OF_TORCH = {"torch", "torchvision", "setuptools"}
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def pins():
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def holds(requirement, python):
    environment = {"python_version": python, "python_full_version": f"{python}.9"}
    return requirement.marker is None or requirement.marker.evaluate(environment)


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_has_one_version_in_its_range(python):
    pinned: dict[str, list[str]] = {}
    for pin in pins():
        if holds(pin, python):
            pinned.setdefault(canonicalize_name(pin.name), []).append(str(pin.specifier).removeprefix("=="))
    tomllib = pytest.importorskip("tomllib", reason="new in Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = sum(project["optional-dependencies"].values(), project["dependencies"])
    missing = [
        str(requirement)
        for requirement in map(Requirement, declared)
        if holds(requirement, python)
        and (name := canonicalize_name(requirement.name)) not in OF_TORCH
        and not (len(pinned.get(name, [])) == 1 and requirement.specifier.contains(pinned[name][0]))
    ]
    assert not missing, "make lock"


def test_what_differs_by_accelerator_has_no_version():
    names = {canonicalize_name(pin.name) for pin in pins()}
    assert not {name for name in names if name in OF_TORCH or re.match("triton$|nvidia-|cuda-", name)}


def test_nothing_says_where_packages_come_from():
    assert "://" not in (ROOT / "constraints.txt").read_text()
