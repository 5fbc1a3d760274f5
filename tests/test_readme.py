"""What the README says runs, and what it names exists."""

import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import TrainingArguments

from rgd_hf import ReweightingArguments
from rgd_hf.hub import CITATION
from tiny import classification_data, tiny_bert

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def test_python_blocks_run_one_after_the_other(make_args, tmp_path, capsys):
    """They may use a model, arguments and data sets, as the reader's script has them."""
    data = Dataset.from_list(classification_data(8))
    variables = {
        "model": tiny_bert(),
        "args": make_args(TrainingArguments),
        "train_dataset": data,
        "eval_dataset": data,
        "output_dir": str(tmp_path / "out"),
    }
    assert len(blocks("python")) >= 5
    for block in blocks("python"):
        exec(block, variables)
        output = capsys.readouterr().out
        for printed in re.findall(r"print\(.*\)  # (.+)", block):
            assert printed in output
    assert "GLUE MRPC" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    sorted(
        set(
            re.findall(r"\bmake ([a-z][a-z-]*)\b", "\n".join(re.findall(r"`[^`\n]+`", TEXT) + blocks("bash")))
        )
    ),
)
def test_make_targets_exist(name):
    assert re.search(rf"^{name}:", MAKEFILE, re.MULTILINE)


def test_links_and_paths_exist():
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if not link.startswith("http")}
    scripts = set(re.findall(r"\b(?:recipes|benchmarks)/[\w/]+\.py\b", TEXT))
    assert links and scripts
    for path in links | scripts:
        assert (ROOT / path).exists(), path


def test_options_of_the_recipe_commands_exist(capsys):
    pytest.importorskip("timm", reason="the recipes' requirements are not installed")
    section = TEXT.split("## Recipes")[1].split("\n## ")[0]
    commands = re.findall(r"(?:recipes|benchmarks)/(\w+)\.py ((?:[^`\n]|\\\n)*--(?:[^`\n]|\\\n)*)", section)
    assert {name for name, _ in commands} == {"glue", "imagenet", "tabular", "domainbed", "compare", "report"}
    for name, arguments in commands:
        with pytest.raises(SystemExit):
            import_module(name).main(["--help"])
        known = set(re.findall(r"--\w+", capsys.readouterr().out))
        used = set(re.findall(r"--[a-z_]+", arguments))
        assert used and used <= known, name


def test_every_setting_is_in_the_table():
    section = TEXT.split("## Settings")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", section, re.MULTILINE))
    defaults = {
        field.name: "none" if field.default is None else f"`{field.default}`"
        for field in fields(ReweightingArguments)
    }
    assert rows == defaults


def test_citation_is_that_of_the_model_cards():
    assert blocks("bibtex") == [CITATION + "\n"]
