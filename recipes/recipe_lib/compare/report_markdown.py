"""The report of a comparison in Markdown: every word about results in it follows from the numbers."""

from collections.abc import Sequence

from recipe_lib.compare.methods import HEADLINE, in_order, method_title
from recipe_lib.compare.plots import plot_data_sets
from recipe_lib.compare.questions import step_size, wrong_labels
from recipe_lib.compare.readme_table import readme_table
from recipe_lib.compare.records import BASELINE, Records
from recipe_lib.compare.sections import section
from recipe_lib.compare.statistics import FEWEST_FOR_BOOTSTRAP, FEWEST_FOR_INTERVAL, RESAMPLES, smallest_p
from recipe_lib.compare.summary import Overall, all_verdicts, overall
from recipe_lib.compare.tables import counted, marked, number, probability, table

TITLE = "Re-weighted training against tuned ERM"
LISTED = 40

HOW_TO_READ = """\
**How to read it.** Every number is a paired difference: the score of a method minus that of ERM with the same data,
the same seed (so the same initial model and the same batches) and a learning rate tuned in the same way, in points
(hundredths of the score). In brackets is its 95 % interval. A *gain* or *loss* (▲, ▼) is an interval that excludes 0, a
*tie* (=) one that does not: chance may be all there is. An interval over seeds says how the difference varies with the
seed, not with other evaluation rows or other data."""

STATISTICS = f"""\
- **Intervals** of {FEWEST_FOR_BOOTSTRAP} or more differences are expanded percentile bootstrap intervals (Hesterberg,
  The American Statistician 2015; `scipy.stats.bootstrap`, {RESAMPLES} resamples, fixed seed): of few values the plain
  percentile and BCa intervals are too narrow. Of five normal values BCa holds the true mean in 86 % of cases, this one
  in 93 %, of ten in 90 % and 95 %. Three or four differences, which have too few different resamples, get Student's t
  interval; fewer get none.
- **p** is the two-sided Wilcoxon signed-rank test over seeds (`scipy.stats.wilcoxon`, exact for few seeds, zero
  differences by Pratt's rule). It cannot fall below 2 / 2^seeds: {smallest_p(3):.4g} for 3 seeds, {smallest_p(5):.4g} for
  5, {smallest_p(10):.2g} for 10.
- **p (Holm)** is corrected for the methods compared with ERM on the same data set, which are one family; in the
  summary, where the test is over data sets, for the methods of the summary.
- **Over data sets** every data set counts once, by its mean difference. The interval resamples data sets (a simple
  bootstrap: the spread of the means holds the noise of the seeds already). Variants of the same data count as data sets
  of their own, though their results go together; so do all comparisons with the same runs of ERM.
- **Tuning.** Every method has the same grid of learning-rate factors and the same tuning seeds, which are not those of
  the final runs. It is scored on rows held out of the training part (text, images), on the validation split (tables),
  on the training domains' validation splits (domains): never on the rows of the final score.
- **Difficulty.** In the comparison of a seed, the difficulty of a held-out row is its mean ERM loss over the *other*
  seeds, so that ERM's luck with this seed does not decide what is hard. ERM still does the ranking: a method that errs
  on other rows than ERM looks better on hard tenths and worse on easy ones even at the same accuracy. Read all ten
  together.
- **Class frequency.** Classes are ordered by their number of training rows, the most frequent first.
- **Losses and weights.** Training losses are without weights; bands are one standard deviation over seeds. ESS is the
  effective sample size as a fraction of the batch, *clipped* the fraction of losses beyond tau; both are means over
  training and seeds."""

LIMITS = """\
- Small data, small models and short runs: they were chosen for many seeds on a small machine.
- Seeds vary initial models, batches and, for tables, the cut between training and validation; the evaluation rows of a
  data set are fixed."""


def build_report(records: Records) -> tuple[str, dict[str, bytes]]:
    """The report and its pictures.

    Returns:
        Markdown, and PNG files by name, which it looks for in `plots/`.
    """
    found = overall(records)
    lines = [f"# {TITLE}{' (partial)' if records.missing() else ''}", "", *_compared(records, found)]
    lines += _unfinished(records)
    pictures: dict[str, bytes] = {}
    if found:
        lines += ["## Summary", "", _counts(found), "", *_summary(records, found), ""]
    shown = [method for name in HEADLINE for method in found if method.method == name] or found[:1]
    if shown:
        pictures["gains.png"] = plot_data_sets(shown, records.datasets)
        lines += ["![Difference to ERM on every data set](plots/gains.png)", ""]
    lines += [HOW_TO_READ, "", "## Data sets", "", *readme_table(records, found), ""]
    lines += [*step_size(records), *wrong_labels(records)]
    for dataset in records.datasets:
        of_data, drawn = section(records, dataset)
        lines += of_data
        pictures.update(drawn)
    lines += _method(records)
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
    return [
        f"{counted(len(found), 'method')} against ERM on {counted(len(records.datasets), 'data set')} ({listed}): "
        f"{counted(len(records.final), 'final run')}, and {len(records.tuning)} to tune learning rates.",
        "",
    ]


