"""What README and documentation say runs, and what they name exists."""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml

import rgd_hf
from docs.readers_script import variables
from rgd_hf import ReweightingArguments, contrib, hub, observers, weightings
from rgd_hf.items import Items
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
    """Its code blocks."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


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
    assert sys.argv == ["script.py"], "a reader's command line"


DOCUMENTED = re.findall(r"^::: (rgd_hf[\w.]+)$", TEXTS["api.md"], re.MULTILINE)


@pytest.mark.parametrize("module", [rgd_hf, contrib, hub, observers, weightings], ids=lambda m: m.__name__)
def test_every_public_name_is_in_the_reference(module):
    assert {f"{module.__name__}.{name}" for name in module.__all__} <= set(DOCUMENTED)


def names_used(text: str) -> Iterator[str]:
    """What the code blocks import from the package, and what the text calls by its full name."""
    for block in blocks(text, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rgd_hf"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
    yield from re.findall(r"`(rgd_hf(?:\.\w+)+)", text)


@each_page
def test_what_readers_are_told_to_use_is_in_the_reference(name):
    """Or belongs to the package that the reference makes an exception of."""
    exception = "rgd_hf.scripts"
    assert f"`{exception}`" in TEXTS["api.md"].split("##")[0]
    for used in names_used(TEXTS[name]):
        known = used in DOCUMENTED or any(one.startswith(f"{used}.") for one in DOCUMENTED)
        assert known or f"{used}.".startswith(f"{exception}."), used


@each_page
def test_a_page_reads_well_without_the_site(name):
    """Code hosts know no tabs, admonitions or fences below them; the reference alone is made by the site."""
    assert not re.search(r"^(===|!!!|\?\?\?) |^ +```", TEXTS[name], re.MULTILINE)
    assert name == "api.md" or ":::" not in TEXTS[name]


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


def test_the_page_says_where_tau_has_another_default():
    pytest.importorskip("timm", reason="the recipes' requirements are not installed")
    said = re.findall(r"`--tau` is ([\d.]+) by default, (.+?)\.$", TEXTS["recipes.md"], re.MULTILINE)[0]
    assert float(said[0]) == ReweightingArguments().tau
    defaults = {path.name: import_module(path.stem).DEFAULTS for path in (ROOT / "recipes").glob("*.py")}
    others = {name: own["tau"] for name, own in defaults.items() if "tau" in own}
    assert others == {name: float(tau) for tau, name in re.findall(r"([\d.]+) in `(\w+\.py)`", said[1])}


FORMULAS = dict(
    re.findall(r"^\| `(\w+)`(?: \(default\))? \| (.+?) \|", TEXTS["how_it_works.md"], re.MULTILINE)
)


@pytest.mark.parametrize("name", weightings.WEIGHTINGS)
def test_the_table_has_the_weights_of_each_rule(name):
    """Its formula gives them, up to the scale where it says that their mean is one."""
    losses, groups = torch.tensor([0.1, 0.7, 0.4, 2.5]), torch.tensor([0, 0, 0, 1])
    rule = weightings.WEIGHTINGS[name](**{"num_groups": 2} if name == "group_dro" else {})
    scale = 2.0
    rule.update(torch.tensor([len(losses) * scale, len(losses)]))
    found = rule.weights(Items(losses, torch.ones(4), {"group": groups}))
    settings = rule.settings()
    tau = settings.get("tau", 1.0)
    symbols = {
        "loss": losses, "scale": scale, "z": losses.clamp(max=tau) / (tau + 1), "p": torch.exp(-losses),
        # A target_ess has none of its own, but finds one.
        "temperature": (losses[3] - losses[1]) / (found[3] / found[1]).log(),
        "h": 2 * (losses - losses.min()) / (losses.max() - losses.min()) - 1,
        "q_g": 0.5, "N": 4, "N_g": torch.tensor([3, 3, 3, 1]),
        **settings, **{option: settings[own] for own, option in rule.options.items()},
    }  # fmt: skip
    formula = re.findall(r"`(.+?)`", FORMULAS[name])[0]
    functions = {"exp": torch.exp, "min": lambda values, most: values.clamp(max=most)}
    expected = eval(formula, functions, symbols) * torch.ones(4)
    if name == "cvar":
        expected = expected.where(losses > losses.median(), 0.0)
    if "mean 1" in FORMULAS[name]:
        expected = expected / expected.mean()
    torch.testing.assert_close(found, expected)


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
