"""The list of hard examples: the training samples that carried the most weight, as JSON, as a page, and in short."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from PIL import Image
from rich.table import Table
from rich.text import Text

from recipe_lib.predictions import PredictionsMixin
from recipe_lib.results import console, write_json
from rgd_hf import HardExamplesMixin

HARD_EXAMPLES = "hard_examples"
SHOWN = 10
THUMBNAIL = 128
QUESTION = "Hard, or mislabelled?"


class InspectedTrainer(HardExamplesMixin, PredictionsMixin):
    """What a recipe's Trainer is, to list hard examples: it records them, and keeps what it predicts."""


@dataclass(frozen=True)
class TrainingSamples:
    """The training samples, as people and as an evaluation look at them.

    Attributes:
        select: a Trainer and indices to a data set of these samples, prepared as the Trainer's evaluation data.
        text: an index to what the sample says, or to the name of its image.
        image: an index to the image (RGB), where samples are images.
        classes: names of the classes, in the order of their numbers; empty for regression.
    """

    select: Callable[[Any, Sequence[int]], Any]
    text: Callable[[int], str]
    classes: Sequence[str]
    image: Callable[[int], Image.Image] | None = None

    def name(self, value: Any) -> Any:
        """A label or prediction as it is shown: a class's name, the names of several, a number."""
        if isinstance(value, np.ndarray):
            return ", ".join(self.classes[int(number)] for number in np.flatnonzero(value)) or "none"
        return self.classes[int(value)] if self.classes else round(float(value), 4)


def list_hard_examples(
    trainer: InspectedTrainer, count: int, samples: TrainingSamples, directory: str | Path
) -> None:
    """Write `hard_examples.json` and `hard_examples.html` into `directory`, and print the first ten.

    Every process has to call it: the final model predicts the `count` samples, and only the main process writes.

    Args:
        trainer: that has trained with `record_examples`.
        count: samples to list.
        samples: the training set.
        directory: of the run.
    """
    rows = hard_rows(trainer, count, samples)
    if not PartialState().is_main_process:
        return
    folder = Path(directory)
    write_json(folder / f"{HARD_EXAMPLES}.json", rows)
    (folder / f"{HARD_EXAMPLES}.html").write_text(render(rows, samples.image), encoding="utf-8")
    console.print(short_table(rows, f"{folder / HARD_EXAMPLES}.html"))


def hard_rows(trainer: InspectedTrainer, count: int, samples: TrainingSamples) -> list[dict[str, Any]]:
    """The hard examples, the heaviest first.

    Returns:
        One dict a sample: `index`, `weight`, `loss`, `seen` (see `rgd_hf.hard_examples.HardExample`), `label`,
        `prediction` and `correct` (not for regression) of the final model, `text`.
    """
    examples = trainer.hard_examples(count)
    compute_metrics = trainer.compute_metrics
    trainer.compute_metrics = None  # so few samples have no meaningful metrics
    chosen = samples.select(trainer, [example.index for example in examples])
    trainer.predict(chosen, metric_key_prefix=HARD_EXAMPLES)
    trainer.compute_metrics = compute_metrics
    rows = []
    for example, predicted in zip(
        examples, trainer.predictions[HARD_EXAMPLES].to_dict("records"), strict=True
    ):
        row = {**asdict(example), "label": samples.name(predicted["label"])}
        row["prediction"] = samples.name(predicted["prediction"])
        if "correct" in predicted:
            row["correct"] = bool(predicted["correct"])
        rows.append({**row, "text": samples.text(example.index)})
    return rows


def short_table(rows: Sequence[Mapping[str, Any]], page: str) -> Table:
    """The first ten rows for the terminal; `page` is where the others are."""
    table = Table(
        title=f"{QUESTION} The heaviest of {len(rows)} training samples in {page}", title_justify="left"
    )
    for name in ("weight", "loss", "seen"):
        table.add_column(name, justify="right")
    for name in ("label", "prediction"):
        table.add_column(name)
    table.add_column("sample", no_wrap=True, overflow="ellipsis")
    for row in rows[:SHOWN]:
        numbers = f"{row['weight']:.3f}", f"{row['loss']:.3f}", str(row["seen"])
        table.add_row(*numbers, *(Text(str(row[name])) for name in ("label", "prediction", "text")))
    return table


def render(rows: Sequence[Mapping[str, Any]], image: Callable[[int], Image.Image] | None) -> str:
    """A page of its own, without anything to load: one table row a sample, with a thumbnail where it is an image."""
    heads = ["", "sample", "label", "prediction", "mean weight", "mean loss", "times seen"]
    body = "\n".join(_render_row(number, row, image) for number, row in enumerate(rows, start=1))
    wrong = sum(not row.get("correct", True) for row in rows)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{QUESTION}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ padding: .35rem .6rem; text-align: left; vertical-align: middle; border-bottom: 1px solid #ddd }}
th {{ position: sticky; top: 0; background: #fff }}
.number {{ text-align: right; font-variant-numeric: tabular-nums }}
.sample {{ overflow-wrap: anywhere }}
.differs {{ color: #b33a00; font-weight: 600 }}
img {{ width: 96px; height: 96px; object-fit: contain; image-rendering: pixelated; background: #eee; margin-right: .6rem;
vertical-align: middle }}
</style></head><body>
<h1>{QUESTION}</h1>
<p>The {len(rows)} training samples that carried the most weight over training (of equal weights, the largest loss
first). The final model predicts another label for {wrong} of them. A label may be wrong where the prediction is
plausible; a sample is hard where the label is.</p>
<table><thead><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr></thead>
<tbody>
{body}
</tbody></table></body></html>
"""


def _render_row(number: int, row: Mapping[str, Any], image: Callable[[int], Image.Image] | None) -> str:
    picture = "" if image is None else f'<img alt="" src="{thumbnail(image(row["index"]))}">'
    differs = "" if row.get("correct", True) else ' class="differs"'
    return (
        f'<tr><td class="number">{number}</td>'
        f'<td class="sample">{picture}{html.escape(row["text"])}</td>'
        f"<td>{html.escape(str(row['label']))}</td><td{differs}>{html.escape(str(row['prediction']))}</td>"
        f'<td class="number">{row["weight"]:.3f}</td><td class="number">{row["loss"]:.3f}</td>'
        f'<td class="number">{row["seen"]}</td></tr>'
    )


def thumbnail(image: Image.Image) -> str:
    """A PNG of at most 128 x 128 pixels as a `data:` address."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
