"""The list of hard examples: the training samples that carried the most weight, as JSON, as a page, and in short."""

import base64
import html
import io
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from PIL import Image
from rich.table import Table
from rich.text import Text

from rgd_hf.json_lines import write_json
from rgd_hf.observers import HardExample, HardExamples
from rgd_hf.scripts.messages import console
from rgd_hf.scripts.training.predictions import PredictionsMixin

HARD_EXAMPLES = "hard_examples"
SHOWN = 10
THUMBNAIL = 128
QUESTION = "Hard, or mislabelled?"

Columns = Sequence[tuple[str, Hashable]]
"""Heads of columns, each with the key of the rows that it shows; `text` is the sample itself."""

COLUMNS: Columns = (
    ("sample", "text"),
    ("label", "label"),
    ("prediction", "prediction"),
    ("mean weight", "weight"),
    ("mean loss", "loss"),
    ("times seen", "seen"),
)
SHORT_COLUMNS: Columns = (
    ("weight", "weight"),
    ("loss", "loss"),
    ("seen", "seen"),
    ("label", "label"),
    ("prediction", "prediction"),
    ("sample", "text"),
)
NUMBERS: dict[Hashable, str] = {"index": "d", "weight": ".3f", "loss": ".3f", "seen": "d"}
"""How the numbers among them are written."""


@dataclass(frozen=True)
class TrainingSamples:
    """The training samples, as people and as an evaluation look at them.

    Attributes:
        select: a Trainer and indices to a data set of these samples, prepared as the Trainer's evaluation data.
        text: an index to what the sample says, or to the name of its image.
        row: an index to where the sample is in the data as given, whatever was cut or held out since: `index`, its row from 0,
            and what else names the place.
        image: an index to the image (RGB), where samples are images.
        classes: names of the classes, in the order of their numbers; empty for regression.
    """

    select: Callable[[Any, Sequence[int]], Any]
    text: Callable[[int], str]
    classes: Sequence[str]
    row: Callable[[int], Mapping[str, Any]]
    image: Callable[[int], Image.Image] | None = None

    def name(self, value: Any) -> Any:
        """A label or prediction as it is shown: a class's name, the names of several, a number."""
        if isinstance(value, np.ndarray):
            return ", ".join(self.classes[int(number)] for number in np.flatnonzero(value)) or "none"
        return self.classes[int(value)] if self.classes else round(float(value), 4)


def most_weighted(trainer: Any, count: int) -> list[HardExample]:
    """What the observer `HardExamples` of a Trainer has recorded, see `HardExamples.most_weighted`."""
    (examples,) = (each for each in trainer.observers if isinstance(each, HardExamples))
    return examples.most_weighted(count)


def list_hard_examples(
    trainer: PredictionsMixin, count: int, samples: TrainingSamples, directory: str | Path
) -> None:
    """Write `hard_examples.json` and `hard_examples.html` into `directory`, and print the first ten.

    Every process has to call it: the final model predicts the `count` samples, and only the main process writes.

    Args:
        trainer: that has trained with the observer `HardExamples`.
        count: samples to list.
        samples: the training set.
        directory: the directory of the run.
    """
    examples = most_weighted(trainer, count)
    rows = hard_rows(trainer, examples, samples)
    if PartialState().is_main_process:
        title = title_of(rows, len(trainer.train_dataset), trainer)  # type: ignore[arg-type]
        image = samples.image
        pictures = [thumbnail(image(example.index)) for example in examples] if image is not None else []
        page = render(rows, COLUMNS, f"{title}. {what_to_look_for(rows)}", pictures)
        write_list(directory, rows, page, short_table(rows, SHORT_COLUMNS, Path(directory), title))


def write_list(directory: str | Path, rows: Sequence[Mapping[str, Any]], page: str, short: Table) -> None:
    """Write `rows` as JSON and `page` as HTML into `directory`, and print `short`."""
    folder = Path(directory)
    write_json(folder / f"{HARD_EXAMPLES}.json", rows)
    (folder / f"{HARD_EXAMPLES}.html").write_text(page, encoding="utf-8")
    console.print(short)


def hard_rows(
    trainer: PredictionsMixin, examples: Sequence[HardExample], samples: TrainingSamples
) -> list[dict[str, Any]]:
    """What the list says of each example.

    Returns:
        One dict a sample: what `samples.row` says (`index`); `weight`, `loss`, `seen` (see
        `rgd_hf.observers.HardExample`); `label`; `prediction` and `correct` (not for regression) of the final model; `text`.
    """
    compute_metrics = trainer.compute_metrics
    trainer.compute_metrics = None  # so few samples have no meaningful metrics
    chosen = samples.select(trainer, [example.index for example in examples])
    trainer.predict(chosen, metric_key_prefix=HARD_EXAMPLES)
    trainer.compute_metrics = compute_metrics
    rows = []
    for example, predicted in zip(
        examples, trainer.predictions[HARD_EXAMPLES].to_dict("records"), strict=True
    ):
        row = {**asdict(example), **samples.row(example.index), "label": samples.name(predicted["label"])}
        row["prediction"] = samples.name(predicted["prediction"])
        if "correct" in predicted:
            row["correct"] = bool(predicted["correct"])
        rows.append({**row, "text": samples.text(example.index)})
    return rows


