"""Each recipe is one file: it runs from an empty folder beside nothing but the installed package, and stays readable."""

import os
import shutil
import subprocess
import sys

import pytest

import demo
import domainbed
import glue
import imagenet
import sft
import tabular
from helpers.recipes import ROOT, sentences
from rgd_hf.scripts.runs import RunArguments

RECIPES = [path.name for path in sorted((ROOT / "recipes").glob("*.py"))]


def test_recipes_copied_into_empty_folders_start(tmp_path):
    """In one process, for the sake of time; each is the only file of the folder that it is run from."""
    package = tmp_path / "installed"
    package.mkdir()
    (package / "rgd_hf").symlink_to(ROOT / "rgd_hf")
    for name in RECIPES:
        (tmp_path / name.removesuffix(".py")).mkdir()
        shutil.copy(ROOT / "recipes" / name, tmp_path / name.removesuffix(".py"))
    code = """
import runpy, sys
for path in sys.argv[1:]:
    sys.argv = [path, "--help"]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        assert not end.code, path
"""
    paths = [str(tmp_path / name.removesuffix(".py") / name) for name in RECIPES]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths],
        cwd=package,
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage:") == len(RECIPES)


def test_a_copied_recipe_trains(tiny_model_dir, write_rows, tmp_path):
    files = [write_rows(f"{name}.csv", sentences(16)) for name in ("train", "validation")]
    folder = tmp_path / "alone"
    folder.mkdir()
    (folder / "rgd_hf").symlink_to(ROOT / "rgd_hf")
    shutil.copy(ROOT / "recipes" / "glue.py", folder)
    options = [
        "--train_file",
        files[0],
        "--validation_file",
        files[1],
        "--model_name_or_path",
        tiny_model_dir,
    ]
    options += ["--max_steps", "1", "--use_cpu", "--output_dir", "out"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "glue.py", *options], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "all_results.json").is_file()


RECIPE_MODULES = (demo, domainbed, glue, imagenet, sft, tabular)


@pytest.mark.parametrize("recipe", RECIPE_MODULES, ids=lambda module: module.__name__)
def test_options_and_lines_are_few(recipe):
    """Those that all recipes share are not counted."""
    own = [cls for cls in recipe.ARGUMENTS[:-1] if cls is not RunArguments]
    assert sum(len(cls.__dataclass_fields__) for cls in own) <= 20
    assert len((ROOT / "recipes" / f"{recipe.__name__}.py").read_text().splitlines()) <= 350
