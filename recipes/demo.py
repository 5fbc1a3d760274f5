"""Fine-tune a BERT on human-rated sentences without (ERM) and with re-weighted losses (RGD). No Hub needed.

    python recipes/demo.py --tau 3
    python recipes/demo.py --seeds 0 1 2 3 4

The sentences and the model come from a package index. `glue.py` does the same for your own texts.
"""

import os

# Idle OpenMP threads shall sleep: spinning, their default, makes small steps many times slower beside another process on these cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

from pathlib import Path

from datasets import DatasetDict
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, pipeline

from rgd_hf import ReweightedTrainingArguments
from rgd_hf.scripts.cli import parse_args, run_recipe
from rgd_hf.scripts.messages import say
from rgd_hf.scripts.text.embedded import minilm_directory
from rgd_hf.scripts.text.length_grouping import LengthGroupedTrainer
from rgd_hf.scripts.text.text_classification import Labels, tokenize
from rgd_hf.scripts.text.vader import LABELS, load_vader
from rgd_hf.scripts.training.metrics import make_compute_metrics
from rgd_hf.scripts.training.plans import RunArguments, prepare_runs
from rgd_hf.scripts.training.results import print_results
from rgd_hf.scripts.training.runs import push_runs, train_runs

TRAIN_ROWS = 2_500
VALIDATION_ROWS = 2_000
MAX_LENGTH = 64
DEFAULTS = {
    "compare": True,
    "output_dir": "runs/demo",
    "learning_rate": 2e-4,
    "num_train_epochs": 2.0,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "warmup_steps": 0.06,
    "weight_decay": 0.01,
    "train_sampling_strategy": "group_by_length",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "logging_steps": 20,
}
EXAMPLES = (
    "The plot is thin, but the two leads are a joy to watch.",
    "It stopped working after a week and nobody answered my mails.",
)
ARGUMENTS = (RunArguments, ReweightedTrainingArguments)


def main(argv: list[str] | None = None) -> dict:
    """Prepare the sentences, train both methods, say which was better, use the saved model."""
    description = (__doc__ or "").split("\n\n")[0]
    run_args, training_args = parse_args(ARGUMENTS, argv, description=description, defaults=DEFAULTS)
    plan = prepare_runs(training_args, run_args, {})
    if plan.finished:
        return push_runs(plan)
    with training_args.main_process_first(desc="data preparation"):
        sentences = load_vader()
        rows = {split: data.num_rows for split, data in sentences.items()}
        say(
            f"{rows['train']:,} + {rows['validation']:,} sentences from movie reviews, tweets, product reviews and "
            f"newspapers, rated by 20 people each; {TRAIN_ROWS:,} for training, {VALIDATION_ROWS:,} for validation."
        )
        sentences = DatasetDict(
            train=sentences["train"].select(range(TRAIN_ROWS)),
            validation=sentences["validation"].select(range(min(VALIDATION_ROWS, rows["validation"]))),
        )
        tokenizer = AutoTokenizer.from_pretrained(minilm_directory())
        labels = Labels("single_label_classification", LABELS)
        data = tokenize(sentences, tokenizer, ["text"], "label", labels, MAX_LENGTH)

    def build_trainer(args: ReweightedTrainingArguments) -> LengthGroupedTrainer:
        return LengthGroupedTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(minilm_directory(), **labels.config),
            args=args,
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=make_compute_metrics("accuracy"),
        )

    card = {"tasks": "text-classification", "dataset": "VADER's rated sentences", "language": "en"}
    results = train_runs(plan, build_trainer, card)
    print_results(f"Is the sentence positive? {TRAIN_ROWS:,} training samples", results)
    model = Path(str(plan.runs[-1].args.output_dir))
    if run_args.save_models:
        say("", f'pipeline("text-classification", model="{model}"):')
        classify = pipeline("text-classification", model=str(model))
        for sentence in EXAMPLES:
            answer = classify(sentence)[0]
            say(f"  {answer['label']} ({answer['score']:.2f})  {sentence}")
    push_runs(plan)
    return results


if __name__ == "__main__":
    run_recipe(main)
