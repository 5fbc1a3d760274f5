"""Train a real BERT on real, human-rated sentences, plainly (ERM) and with re-weighted losses (RGD). No hub needed.

It fetches the sentences once, writes them as `train.parquet` and `validation.parquet`, and runs `glue.py --compare` on
them; options that you add go to `glue.py`, e.g. `python recipes/demo.py --tau 3`.
"""

import math
import shlex
import sys
from pathlib import Path

from transformers import pipeline

import glue
from rgd_hf.scripts.cli import run_recipe
from rgd_hf.scripts.embedded import minilm_directory
from rgd_hf.scripts.results import RESULTS_NAME, say
from rgd_hf.scripts.vader import CACHE_DIR, load_vader

ROOT = Path(__file__).resolve().parents[1]
OUTPUT_DIR = ROOT / "runs" / "demo"
TRAIN_ROWS = 2_500
VALIDATION_ROWS = 2_000
EXAMPLES = (
    "The plot is thin, but the two leads are a joy to watch.",
    "It stopped working after a week and nobody answered my mails.",
)


def main(argv: list[str] | None = None) -> None:
    """Prepare the sentences, train both methods, say which was better, use the saved model."""
    extra = sys.argv[1:] if argv is None else argv
    data = load_vader()
    say(
        f"{data.num_rows['train']:,} + {data.num_rows['validation']:,} sentences from movie reviews, tweets, product "
        f"reviews and newspapers, rated by 20 people each; training on {TRAIN_ROWS:,}, held out {VALIDATION_ROWS:,}."
    )
    for split, rows in data.items():
        rows.to_parquet(CACHE_DIR / f"{split}.parquet")
    options = ["--dataset_dir", str(CACHE_DIR), "--model_name_or_path", minilm_directory()]
    options += ["--max_train_samples", str(TRAIN_ROWS), "--max_eval_samples", str(VALIDATION_ROWS)]
    options += ["--compare", "--num_train_epochs", "2", "--learning_rate", "2e-4", "--max_seq_length", "64"]
    options += ["--eval_strategy", "no", "--logging_steps", "20"]  # evaluation once, at the end
    options += ["--output_dir", str(OUTPUT_DIR)]
    if (OUTPUT_DIR / RESULTS_NAME).is_file():
        options.append("--overwrite_output_dir")  # an interrupted demo goes on, a finished one is shown again
    say("The same by hand: accelerate launch recipes/glue.py " + shlex.join([*options, *extra]))
    plain, reweighted = glue.main([*options, *extra])
    say("", verdict(plain, reweighted, plain["settings"]["max_eval_samples"]))
    model_directory = Path(reweighted["settings"]["output_dir"])
    say("", f'pipeline("text-classification", model="{model_directory}"):')
    classify = pipeline("text-classification", model=str(model_directory))
    for sentence in EXAMPLES:
        result = classify(sentence)[0]
        say(f"  {result['label']} ({result['score']:.2f})  {sentence}")


def verdict(plain: dict, reweighted: dict, count: int) -> str:
    """One honest sentence on two accuracies measured on `count` held-out sentences."""
    before, after = plain["eval_accuracy"], reweighted["eval_accuracy"]
    points = 100 * (after - before)
    noise = 200 * math.sqrt((before * (1 - before) + after * (1 - after)) / count)
    sentence = f"Accuracy: {plain['method']} {before:.2%}, {reweighted['method']} {after:.2%}. "
    if points > 0:
        sentence += f"Re-weighting is {points:.2f} points better here"
    elif points < 0:
        sentence += f"Re-weighting is NOT better here: {-points:.2f} points worse"
    else:
        sentence += "Re-weighting is NOT better here: both are equal"
    if abs(points) < noise:
        return (
            f"{sentence}; one seed and {count:,} sentences cannot tell differences below {noise:.1f} points."
        )
    return f"{sentence}, more than the {noise:.1f} points that chance explains with {count:,} sentences (one seed)."


if __name__ == "__main__":
    run_recipe(main)
