"""The report of a sweep: tables on the terminal, in Markdown and in HTML, and plots."""

import html
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rgd_hf.scripts.domains.comparison import ERM, Comparison, Estimate, Method
from rgd_hf.scripts.domains.plots import plot_accuracies, plot_differences
from rgd_hf.scripts.domains.selection import RULES
from rgd_hf.scripts.results import console

NOTE = (
    "Accuracy in percent on the `in` split of the held-out environment; mean ± standard error over trials (n - 1 in "
    "the variance). `worst` is the lowest environment of each trial, ECE the calibration error with 15 bins, both "
    "averaged over trials. Differences are paired: the same trial has the same splits and batches for every method; "
    "in brackets their 95 % interval (Student's t over trials)."
)
SINGLE_TRIAL = "With one trial there is no standard error and no interval: differences may be chance."
Rows = list[list[str]]
WIDTH_OF_FILES = 240


def print_tables(comparison: Comparison, rules: Sequence[str]) -> None:
    """Print the tables of the finished runs."""
    # A file or a pipe has no width of its own; that of a usual terminal would break the numbers there.
    wide = console if console.is_terminal else Console(width=WIDTH_OF_FILES)
    for rule in rules:
        header, rows = accuracy_table(comparison, rule)
        table = Table(title=f"{RULES[rule][0]}{_progress(comparison)}", title_justify="left")
        for number, name in enumerate(header):
            table.add_column(name, justify="right" if number else "left")
        for row in rows:
            table.add_row(*row)
        wide.print(table)


def accuracy_table(comparison: Comparison, rule: str) -> tuple[list[str], Rows]:
    """Header and rows: method, every environment, average, worst, ECE, differences to ERM and to the same algorithm."""
    methods = comparison.methods
    # For ERM itself the difference to the same algorithm is that to ERM.
    to_its_own = any(
        m.algorithm != "erm" and m.reweighting != "none" and Method(m.algorithm, "none") in methods
        for m in methods
    )
    header = ["method", *comparison.held_out, "average", "worst", "ECE"]
    header += ["difference to ERM"] if ERM in methods and len(methods) > 1 else []
    header += ["difference to the same without RGD"] if to_its_own else []
    rows = []
    for method in methods:
        cells = comparison.row(rule, method)
        row = [method.title, *(_cell(cells[name]) for name in comparison.held_out)]
        row += [_cell(cells[name]) for name in ("average", "worst", "ece")]
        if "difference to ERM" in header:
            row.append("" if method == ERM else _signed(comparison.difference(rule, method, ERM)))
        if to_its_own:
            plain = Method(method.algorithm, "none")
            row.append("" if method == plain else _signed(comparison.difference(rule, method, plain)))
        rows.append(row)
    return header, rows


def write_report(comparison: Comparison, rules: Sequence[str], directory: Path, settings: str) -> Path:
    """Write `report.md`, `report.html` and the plots; the path of the Markdown file.

    Args:
        comparison: the finished runs.
        rules: selection rules to report.
        directory: where to write.
        settings: of the runs, as text.
    """
    directory.mkdir(parents=True, exist_ok=True)
    markdown, page = (
        [f"# Domain generalization{_progress(comparison)}", "", NOTE],
        [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Domain generalization</title><style>",
            "body{font-family:sans-serif;max-width:75em;margin:2em auto}td,th{padding:.3em .8em;text-align:right}",
            "td:first-child,th:first-child{text-align:left}tr{border-bottom:1px solid #ddd}table{border-collapse:collapse}",
            f"img{{max-width:100%}}</style></head><body><h1>Domain generalization{_progress(comparison)}</h1>",
            f"<p>{html.escape(NOTE)}</p>",
        ],
    )
    if comparison.trials < 2:
        markdown += ["", SINGLE_TRIAL]
        page.append(f"<p>{html.escape(SINGLE_TRIAL)}</p>")
    for rule in rules:
        header, rows = accuracy_table(comparison, rule)
        images = [plot_accuracies(comparison, rule, directory), plot_differences(comparison, rule, directory)]
        names = [path.name for path in images if path is not None]
        markdown += ["", f"## {RULES[rule][0]}", "", *_markdown_table(header, rows)]
        markdown += [line for name in names for line in ("", f"![{RULES[rule][0]}]({name})")]
        page += [f"<h2>{html.escape(RULES[rule][0])}</h2>", _html_table(header, rows)]
        page += [f"<p><img src='{name}' alt='{html.escape(RULES[rule][0])}'></p>" for name in names]
    markdown += ["", "## Settings", "", "```json", settings, "```", ""]
    page.append(f"<h2>Settings</h2><pre>{html.escape(settings)}</pre></body></html>\n")
    path = directory / "report.md"
    path.write_text("\n".join(markdown), encoding="utf-8")
    (directory / "report.html").write_text("\n".join(page), encoding="utf-8")
    return path


def _progress(comparison: Comparison) -> str:
    done = len(comparison.runs)
    return "" if done == comparison.planned else f" (partial: {done} of {comparison.planned} runs)"


def _cell(value: Estimate) -> str:
    if value.trials == 0:
        return "–"
    return f"{value.mean:.1f}" if value.trials == 1 else f"{value.mean:.1f} ± {value.error:.1f}"


def _signed(value: Estimate) -> str:
    if value.trials == 0:
        return "–"
    interval = value.interval()
    return f"{value.mean:+.1f}" + (f" [{interval[0]:+.1f}, {interval[1]:+.1f}]" if interval else "")


def _markdown_table(header: list[str], rows: Rows) -> list[str]:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _html_table(header: list[str], rows: Rows) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
