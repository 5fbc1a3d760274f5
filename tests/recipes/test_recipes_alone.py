"""Each recipe is one file: copied alone into an empty folder it trains with the package from a wheel, and stays readable."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import demo
import domainbed
import glue
import imagenet
import sft
import tabular
from helpers.recipes import ROOT, TINY, sentences
from helpers.tiny_models import save_llama
from rgd_hf.scripts.training.plans import RunArguments

RECIPES = {path.stem: path for path in sorted((ROOT / "recipes").glob("*.py"))}
SMALL = ["--max_steps", "2", "--use_cpu", "--disable_tqdm", "true", "--eval_strategy", "no"]
SMALL += ["--per_device_train_batch_size", "4", "--save_strategy", "no"]
RUN_ALL = """
import os, runpy, sys
paths, commands = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for name, path in paths.items():
    os.chdir(os.path.dirname(path))
    sys.argv = [path, *commands[name]]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        assert not end.code, path
import rgd_hf
assert rgd_hf.__file__.startswith(sys.path[0] or os.environ["PYTHONPATH"]), rgd_hf.__file__
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of what it is made from."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("rgd_hf", "recipes", "benchmarks", "tests"):
        leave_out = shutil.ignore_patterns("__pycache__", "results", "*.jsonl")
        shutil.copytree(ROOT / name, source / name, ignore=leave_out)
    code = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = source.glob("*.whl")
    return found


def test_the_wheel_has_the_whole_package_and_nothing_else(wheel):
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = (path for path in (ROOT / "rgd_hf").rglob("*") if path.is_file())
    assert files == {str(path.relative_to(ROOT)) for path in package if path.suffix != ".pyc"}
    assert {"rgd_hf/py.typed", "rgd_hf/heads/verified_classes.txt"} <= files


def test_every_recipe_trains_alone_with_the_wheel(wheel, tiny_model_dir, write_rows, tmp_path):
    """In one process, for the sake of time; each is the only file of the folder that it is run from."""
    package = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(package)
    paths = {}
    for name, path in RECIPES.items():
        (tmp_path / name).mkdir()
        paths[name] = shutil.copy(path, tmp_path / name)
    text = [write_rows(f"{split}.jsonl", sentences(16)) for split in ("train", "validation")]
    files = ["--train_file", text[0], "--validation_file", text[1]]
    words = sorted({word for row in sentences(16) for word in row["text"].split()})
    llama = save_llama(tmp_path / "llama", words)
    vit = ["--model_name_or_path", "timm/vit_tiny_patch16_224", "--from_scratch", "--image_size", "8"]
    convnet = ["--model_name_or_path", "test_convnext", "--weights", "none", "--image_size", "32"]
    commands = {
        "demo": ["--help"],  # its data and model are of fixed size
        "domainbed": ["--dataset", "rotated_digits", "--held_out", "75", *convnet, "--max_eval_samples", "8"],
        "glue": [*files, "--model_name_or_path", tiny_model_dir],
        "imagenet": ["--dataset_name", "digits", *vit, "--model_args", json.dumps(TINY), "--max_eval_samples", "20"],
        "sft": [*files, "--model_name_or_path", llama, "--bf16", "false", "--gradient_checkpointing", "false"],
        "tabular": ["--data", "breast_cancer", "--num_train_epochs", "1", "--use_cpu", "--output_dir", "out"],
    }  # fmt: skip
    for name in ("domainbed", "glue", "imagenet", "sft"):
        commands[name] += [*SMALL, "--output_dir", "out"]
    commands["domainbed"] += ["--eval_strategy", "steps", "--eval_steps", "1", "--augment", "false"]
    done = subprocess.run(
        [sys.executable, "-c", f"import json\n{RUN_ALL}", json.dumps(paths), json.dumps(commands)],
        cwd=package,
        env={**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in set(RECIPES) - {"demo"}:
        assert {path.name for path in (tmp_path / name).iterdir()} == {f"{name}.py", "out"}
        assert json.loads((tmp_path / name / "out" / "all_results.json").read_text())["seconds"] > 0


@pytest.mark.parametrize(
    "recipe", [demo, domainbed, glue, imagenet, sft, tabular], ids=lambda module: module.__name__
)
def test_options_and_lines_are_few(recipe):
    """Those that all recipes share are not counted."""
    own = [cls for cls in recipe.ARGUMENTS[:-1] if cls is not RunArguments]
    assert sum(len(cls.__dataclass_fields__) for cls in own) <= 20
    assert len(RECIPES[recipe.__name__].read_text().splitlines()) <= 350


@pytest.mark.parametrize("name", RECIPES)
def test_threads_of_a_recipe_sleep_while_they_wait(name, tmp_path):
    """A network on a table took six times as long beside another process while they did not."""
    code = """
import builtins, os, sys
find = builtins.__import__
def watched(name, *rest):
    if name.split(".")[0] in ("torch", "rgd_hf", "numpy"):
        sys.exit(0 if os.environ.get("OMP_WAIT_POLICY") == "PASSIVE" else 1)
    return find(name, *rest)
builtins.__import__ = watched
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run([sys.executable, "-c", code, str(RECIPES[name])], env=environment, cwd=tmp_path)
    assert done.returncode == 0
