"""Tables of a report that look behind a gain: the larger step, and wrong labels."""

from benchmarks.report.formats import counted, marked, number, table, verdict
from benchmarks.report.lines import BASELINE, Records
from benchmarks.report.methods import in_order, method_title
from benchmarks.report.summary import difference, mean_weight, noise_change, noise_pairs

WEIGHTED, NORMALIZED, LARGER_STEP = "kl_tau1", "kl_tau1_normalized", "erm_lr_scaled"


def step_size(records: Records) -> list[str]:
    """Markdown: KL, KL with mean-one weights, and ERM with the learning rate times KL's mean weight.

    Returns:
        Lines; none where no data set has a run of the last two.
    """
    names = [
        name
        for name in records.datasets
        if records.runs(name, WEIGHTED) and {NORMALIZED, LARGER_STEP} & records.methods(name)
    ]
    if not names:
        return []
    rows = []
    over_step, explained = [], []
    for name in names:
        ours, larger = difference(records, name, WEIGHTED), difference(records, name, LARGER_STEP)
        beyond = difference(records, name, WEIGHTED, LARGER_STEP)
        if verdict(beyond) is not None:
            over_step.append(verdict(beyond))
            if verdict(ours) == "gain":
                explained.append(verdict(beyond) != "gain")
        weight = mean_weight(records.runs(name, WEIGHTED))
        rows.append(
            [
                name,
                number(weight),
                marked(ours),
                marked(difference(records, name, NORMALIZED)),
                marked(larger),
                marked(beyond),
            ]
        )
    header = [
        "data",
        "mean weight",
        *(f"{method_title(m)} − ERM" for m in (WEIGHTED, NORMALIZED, LARGER_STEP)),
    ]
    header.append(f"{method_title(WEIGHTED)} − ERM with that step")
    lines = [
        "## Is it only the larger step?",
        "",
        "Weights of KL are at least 1, so the step is larger too. If that alone were the gain, ERM with its learning "
        "rate times the mean weight would gain as much, and mean-one weights nothing. The last column is what "
        "re-weighting adds to ERM with the same mean step, paired by seed.",
        "",
        *table(header, rows),
    ]
    if over_step:
        lines += [
            "",
            f"Against ERM with that step, {method_title(WEIGHTED)} gains on {over_step.count('gain')}, ties on "
            f"{over_step.count('tie')} and loses on {over_step.count('loss')} of {counted(len(over_step), 'data set')}.",
        ]
    if explained:
        lines[-1] += (
            f" Of its {counted(len(explained), 'gain')} over tuned ERM, {sum(explained)} "
            "cannot be told from the larger step."
        )
    return [*lines, ""]


def wrong_labels(records: Records) -> list[str]:
    """Markdown: differences to ERM on data sets of which there is one with wrong training labels too; maybe none."""
    lines: list[str] = []
    for pair in noise_pairs(records):
        both = records.methods(pair.clean) & records.methods(pair.noisy)
        rows = [
            [
                method_title(m),
                marked(difference(records, pair.clean, m)),
                marked(difference(records, pair.noisy, m)),
                marked(noise_change(records, pair, m)),
            ]
            for m in in_order(both - {BASELINE})
        ]
        share = "" if pair.share is None else f" ({100 * pair.share:g} % of the training labels)"
        header = ["method", f"{pair.clean}: − ERM", f"{pair.noisy}: − ERM", "change by the noise"]
        lines += [f"### {pair.clean} and {pair.noisy}{share}", "", *table(header, rows), ""]
    if not lines:
        return []
    return [
        "## Does it outlive wrong labels?",
        "",
        "A high loss may be a wrong label. The same data with clean labels and with a share of the training labels "
        "drawn at random; the last column is the difference to ERM there minus the one here, paired by seed. "
        "Evaluation labels are clean.",
        "",
        *lines,
    ]
