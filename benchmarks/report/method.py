"""How a report is to be read, what was computed and how, and the runs behind it."""

import statistics
from collections.abc import Collection, Sequence

from benchmarks.report.choice import in_order as in_order_of_size
from benchmarks.report.formats import counted, number
from benchmarks.report.lines import BASELINE, METHOD_OPTIONS, Record, Records
from benchmarks.report.methods import in_order, method_title
from benchmarks.run_file import duration

READING = """\
**How to read it.** Every number is a paired difference: the score of a method minus that of ERM with the same data,
the same seed (so, of a network, the same initial model and the same batches) and {rate}, in points
(hundredths of the score). In brackets is its 95 % interval. A *gain* or *loss* (▲, ▼) is an interval that excludes 0, a
*tie* (=) one that does not: chance may be all there is. An interval over seeds says how the difference varies with the
seed, not with other evaluation rows or other data."""

STATISTICS = """\
- **Intervals** are Student's t intervals of paired differences; fewer than two differences have none. They take the
  differences of seeds to be normal, and are then exact for any number of them.
- **Detectable** is the smallest true difference that so many seeds of such a spread would show in four of five cases: a tie
  says nothing about a smaller one.
- **p** is the two-sided paired t test over seeds, below 0.05 where the interval excludes 0. **p (Holm)** is corrected for the
  methods compared with ERM on the same data set, which are one family, each training once; in the summary, where the test is over data sets,
  for the methods of the summary.
- **Over data sets** every data set counts once, by its mean difference; the interval is over data sets. Variants of the same
  data count as data sets of their own, though their results go together; so do all comparisons with the same runs of ERM."""

TUNED = """\
- **Tuning.** Every method has the same learning rates to choose from, and the same tuning seeds, which are not those of
  the final runs. It is scored on rows held out of the training part (text, images), on the validation split (tables),
  on the training domains' validation splits (domains): never on the rows of the final score.{together} The search was made
  once: intervals are over the seeds of the final runs, and do not say what another search would have chosen."""
TOGETHER = """ Except on
  {datasets}: one choice was made there for all held-out domains, by runs most of which had trained on the domain that another
  one held out; a study with `parts` chooses for each by its own runs."""
SEARCHED = """\
- **Random search{where}.** Methods share the draws of the settings that they have in common, anew for every seed; for each part, where there
  are parts, a final run is the draw with the best score on validation rows: never on the rows of the final score. Its
  intervals cover what the draws vary with the seed."""
UNTUNED = """\
- **Tuning.** None: every method has the learning rate of ERM, which may suit one better than another."""

DETAILS = """\
- **Difficulty.** In the comparison of a seed, the difficulty of a held-out row is its mean ERM loss over the *other*
  seeds, so that ERM's luck with this seed does not decide what is hard. ERM still does the ranking: a method that errs
  on other rows than ERM looks better on hard tenths and worse on easy ones even at the same accuracy. Read all ten
  together. Where seeds are judged by rows of their own (domains), a row is ranked by the seeds that have it; without at
  least half of the rows ranked there are no tenths.
- **Class frequency.** Classes are ordered by their number of training rows, the most frequent first.
- **Losses and weights.** Training losses are without weights; bands are one standard deviation over seeds. ESS is the
  effective sample size as a fraction of the batch, *clipped* the fraction of losses beyond tau; both are means over
  training and seeds. Weights are logged before they are normalized: those of *mean-one weights* have the mean of their rule."""


SEEDS = """\
- Seeds vary initial models and batches; of tables also the cut between training and validation rows and, where labels are
  made wrong, which; of domains the cut of every domain. All other evaluation rows are the same for all seeds."""


def title(records: Records) -> str:
    """Of the report."""
    return f"Re-weighted training against {'tuned ' if records.tuning or records.searched else ''}ERM"


def how_to_read(records: Records) -> str:
    """What the numbers of tables and plots are."""
    tuned = {dataset for dataset, *_ in records.tuning}
    chosen = "settings chosen by the same random search"
    rate = (
        "a learning rate tuned in the same way"
        if tuned
        else chosen
        if records.searched
        else "the same learning rate"
    )
    if tuned and records.searched:
        rate += f" (on {', '.join(records.searched)} {chosen})"
    untuned = [name for name in records.datasets if name not in {*tuned, *records.searched}]
    if (tuned or records.searched) and untuned:
        rate += f" (on {', '.join(untuned)} the same one)"
    return READING.format(rate=rate)


def _tuning(records: Records) -> str:
    if not records.tuning and not records.searched:
        return UNTUNED
    where = f" on {', '.join(records.searched)}" if len(records.searched) < len(records.datasets) else ""
    searched = [SEARCHED.format(where=where)] if records.searched else []
    if not records.tuning:
        return searched[0]
    together = {
        dataset
        for (dataset, *_), run in records.final.items()
        if run.get("kind") == "domains" and "by_part" not in run and not run.get("draws")
    }
    tuned = TUNED.format(together=TOGETHER.format(datasets=", ".join(sorted(together))) if together else "")
    return "\n".join([tuned, *searched])