def _unfinished(records: Records) -> list[str]:
    lines: list[str] = []
    missing = records.missing()
    if missing:
        lines += [
            f"**This report is partial: {counted(len(missing), 'cell')} missing** (of seeds that were begun):",
            "",
        ]
        lines += [f"- `{name}`" for name in missing[:LISTED]]
        lines += [f"- and {len(missing) - LISTED} more"] if len(missing) > LISTED else []
        lines.append("")
    mixed = records.mixed()
    if mixed:
        lines += [
            "**Runs of different settings are mixed** (run the study again to replace the older ones):",
            "",
        ]
        lines += [*(f"- `{name}`" for name in mixed[:LISTED]), ""]
    if records.failed:
        lines += [f"**{counted(len(records.failed), 'run')} failed:**", ""]
        lines += [f"- `{cell}`: {reason[:200]}" for cell, reason in list(records.failed.items())[:LISTED]]
        lines += [f"- and {len(records.failed) - LISTED} more"] if len(records.failed) > LISTED else []
        lines.append("")
    return lines


def _counts(found: Sequence[Overall]) -> str:
    verdicts = all_verdicts(found)
    if not verdicts:
        return f"No method has the {FEWEST_FOR_INTERVAL} seeds on a data set that an interval needs: all may be chance."
    by_chance = 0.05 * len(verdicts)
    return (
        f"Of {counted(len(verdicts), 'comparison')} of a method with ERM on a data set, {verdicts.count('gain')} are "
        f"gains, {verdicts.count('tie')} ties and {verdicts.count('loss')} losses. If no method differed from ERM "
        f"anywhere, about {by_chance:.0f} would be gains or losses by chance (one in twenty). "
        f"After Holm's correction, {sum(method.holm < 0.05 for method in found)} of "
        f"{counted(len(found), 'method')} differ from ERM over data sets (p below 0.05)."
    )


def _summary(records: Records, found: Sequence[Overall]) -> list[str]:
    body = [
        [
            method_title(method.method),
            str(len(method.by_dataset)),
            marked(method.gain),
            *(str(method.count(verdict)) for verdict in ("gain", "tie", "loss")),
            probability(method.p),
            probability(method.holm),
        ]
        for method in found
    ]
    header = ["method", "data sets", "mean − ERM (points)", "gains", "ties", "losses", "p", "p (Holm)"]
    return table(header, body)


def _method(records: Records) -> list[str]:
    everything = [*records.final.values(), *records.tuning.values()]
    versions: dict[str, set[str]] = {}
    for record in everything:
        for package, version in (record.get("versions") or {}).items():
            versions.setdefault(package, set()).add(str(version))
    commits = sorted({str(record["commit"]) for record in everything if record.get("commit")})
    cores = sorted({int(record["cores"]) for record in everything if record.get("cores")})
    seconds = sum(float(record.get("seconds") or 0.0) for record in everything)
    memory = [float(record["peak_memory_mb"]) for record in everything if record.get("peak_memory_mb")]
    lines = ["## Method", "", STATISTICS, "", "**Limits**", "", LIMITS, "", "**Runs**", ""]
    names = in_order({name for dataset in records.datasets for name in records.methods(dataset)})
    lines.append(
        "- Methods: " + ", ".join(f"`{name}` ({method_title(name)})" for name in names if name != BASELINE)
    )
    if cores:
        lines.append(f"- Machine: {' or '.join(map(str, cores))} CPU cores")
    if seconds:
        lines.append(f"- Time: {seconds:.0f} seconds over all runs, tuning included")
    if memory:
        lines.append(f"- Peak memory of a run: {number(max(memory), 0)} MB")
    if versions:
        shown = (f"{package} {', '.join(sorted(found))}" for package, found in sorted(versions.items()))
        lines.append(f"- Versions: {'; '.join(shown)}")
    if commits:
        lines.append(f"- Commit: {', '.join(commits)}")
    lines += [
        "- Commands: `python recipes/compare.py recipes/configs/compare.yaml` makes the runs, `make report` makes this "
        "report of their JSON lines alone.",
        "",
    ]
    return lines
