"""Numbers as a report prints them, and tables of them in Markdown."""

import math
import re
from collections.abc import Sequence

from rgd_hf.comparison.statistics import Estimate

NOTHING = "–"
SAME_RUNS = "the same runs"
# Of a point, and of what is in a unit of its own. An interval that is printed as ending at 0 must not count as one that
# excludes it.
SHOWN_DECIMALS = 2
OWN_UNIT_DECIMALS = 4
RATE = re.compile(r"lr\d")
VERDICTS = {"gain": "▲ gain", "loss": "▼ loss", "tie": "= tie", None: "no interval"}


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> list[str]:
    """Lines of a Markdown table; the first `text_columns` columns are aligned to the left, the others to the right."""
    rule = ["---" if number < text_columns else "---:" for number in range(len(header))]
    lines = [header, rule, *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def signed(value: Estimate, decimals: int = SHOWN_DECIMALS) -> str:
    """`"+0.31 [−0.20, +0.82]"`; a mean of values too few for an interval says how many there are."""
    if value.n == 0:
        return NOTHING
    if not math.isfinite(value.mean):
        return "no difference: a value is not finite"
    mean = points(value.mean, decimals)
    if value.low is None or value.high is None:
        return f"{mean} (no interval: {counted(value.n, 'value')})"
    return f"{mean} [{points(value.low, decimals)}, {points(value.high, decimals)}]"


def verdict(value: Estimate, decimals: int = SHOWN_DECIMALS) -> str | None:
    """`"gain"`, `"loss"` or `"tie"`, by the ends of the interval as they are printed; None without an interval."""
    return value.rounded(decimals).verdict


def marked(value: Estimate, lower_is_better: bool = False, decimals: int = SHOWN_DECIMALS) -> str:
    """As `signed`, after the sign of a gain, a loss or a tie where there is an interval."""
    found = verdict(value, decimals)
    if found is None:
        return signed(value, decimals)
    if lower_is_better:
        found = {"gain": "loss", "loss": "gain"}.get(found, found)
    return f"{VERDICTS[found][0]} {signed(value, decimals)}"


def settings_title(candidate: str) -> str:
    """The name of settings as tables show it: `"lr0.5,tau3"` is `"× 0.5, tau3"`."""
    each = (
        ", ".join(f"× {s[2:]}" if RATE.match(s) else s for s in one.split(","))
        for one in candidate.split("; ")
    )
    return "; ".join(each)


def rate_of(candidate: str) -> tuple[str, str]:
    """The learning rate in the name of settings, and the others: of `"lr0.5,tau3"` `"lr0.5"` and `"tau3"`."""
    parts = candidate.split(",")
    rates = [part for part in parts if RATE.match(part)]
    return ",".join(rates), ",".join(part for part in parts if part not in rates)


def points(value: float, decimals: int = SHOWN_DECIMALS) -> str:
    """With its sign and two decimals; nothing is printed as minus zero."""
    rounded = round(value, decimals) + 0.0
    return f"{rounded:{'+' if rounded else ''}.{decimals}f}".replace("-", "−")


def probability(value: float) -> str:
    """A p value with three decimals."""
    if math.isnan(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def detectable(value: float, decimals: int = SHOWN_DECIMALS) -> str:
    """The smallest difference that could be told from 0, without a sign."""
    return NOTHING if math.isnan(value) else f"± {value:.{decimals}f}"


def number(value: float | None, decimals: int = 2) -> str:
    """A number, or a dash for None."""
    return NOTHING if value is None else f"{value:.{decimals}f}".replace("-", "−")


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation, both times 100."""
    mean = 100 * math.fsum(values) / len(values)
    if len(values) < 2:
        return number(mean)
    variance = math.fsum((100 * value - mean) ** 2 for value in values) / (len(values) - 1)
    return f"{number(mean)} ± {math.sqrt(variance):.2f}"


def metric_kind(name: str) -> str:
    """Without the part of the data that it is of, as in `eval_accuracy` and `test_accuracy`."""
    return re.sub(r"^(eval_|test_|training_domain_)?(validation_)?", "", name)


def metric_title(name: str) -> str:
    """The same in words: of `eval_matthews_correlation` `"Matthews correlation"`."""
    words = metric_kind(name).replace("_", " ")
    return words.replace("matthews", "Matthews").replace("pearson", "Pearson correlation")


def counted(count: int, noun: str) -> str:
    """`"1 seed"`, `"3 seeds"`, `"2 losses"`."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{ending}"


def ranges(seeds: Sequence[int]) -> str:
    """`"0–4"` for consecutive numbers, else `"0, 2, 5"`."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}–{seeds[-1]}"
    return ", ".join(map(str, seeds))