def _options(records: Records) -> list[str]:
    """A line per method: its name, how the report calls it, its settings, and the values tried of those that are tuned."""
    lines = []
    for name in in_order({name for _, name, _ in records.final} - {BASELINE}):
        runs = next(found for data in records.datasets if (found := records.runs(data, name)))
        settings = runs[min(runs)].get("settings", {})
        names = runs[min(runs)].get("method_options", METHOD_OPTIONS)
        tried = _tried(records, name, names)
        own = ", ".join(
            f"{key}: {settings[key]}" for key in names if settings.get(key) is not None and key not in tried
        )
        parts = [f"`{own}`"] if own else []
        tuned = ", ".join(f"`{key}` (values tried: {', '.join(values)})" for key, values in tried.items())
        parts += [f"tuned: {tuned}"] if tuned else []
        lines.append(f"  - `{name}` ({method_title(name)}){': ' if parts else ''}{'; '.join(parts)}")
    return ["- Methods:", *lines] if lines else []


def _tried(records: Records, method: str, names: Collection[str]) -> dict[str, list[str]]:
    """Those of a method's own options that tuning chose, with the values that its runs tried on any data set."""
    runs = [record for key, record in records.tuning.items() if key[1] == method]
    found = {}
    for name in names:
        values = [value for run in runs if (value := run.get("settings", {}).get(name)) is not None]
        shown = {f"{value:g}" if isinstance(value, float) else str(value) for value in values}
        if len(shown) > 1:
            found[name] = in_order_of_size(shown)
    return found


def _all(everything: Sequence[Record], name: str) -> list[str]:
    """Where runs were made, each place once; those of several parts may have been made in several."""
    found = (record.get(f"{name}s") or [record.get(name)] for record in everything)
    return sorted({str(value) for values in found for value in values if value})


def _processors(everything: Sequence[Record]) -> str:
    """Those of all runs, and of how many it is not known."""
    known = _all(everything, "processor")
    without = sum(not record.get("processor") for record in everything)
    lacking = [f"not recorded for {counted(without, 'run')}"] if without else []
    return f"processor{'s' if len(known) > 1 else ''}: {'; '.join([*known, *lacking])}"


def different(records: Records, dataset: str, compared: Collection[str], name: str) -> str:
    """Of how many pairs with ERM the two runs have another processor or commit: last bits may differ by it, too."""
    groups: dict[str, list[str]] = {}
    for other in compared:
        pairs = records.pairs(dataset, other).values()
        number = sum(one.get(name) != erm.get(name) for one, erm in pairs)
        if number:
            groups.setdefault(f"{number} of {len(pairs)}", []).append(method_title(other))
    each = "; ".join(f"{share} ({'; '.join(names)})" for share, names in groups.items())
    return f" Pairs with ERM of different {name}s: {each}." if each else ""


def method(records: Records) -> list[str]:
    """Markdown: what was computed and how, and of which runs."""
    everything = [*records.final.values(), *records.tuning.values()]
    versions: dict[str, set[str]] = {}
    for record in everything:
        for package, version in (record.get("versions") or {}).items():
            versions.setdefault(package, set()).add(str(version))
    commits = _all(everything, "commit")
    cores = sorted({int(record["cores"]) for record in everything if record.get("cores")})
    seconds = [float(record["seconds"]) for record in records.final.values() if record.get("seconds")]
    total = sum(float(record.get("seconds") or 0.0) for record in everything)
    memory = [float(record["peak_memory_mb"]) for record in everything if record.get("peak_memory_mb")]
    lines = ["## Method", "", STATISTICS, _tuning(records), DETAILS, "", "**Limits**", "", SEEDS]
    if seconds:
        typical, longest = max(1.0, statistics.median(seconds)), max(1.0, *seconds)
        lines.append(
            f"- A final run took {duration(typical)} in the median and {duration(longest)} at most: what holds for trainings of "
            "this size need not hold for larger data and models."
        )
    lines += ["", "**Runs**", "", *_options(records)]
    devices = _all(everything, "device")
    if devices:
        unpaired = (
            f"; not paired with ERM, which had another one: {counted(records.unpaired, 'run')}"
            if records.unpaired
            else ""
        )
        lines.append(f"- Device{'s' if len(devices) > 1 else ''}: {'; '.join(devices)}{unpaired}")
    if cores:
        lines.append(f"- Machine: {' or '.join(map(str, cores))} CPU cores; {_processors(everything)}")
    if total:
        lines.append(f"- Time: {total:.0f} seconds over all runs, tuning included")
    if memory:
        lines.append(f"- Peak memory of a run: {number(max(memory), 0)} MB")
    if versions:
        shown = (f"{package} {', '.join(sorted(found))}" for package, found in sorted(versions.items()))
        lines.append(f"- Versions: {'; '.join(shown)}")
    if commits:
        lines.append(f"- Commit: {', '.join(commits)}")
    lines += [
        "- Commands: `python -m benchmarks.study STUDY.yaml --output_dir DIRECTORY` makes the runs, `python -m benchmarks.report "
        "--results_dir DIRECTORY` makes this report of their JSON lines, each of which holds its options, and of the study's file.",
        "",
    ]
    return lines
