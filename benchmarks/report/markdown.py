"""The report of a comparison in Markdown: every word about results in it follows from the numbers."""

from collections.abc import Sequence
from functools import partial

from benchmarks.report.formats import SAME_RUNS, counted, marked, probability, table, verdict
from benchmarks.report.lines import BASELINE, Records
from benchmarks.report.method import how_to_read, method, title
from benchmarks.report.methods import method_title
from benchmarks.report.parts import with_hardest_tenth
from benchmarks.report.plots import plot_data_sets
from benchmarks.report.progress import family, interim, interim_mean, is_partial, not_begun, unfinished
from benchmarks.report.questions import answers
from benchmarks.report.readme_table import readme_table
from benchmarks.report.sections import Pictures, section
from benchmarks.report.summary import Overall, all_verdicts, headline, overall
from rgd_hf.comparison.statistics import FEWEST_FOR_INTERVAL

LISTED = 40


def build_report(records: Records) -> tuple[str, Pictures]:
    """The report and its pictures.

    Returns:
        Markdown, and what draws the PNG files that it looks for in `plots/`, by name.
    """
    records = with_hardest_tenth(records)
    found = overall(records)
    partial_title = " (partial)" if is_partial(records) else ""
    lines = [f"# {title(records)}{partial_title}", "", *_compared(records, found)]
    lines += _unfinished(records)
    pictures: Pictures = {}
    if found:
        over = len(records.datasets) > 1
        lines += [
            "## Summary",
            "",
            _counts(records, found, over),
            "",
            *(_summary(records, found) if over else ()),
            "",
        ]
        by_name = {method.method: method for method in found}
        first = [by_name[name] for name in headline(records) if name in by_name] or found[:2]
        pictures["gains.png"] = partial(plot_data_sets, first, records.datasets)
        lines += ["![Difference to ERM on every data set](plots/gains.png)", ""]
    lines += [how_to_read(records), "", "## Data sets", "", *readme_table(records, found), ""]
    lines += answers(records)
    for dataset in records.datasets:
        of_data, drawn = section(records, dataset)
        lines += of_data
        pictures.update(drawn)
    lines += method(records)
    return "\n".join(lines).rstrip() + "\n", pictures


def _compared(records: Records, found: Sequence[Overall]) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for (dataset, _, _), record in records.final.items():
        names = kinds.setdefault(str(record.get("kind", "data")), [])
        if dataset not in names:
            names.append(dataset)
    listed = "; ".join(
        f"{kind}: {', '.join(sorted(names))}"
        for kind, names in sorted(kinds.items(), key=lambda item: item[0])
    )
    each = [f"and {len(records.tuning)} to tune learning rates"] if records.tuning else []
    if records.searched:
        each.append(f"each of {', '.join(records.searched)} chosen among the draws of a random search")
    tuning = ", ".join(each) or "and no learning rate tuned"
    return [
        f"{counted(len(found), 'method')} against ERM on {counted(len(records.datasets), 'data set')} ({listed}): "
        f"{counted(len(records.final), 'final run')}, {tuning}.",
        "",
    ]


def _unfinished(records: Records) -> list[str]:
    lines: list[str] = []
    waiting = not_begun(records)
    if waiting:
        lines += [f"**Data sets of the study that have no final run yet:** {', '.join(waiting)}.", ""]
    begun = {name: text for name in records.datasets if (text := unfinished(records, name))}
    if begun:
        lines += ["**Data sets of the study that are not finished:**", ""]
        lines += _listed([f"{name}: {text}" for name, text in begun.items()])
    missing = records.missing()
    if missing and not records.plan.datasets:
        lines += [
            f"**This report is partial: {counted(len(missing), 'cell')} missing** (of seeds that were begun):",
            "",
        ]
        lines += _listed([f"`{name}`" for name in missing])
    mixed = records.mixed()
    if mixed:
        lines += [
            "**Runs of different settings are mixed; no comparison is made of them** (run the study again to replace the "
            "older ones):",
            "",
            *_listed([f"`{name}`" for name in mixed]),
        ]
    if records.left_out:
        number = sum(records.left_out.values())
        lines += [
            f"**{counted(number, 'run')} of an earlier version of the study {'is' if number == 1 else 'are'} left out:**",
            "",
            *_listed([f"{name} ({counted(n, 'run')})" for name, n in records.left_out.items()]),
        ]
    if records.failed:
        lines += [f"**{counted(len(records.failed), 'run')} failed:**", ""]
        lines += _listed([f"`{cell}`: {reason[:200]}" for cell, reason in records.failed.items()])
    return lines


