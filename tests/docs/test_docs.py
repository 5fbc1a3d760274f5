"""What README and documentation say runs, and what they name exists."""

import re
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

import rgd_hf
from docs.readers_script import variables
from rgd_hf import ReweightingArguments, contrib
from rgd_hf.weightings.divergence import CITATION

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    page.name: page
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
}
TEXTS = {name: page.read_text(encoding="utf-8") for name, page in PAGES.items()}
# Pages whose blocks have tests of their own.
TESTED_ELSEWHERE = ("extend.md", "subclasses.md")
each_page = pytest.mark.parametrize("name", PAGES)

pytestmark = pytest.mark.filterwarnings("ignore")


def blocks(text: str, language: str) -> list[str]:
    """Its code blocks, in tabs too."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [dedent(code) for _, code in found]


def sections(text: str) -> list[tuple[str, list[str]]]:
    """The headings with the Python blocks below each."""
    parts = re.split(r"^(?=#{1,3} )", text, flags=re.MULTILINE)
    return [
        (part.splitlines()[0].lstrip("# "), blocks(part, "python")) for part in parts if "```python" in part
    ]


@pytest.mark.parametrize(
    ("heading", "code"),
    [
        pytest.param(heading, code, id=f"{name.removesuffix('.md')}-{heading}")
        for name, text in TEXTS.items()
        if name not in TESTED_ELSEWHERE
        for heading, code in sections(text)
    ],
)
def test_python_blocks_run(heading, code, make_args, tmp_path, capsys, monkeypatch):
    """Each block alone, in a script that has what the text takes for granted; what it says it prints, it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script.py"])
    for block in code:
        exec(block, variables(heading, make_args, tmp_path))
        output = capsys.readouterr().out
        for printed in re.findall(r"print\(.*\)  # (.+)", block):
            assert printed in output


def test_every_public_name_is_in_the_reference():
    documented = re.findall(r"^::: rgd_hf\.(?:\w+\.)*(\w+)$", TEXTS["api.md"], re.MULTILINE)
    assert set(rgd_hf.__all__) | set(contrib.__all__) <= set(documented)


def anchors(text: str) -> set[str]:
    """The ids that the site gives to headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-") for heading in headings
    }


@each_page
def test_links_and_paths_exist(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (PAGES[name].parent / path).resolve() if path else PAGES[name]
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target
    for path in re.findall(
        r"\b(?:recipes|benchmarks|rgd_hf|docs|tests)/[\w/]+\.(?:py|md|yaml)\b", TEXTS[name]
    ):
        assert (ROOT / path).exists(), path


def test_every_page_is_in_the_navigation():
    listed = re.findall(r'"(\w+\.md)"', (ROOT / "zensical.toml").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def commands() -> dict[str, set[str]]:
    """The options that some page gives to a script, by the path of the script."""
    found: dict[str, set[str]] = {}
    for text in TEXTS.values():
        for block in blocks(text, "bash"):
            for path, rest in re.findall(r"((?:recipes|benchmarks)/\w+\.py)((?:[^\n\\]|\\\n)*)", block):
                found.setdefault(path, set()).update(re.findall(r"--[a-z_]+", rest))
    return {path: options for path, options in found.items() if options}


@pytest.mark.parametrize(("path", "options"), sorted(commands().items()))
def test_options_in_commands_exist(path, options, capsys):
    pytest.importorskip("timm", reason="the recipes' requirements are not installed")
    with pytest.raises(SystemExit):
        import_module(Path(path).stem).main(["--help"])
    assert options <= set(re.findall(r"--[a-z_]+", capsys.readouterr().out))


@each_page
def test_make_targets_exist(name):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"`[^`\n]+`", TEXTS[name]) + blocks(TEXTS[name], "bash"))
    for target in re.findall(r"\bmake ([a-z][a-z-]*)\b", code):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_setting_is_in_the_table():
    section = TEXTS["settings.md"].split("## All settings")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", section, re.MULTILINE))
    defaults = {
        field.name: "none" if field.default is None else f"`{field.default}`"
        for field in fields(ReweightingArguments)
    }
    assert rows == defaults


def test_the_citation_is_that_of_the_model_cards():
    assert blocks(TEXTS["README.md"], "bibtex") == [CITATION + "\n"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["preferred-citation"]
    for field in (cited["title"], cited["journal"], str(cited["year"]), cited["url"]):
        assert field in CITATION
    for author in cited["authors"]:
        assert f"{author['family-names']}, {author['given-names']}" in CITATION


def test_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 150


def test_the_version_is_the_same_everywhere():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'^version = "(.+)"$', project, re.MULTILINE) == [rgd_hf.__version__]
    assert (
        yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == rgd_hf.__version__
    )
    # Its entry, or that of the release that the unreleased changes are to become.
    entries = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert rgd_hf.__version__ in entries[1]
