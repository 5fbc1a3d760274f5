"""The report of a study: REPORT.md and plots, with `--html` also REPORT.html, made from the JSON lines of its runs and its study.json.

    python -m benchmarks.report
    python -m benchmarks.report --results_dir benchmarks/results/compare --readme docs/evidence.md
    python -m benchmarks.report --readme README.md
    python -m benchmarks.report --readme README.md --check

The same files give the same report, byte for byte. A comparison that is not finished gives a report of what there is,
which says what is missing.
"""

from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.report.html_page import html_page
from benchmarks.report.lines import read_records
from benchmarks.report.markdown import build_report, title
from benchmarks.report.readme_table import marks, put_into, readme_table
from benchmarks.report.summary import overall
from rgd_hf.scripts.cli import parse_args, run_recipe
from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.messages import say

USAGE = "python -m benchmarks.report --option value ..."
EPILOG = "Words: a cell is one training of a study, with its name; a line is its record in runs*.jsonl."
DEFAULT_DIRECTORY = "benchmarks/results/evidence"


@dataclass
class ReportArguments:
    """Report."""

    results_dir: str = field(
        default=DEFAULT_DIRECTORY,
        metadata={"help": "Directory with the lines (runs*.jsonl) of benchmarks.study."},
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Directory for REPORT.md and plots/; by default --results_dir."},
    )
    html: bool = field(
        default=False, metadata={"help": "Also write REPORT.html, a single self-contained page."}
    )
    readme: str | None = field(
        default=None,
        metadata={
            "help": f"Markdown file to insert the table of results into, between the lines {' and '.join(marks('NAME'))}, with the "
            "name of the results' directory."
        },
    )
    check: bool = field(
        default=False,
        metadata={
            "help": "Write nothing; fail if REPORT.md, or the table in --readme, does not match the lines. Plots are not "
            "compared: they vary with the version of matplotlib."
        },
    )


def main(argv: list[str] | None = None) -> None:
    """Make or check the report that the command line asks for.

    Raises:
        UserError: no runs, no marks in the README, or with `--check` a report that is not theirs.
    """
    description = __doc__.split("\n\n")[0]
    (args,) = parse_args([ReportArguments], argv, description=description, usage=USAGE, epilog=EPILOG)
    records = read_records(Path(args.results_dir))
    directory = Path(args.output_dir or args.results_dir)
    texts = {}
    if args.readme:
        readme = Path(args.readme)
        if not readme.is_file():
            raise UserError(f"there is no file {args.readme!r} to put the table into.")
        text = readme.read_text(encoding="utf-8")
        texts[readme] = put_into(
            text, readme_table(records, overall(records)), args.readme, Path(args.results_dir).resolve().name
        )
    markdown, pictures = build_report(records)
    texts[directory / "REPORT.md"] = markdown
    if args.check:
        stale = [path for path, text in texts.items() if not _holds(path, text)]
        if stale:
            raise UserError(
                f"{listed(stale)} is not what the runs give: run the same command without --check."
            )
        say("Up to date.")
        return
    drawn = {name: draw() for name, draw in pictures.items()}
    if args.html:
        texts[directory / "REPORT.html"] = html_page(markdown, drawn, title(records))
    try:
        (directory / "plots").mkdir(parents=True, exist_ok=True)
        for name, content in drawn.items():
            (directory / "plots" / name).write_bytes(content)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename!r} ({error.strerror}): give another --output_dir."
        ) from error
    say(f"Wrote {', '.join(map(str, texts))} and {len(pictures)} plots.")


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    run_recipe(main)