def title_of(rows: Sequence[Mapping[Any, Any]], samples: int, trainer: Any) -> str:
    """What `rows` are, in words: by which mean they were chosen among so many training samples."""
    by = "weight (of equal weights, the largest loss first)" if trainer.reweights else "loss"
    return f"The {len(rows):,} of {samples:,} training samples with the largest mean {by}"


def short_table(rows: Sequence[Mapping[Any, Any]], columns: Columns, directory: Path, title: str) -> Table:
    """The first ten rows for the terminal; the page in `directory` has all of them, which `title` describes."""
    page = directory / f"{HARD_EXAMPLES}.html"
    table = Table(title=f"{QUESTION} {title}: {page}", title_justify="left")
    for head, key in columns:
        table.add_column(head, justify="right" if key in NUMBERS else "left", no_wrap=key in NUMBERS)
    for row in rows[:SHOWN]:
        # The cell does not wrap, but its column may: else a long text would take the width of all others.
        cells = {key: Text(_shown(row, key)) for _, key in columns}
        cells["text"].no_wrap, cells["text"].overflow = True, "ellipsis"
        table.add_row(*cells.values())
    return table


def render(
    rows: Sequence[Mapping[Any, Any]],
    columns: Columns,
    introduction: str,
    pictures: Sequence[str] = (),
) -> str:
    """A page of its own, without anything to load: one table row per sample, with a thumbnail where it is an image.

    Args:
        rows: as `hard_rows` has them; other keys may have any content.
        columns: columns of the page.
        introduction: a paragraph of plain text.
        pictures: addresses of the rows' images, as `thumbnail` returns them; empty where samples are no images.
    """
    heads = "".join(f"<th>{html.escape(head)}</th>" for head in ("", *(head for head, _ in columns)))
    wide = ' class="wide"' if len(columns) > len(COLUMNS) + 2 else ""
    body = "\n".join(_render_row(number, row, columns, pictures) for number, row in enumerate(rows, start=1))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{QUESTION}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }}
.wide {{ max-width: none }}
p {{ max-width: 66rem }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ padding: .35rem .6rem; text-align: left; vertical-align: middle; border-bottom: 1px solid #ddd }}
th {{ position: sticky; top: 0; background: #fff }}
.number {{ text-align: right; font-variant-numeric: tabular-nums }}
.sample {{ overflow-wrap: anywhere }}
.differs {{ color: #b33a00; font-weight: 600 }}
img {{ width: 96px; height: 96px; object-fit: contain; image-rendering: pixelated; background: #eee; margin-right: .6rem;
vertical-align: middle }}
</style></head><body{wide}>
<h1>{QUESTION}</h1>
<p>{html.escape(introduction)}</p>
<table><thead><tr>{heads}</tr></thead>
<tbody>
{body}
</tbody></table></body></html>
"""


def what_to_look_for(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many labels the final model predicts otherwise (real values apart), and what that may mean."""
    if not all("correct" in row for row in rows):
        return "A value may be wrong where the final model's prediction is plausible; a sample is hard where the value is."
    wrong = sum(not row["correct"] for row in rows)
    return (
        f"The final model predicts another label for {wrong} of them. A label may be wrong where the prediction is "
        "plausible; a sample is hard where the label is."
    )


def _shown(row: Mapping[Any, Any], key: Hashable) -> str:
    return format(row[key], NUMBERS[key]) if key in NUMBERS else str(row[key])


def _render_row(
    number: int,
    row: Mapping[Any, Any],
    columns: Columns,
    pictures: Sequence[str],
) -> str:
    cells = [f'<td class="number">{number}</td>']
    for _, key in columns:
        text = html.escape(_shown(row, key))
        if key == "text":
            picture = f'<img alt="" src="{pictures[number - 1]}">' if pictures else ""
            cells.append(f'<td class="sample">{picture}{text}</td>')
            continue
        differs = key == "prediction" and not row.get("correct", True)
        kind = ' class="number"' if key in NUMBERS else ' class="differs"' if differs else ""
        cells.append(f"<td{kind}>{text}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def thumbnail(image: Image.Image) -> str:
    """A PNG of at most 128 x 128 pixels as a `data:` address."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
