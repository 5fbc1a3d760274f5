"""How much of what a study's file plans is there; all words are empty where there is no file."""

from collections.abc import Collection, Iterable, Mapping

from benchmarks.report.formats import counted
from benchmarks.report.lines import BASELINE, Records
from benchmarks.report.methods import in_order
from rgd_hf.comparison.statistics import Estimate


def not_begun(records: Records) -> list[str]:
    """Data sets of the study without a final run."""
    return [name for name in records.study.get("datasets", ()) if name not in records.datasets]


def unfinished(records: Records, dataset: str) -> str:
    """`"5 of 10 seeds; no final run yet: ..."` of a data set; empty where all planned final runs are there."""
    planned = records.plan.seeds(dataset)
    done = {name: len(records.runs(dataset, name)) for name in in_order(set(planned))}
    begun = {name: number for name, number in done.items() if number}
    groups: dict[str, list[str]] = {}
    for name, number in begun.items():
        if number < len(planned[name]):
            groups.setdefault(f"{number} of {len(planned[name])} seeds", []).append(f"`{name}`")
    parts = [
        share if len(names) == len(begun) else f"{share} of {', '.join(names)}"
        for share, names in groups.items()
    ]
    waiting = [f"`{name}`" for name, number in done.items() if not number]
    return "; ".join([*parts, *([f"no final run yet: {', '.join(waiting)}"] if waiting else [])])


def is_partial(records: Records) -> bool:
    """Whether anything that was planned, or that other lines lead to expect, is not there."""
    return bool(
        records.missing() or not_begun(records) or any(unfinished(records, name) for name in records.datasets)
    )


def interim(records: Records, dataset: str, found: Estimate, method: str, baseline: str = BASELINE) -> str:
    """What stands behind a comparison with fewer pairs than planned."""
    planned = records.plan.seeds(dataset)
    pairs = set(planned.get(method, ())) & set(planned.get(baseline, ()))
    return f" (interim, {found.n} of {len(pairs)})" if 0 < found.n < len(pairs) else ""


def interim_mean(
    records: Records,
    by_dataset: Mapping[str, Estimate],
    methods: tuple[str, str],
    datasets: Iterable[str] = (),
) -> str:
    """What stands behind a mean over fewer data sets than planned, or over interim comparisons.

    Args:
        records: all.
        by_dataset: the comparisons that the mean is of.
        methods: the two that are compared.
        datasets: those that were asked for; all by default.
    """
    planned = [
        name for name in datasets or records.plan.datasets if set(methods) <= set(records.plan.seeds(name))
    ]
    if len(by_dataset) < len(planned):
        return f" (interim, {len(by_dataset)} of {len(planned)})"
    each = (interim(records, name, found, *methods) for name, found in by_dataset.items())
    return " (interim)" if any(each) else ""


def family(planned: Collection[str], compared: Collection[str]) -> str:
    """A sentence where Holm's correction does not have all methods that the study compares with ERM."""
    waiting = set(planned) - set(compared) - {BASELINE}
    if not waiting:
        return ""
    return f" Holm's family is incomplete: {counted(len(waiting), 'method')} of the study cannot be compared with ERM yet."