def _listed(entries: Sequence[str]) -> list[str]:
    more = [f"- and {len(entries) - LISTED} more"] if len(entries) > LISTED else []
    return [*(f"- {entry}" for entry in entries[:LISTED]), *more, ""]


def _counts(records: Records, found: Sequence[Overall], over_datasets: bool) -> str:
    verdicts, of_model = all_verdicts(found), [method for method in found if method.is_same_model]
    if verdicts:
        by_chance = 0.05 * len(verdicts)
        counts = [counted(verdicts.count(name), name) for name in ("gain", "tie", "loss")]
        text = (
            f"{counted(len(verdicts), 'comparison')} of a method with ERM on a data set: {counts[0]}, {counts[1]} and "
            f"{counts[2]}.{_not_counted(found)} If no method differed from ERM anywhere, about {by_chance:.{1 if by_chance < 2 else 0}f} would be "
            "a gain or a loss by chance (one in twenty)."
        )
        early = sum(
            bool(interim(records, name, estimate, method.method))
            for method in found
            for name in method.counted
            if verdict(estimate := method.by_dataset[name]) is not None
        )
        text += f" Interim, with fewer pairs than planned: {early} of {len(verdicts)}." if early else ""
    else:
        text = (
            f"No method has {FEWEST_FOR_INTERVAL} seeds on any data set, the fewest for an interval over seeds: no "
            "difference on one data set can be told from chance."
        )
    if over_datasets:
        text += (
            f" Methods that differ from ERM over data sets (p below 0.05 after Holm's correction): "
            f"{sum(method.holm < 0.05 for method in of_model) or 'none'} of {len(of_model)}."
        )
        planned = {name for dataset in records.plan.datasets for name in records.plan.seeds(dataset)}
        text += family(planned, [method.method for method in found])
    return text


def _not_counted(found: Sequence[Overall]) -> str:
    """What the counts leave out: other models than the data sets' own, and trainings that are there twice."""
    models = [method_title(method.method) for method in found if not method.is_same_model]
    twice = sum(len(method.by_dataset) - len(method.counted) for method in found if method.is_same_model)
    text = f" Not counted: {', '.join(models)}, another model." if models else ""
    return text + (f" The same runs as another method's are not counted again ({twice})." if twice else "")


def _data_sets(method: Overall) -> str:
    """How many, and on how many of them the runs are those of another method."""
    same = len(method.by_dataset) - len(method.counted) if method.is_same_model else 0
    return f"{len(method.by_dataset)}" + (f" ({same} {SAME_RUNS})" if same else "")


def _summary(records: Records, found: Sequence[Overall]) -> list[str]:
    body = [
        [
            method_title(method.method) + ("" if method.is_same_model else " (another model)"),
            _data_sets(method),
            marked(method.gain) + interim_mean(records, method.by_dataset, (method.method, BASELINE)),
            *(str(method.count(verdict)) for verdict in ("gain", "tie", "loss")),
            probability(method.p),
            probability(method.holm),
        ]
        for method in found
    ]
    header = ["method", "data sets", "mean − ERM (points)", "gains", "ties", "losses", "p", "p (Holm)"]
    return table(header, body)
