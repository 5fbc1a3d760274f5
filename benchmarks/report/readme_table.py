"""The table of results in the README: made from the finished runs, put between two marks."""

import re
from collections.abc import Sequence
from pathlib import PurePath

from benchmarks.report.formats import (
    NOTHING,
    SAME_RUNS,
    marked,
    mean_and_spread,
    metric_title,
    table,
    verdict,
)
from benchmarks.report.lines import BASELINE, Records
from benchmarks.report.methods import difference_title, method_title
from benchmarks.report.progress import interim, unfinished
from benchmarks.report.summary import Overall, difference, first_settings, headline, twin
from rgd_hf.scripts.errors import UserError

MODEL_SETTINGS = ("timm_model", "model_name_or_path", "networks", "backbone")
SIZE_SETTINGS = ("max_train_samples", "max_rows")
DEFAULT_MODELS = {"tabular": "mlp", "domainbed": "efficientnet-lite0"}
"""What these recipes train where a study names no model."""


def readme_table(records: Records, found: Sequence[Overall]) -> list[str]:
    """Markdown: one row per data set, with the first two methods of `summary.headline`."""
    columns = headline(records)[:2]
    body = []
    for dataset in records.datasets:
        erm = [record["score"] for record in records.runs(dataset, BASELINE).values()]
        verdicts = [verdict(m.by_dataset[dataset]) for m in found if dataset in m.counted]
        counts = " / ".join(str(verdicts.count(name)) for name in ("gain", "tie", "loss"))
        left = unfinished(records, dataset)
        seeds, planned = len(records.seeds(dataset)), len(records.plan.seeds(dataset).get(BASELINE, ()))
        differences = {method: difference(records, dataset, method) for method in columns}
        body.append(
            [
                dataset,
                model_and_size(records, dataset),
                f"{seeds} of {planned}" if seeds < planned else str(seeds),
                mean_and_spread(erm) if erm else NOTHING,
                *(
                    (SAME_RUNS if twin(records, dataset, method) in columns else marked(d))
                    + interim(records, dataset, d, method)
                    for method, d in differences.items()
                ),
                counts + (" (interim)" if left else "") if any(verdicts) else NOTHING,
            ]
        )
    header = [
        "data",
        "model; training rows",
        "seeds",
        "ERM",
        *(difference_title(m) for m in columns),
    ]
    rows = table([*header, "methods that gain / tie / lose"], body, text_columns=2)
    return [*rows, "", _legend(records, found, "\n".join(rows))]


def _legend(records: Records, found: Sequence[Overall], shown: str) -> str:
    """What the signs of the table mean, which metrics the scores are, and what its last column leaves out."""
    metrics: dict[str, list[str]] = {}
    for dataset in records.datasets:
        names = (record.get("score_name") for record in records.runs(dataset, BASELINE).values())
        metrics.setdefault(metric_title(str(next(names, None) or "score")), []).append(dataset)
    usual = max(metrics, key=lambda name: len(metrics[name]), default="score")
    scores = [
        usual,
        *(f"{', '.join(names)}: {metric}" for metric, names in metrics.items() if metric != usual),
    ]
    signs = [
        "▲ gain, ▼ loss: the 95 % interval excludes 0, not corrected for the number of methods",
        "=: it contains 0",
    ]
    meanings = {
        f" {NOTHING} ": f"{NOTHING}: not run yet{', or on another device than ERM' if records.unpaired else ''}",
        SAME_RUNS: f"*{SAME_RUNS}*: as in the column before",
        "(interim": "*interim*: of fewer methods or seeds than planned",
    }
    signs += [meaning for sign, meaning in meanings.items() if sign in shown]
    left_out = [
        f"{method_title(method.method)}, another model" for method in found if not method.is_same_model
    ]
    left_out += ["runs that are those of another column"] if SAME_RUNS in shown else []
    counts = f" The last column leaves out {' and '.join(left_out)}." if left_out else ""
    return f"{'; '.join(signs)}. Scores × 100, ± standard deviation over seeds: {'; '.join(scores)}.{counts}"


def model_and_size(records: Records, dataset: str) -> str:
    """The model's short name and the number of training rows, as far as the runs say."""
    settings = first_settings(records, dataset)
    parts: list[str] = []
    chosen = (settings[name] for name in MODEL_SETTINGS if settings.get(name))
    model = next(chosen, DEFAULT_MODELS.get(PurePath(str(settings.get("recipe"))).stem))
    if model is not None:
        names = model if isinstance(model, list) else [model]
        parts.append(", ".join(re.split(r"[/:]", str(name))[-1] for name in names))
        sizes = settings.get("model_args")
        if isinstance(sizes, dict):
            parts[-1] += "".join(
                f", {name} {sizes[name]}" for name in ("embed_dim", "depth") if name in sizes
            )
    rows = next(
        (
            sum(counts)
            for r in records.runs(dataset, BASELINE).values()
            if (counts := r.get("train_class_counts"))
        ),
        next((settings[name] for name in SIZE_SETTINGS if settings.get(name)), None),
    )
    if rows is not None:
        parts.append(f"{rows}")
    return "; ".join(parts) or NOTHING


def marks(study: str) -> tuple[str, str]:
    """The lines between which the table of a study goes, which is named by the directory of its results."""
    return f"<!-- {study}:begin -->", f"<!-- {study}:end -->"


def put_into(text: str, lines: Sequence[str], file: str, study: str) -> str:
    """`text` with what stands between the two marks of a study replaced by `lines`.

    Raises:
        UserError: the marks are not there, once each and in order.
    """
    begin, end = marks(study)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(
            f"{file} needs one line {begin} and after it one line {end}: the table goes between them."
        )
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    return f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{after}"
