"""Fine-tune a text classifier with re-weighted losses on GLUE, or on your own files.

    accelerate launch recipes/glue.py --task_name mrpc --model_name_or_path google-bert/bert-base-uncased
    accelerate launch recipes/glue.py --train_file train.csv --validation_file valid.csv --compare \
        --model_name_or_path google-bert/bert-base-uncased --output_dir runs/mine

All nine tasks of GLUE are loaded from the Hub (`nyu-mll/glue`) or, with the same columns, from local files. The run ends
with a table of the official metrics; `all_results.json` in the output directory has them with all settings.
"""

import os

# Idle OpenMP threads shall sleep: spinning, their default, makes small steps many times slower beside another process on these cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
)

from rgd_hf import ReweightedTrainingArguments
from rgd_hf.scripts.cli import parse_args, run_recipe
from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.files.data_files import first_rows, read_directory, read_splits, require_file
from rgd_hf.scripts.files.holdout import HELP as HOLDOUT_HELP
from rgd_hf.scripts.files.holdout import hold_out
from rgd_hf.scripts.files.hub import load_hub_dataset, load_pretrained
from rgd_hf.scripts.messages import say
from rgd_hf.scripts.ranges import OF_CLASSIFICATION, check_usable
from rgd_hf.scripts.text.glue_tasks import GLUE_TASKS, HUB_NAME, GlueTask
from rgd_hf.scripts.text.length_grouping import LengthGroupedTrainer
from rgd_hf.scripts.text.text_classification import (
    Labels,
    encode_labels,
    find_labels,
    find_text_columns,
    tokenize,
)
from rgd_hf.scripts.training.best_metric import check_metric
from rgd_hf.scripts.training.class_order import reorder_outputs, tell_order
from rgd_hf.scripts.training.hard_examples import TrainingSamples
from rgd_hf.scripts.training.metrics import make_compute_metrics, metric_names
from rgd_hf.scripts.training.plans import RunArguments, prepare_runs
from rgd_hf.scripts.training.results import print_results, settings_of
from rgd_hf.scripts.training.runs import push_runs, train_runs

LOCAL_HINT = (
    "--dataset_dir DIR (with train.parquet and validation.parquet), or --train_file and --validation_file"
)
DEFAULTS = {
    "output_dir": "runs/glue",
    "learning_rate": 2e-5,
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "warmup_steps": 0.06,
    "weight_decay": 0.01,
    "train_sampling_strategy": "group_by_length",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "logging_steps": 50,
    "dataloader_pin_memory": torch.accelerator.is_available(),
}
HOLDOUT_SEED = 0
OWN_METRICS = {
    "single_label_classification": "accuracy_and_macro_f1",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}


@dataclass
class DataArguments:
    """Data: a GLUE task, or your own files."""

    task_name: str | None = field(
        default=None,
        metadata={
            "help": f"GLUE task: {', '.join(GLUE_TASKS)}. Loaded from the Hub unless local files are given."
        },
    )
    dataset_dir: str | None = field(
        default=None,
        metadata={
            "help": "Directory with the files train.* and validation.* (parquet, csv, tsv, json or jsonl)."
        },
    )
    train_file: str | None = field(
        default=None, metadata={"help": "Training data: a parquet, csv, tsv, json or jsonl file."}
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "Validation data, in the same format as --train_file."}
    )
    text_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "The text column, or the two columns of sentence pairs. Inferred from the data if not given."
        },
    )
    label_column: str = field(
        default="label",
        metadata={
            "help": "The label column: strings or integers (classes), floats (regression) or lists (several labels per "
            "text: their names, or a 0 or 1 for every class)."
        },
    )
    max_seq_length: int = field(
        default=128, metadata={"help": "Maximum number of tokens per text; longer texts are truncated."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Maximum number of training samples: the first rows are used."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Maximum number of validation samples: the first rows are used."}
    )
    holdout_fraction: float | None = field(
        default=None,
        metadata={"help": HOLDOUT_HELP + "The split is stratified by class and does not depend on --seed."},
    )

    def __post_init__(self):
        if self.max_seq_length < 1:
            raise UserError(f"--max_seq_length must be at least 1, not {self.max_seq_length}.")


@dataclass
class ModelArguments:
    """Model."""

    model_name_or_path: str = field(
        default="google-bert/bert-base-uncased",
        metadata={
            "help": "Name of a model on the Hugging Face Hub, or a directory with its configuration, weights and tokenizer."
        },
    )
    ignore_mismatched_sizes: bool = field(
        default=False,
        metadata={
            "help": "Replace the classifier of a pretrained model if it has a different number of classes."
        },
    )


def find_task(args: DataArguments) -> GlueTask | None:
    """The task of GLUE, or None for the user's own."""
    if args.task_name is None:
        return None
    if args.task_name not in GLUE_TASKS:
        raise UserError(f"unknown --task_name {args.task_name!r}: choose one of {listed(GLUE_TASKS)}.")
    return GLUE_TASKS[args.task_name]


def load_data(args: DataArguments, task: GlueTask | None) -> DatasetDict:
    """The train split and the validation splits; with `holdout_fraction` the train split alone."""
    held_out = args.holdout_fraction is not None
    validation = () if held_out else task.validation if task else ("validation",)
    if held_out and args.validation_file:
        if not Path(args.validation_file).is_file():
            raise UserError(
                f"--validation_file {args.validation_file} is not a file, and --holdout_fraction evaluates on training rows: "
                "leave it out."
            )
        say(f"--holdout_fraction evaluates on training rows: {args.validation_file} is not read.")
    for name in filter(None, (args.train_file, None if held_out else args.validation_file)):
        require_file(name, "give a directory with train.* and validation.* as --dataset_dir")
    if args.train_file and args.dataset_dir:
        raise UserError("give either --dataset_dir or --train_file and --validation_file, not both.")
    if held_out and args.train_file:
        return read_splits({"train": args.train_file}, args.label_column)
    if (args.train_file is None) != (args.validation_file is None):
        raise UserError(
            "give both --train_file and --validation_file, or neither; or --train_file and --holdout_fraction."
        )
    if args.train_file and args.validation_file:
        return read_splits({"train": args.train_file, validation[0]: args.validation_file}, args.label_column)
    if args.dataset_dir:
        return read_directory(args.dataset_dir, ["train", *validation], args.label_column)
    if args.task_name is None:
        raise UserError(
            f"no data: give --task_name ({', '.join(GLUE_TASKS)}), or your own files: {LOCAL_HINT}."
        )
    used = [[split] for split in ("train", *validation)]
    data = load_hub_dataset(HUB_NAME, args.task_name, local_hint=LOCAL_HINT, splits=used)
    return DatasetDict({split: data[split] for split in ("train", *validation)})


def describe(args: DataArguments, task: GlueTask | None, train: Dataset) -> tuple[list[str], Labels, str]:
    """The text columns, the kind and names of the labels, and the name of the metric."""
    if task is None or args.text_columns:
        columns = find_text_columns(train, args.text_columns, args.label_column, "the training data")
    else:
        columns = list(task.columns)
    if task is not None:
        kind = "single_label_classification" if task.labels else "regression"
        return columns, Labels(kind, task.labels), task.metric
    labels = find_labels(train, args.label_column, "the training data")
    return columns, labels, OWN_METRICS[labels.kind]


def check_classifier(args: ModelArguments, labels: Labels) -> dict[int, str] | None:
    """The names of the pretrained classifier's outputs; None where there is none or a new one, or classes have no names.

    Raises:
        UserError: it has one for another number of classes that is not to be replaced.
    """
    name = args.model_name_or_path
    config = load_pretrained(AutoConfig.from_pretrained, name)
    has_head = any("SequenceClassification" in architecture for architecture in config.architectures or [])
    if has_head and config.num_labels != labels.config["num_labels"] and not args.ignore_mismatched_sizes:
        needed = f"has {len(labels.names)}" if labels.names else "is a regression"
        raise UserError(
            f"{name} has a classifier for {config.num_labels} classes, but the data {needed}. --ignore_mismatched_sizes "
            "puts a new, untrained classifier in its place."
        )
    if not has_head or config.num_labels != len(labels.names) or labels.multi_hot:
        return None
    tell_order(name, config.id2label, labels.names)
    return dict(config.id2label)


def cut(data: DatasetDict, args: DataArguments, labels: Labels) -> tuple[DatasetDict, np.ndarray]:
    """The splits cut to the maximum numbers of samples; with `holdout_fraction` a part of `train` is `validation`.

    Also the row in `data` of each training sample, int64.
    """
    data = DatasetDict(data)
    data["train"] = first_rows(data["train"], args.max_train_samples, "max_train_samples")
    kept = np.arange(len(data["train"]))
    if args.holdout_fraction is not None:
        train, classes = data["train"], None
        if labels.kind == "single_label_classification":
            classes = np.asarray(encode_labels(train, args.label_column, labels, "the training data"))
        kept, held_out = hold_out(len(train), args.holdout_fraction, HOLDOUT_SEED, classes)
        data["train"], data["validation"] = train.select(kept), train.select(held_out)
    for split in data:
        if split != "train":
            data[split] = first_rows(data[split], args.max_eval_samples, "max_eval_samples")
    return data, kept


ARGUMENTS = (DataArguments, ModelArguments, RunArguments, ReweightedTrainingArguments)


def main(argv: list[str] | None = None) -> dict:
    """Run the recipe with the given command-line arguments; returns the content of `all_results.json`."""
    description = __doc__.split("\n\n")[0]
    data_args, model_args, run_args, training_args = parse_args(
        ARGUMENTS, argv, description=description, defaults=DEFAULTS
    )
    check_usable(training_args, OF_CLASSIFICATION)
    task = find_task(data_args)
    plan = prepare_runs(training_args, run_args, settings_of(data_args, model_args))
    if plan.finished:
        return push_runs(plan)
    model_name = model_args.model_name_or_path
    with training_args.main_process_first(desc="data preparation"):
        data = load_data(data_args, task)
        columns, labels, metric = describe(data_args, task, data["train"])
        trained = check_classifier(model_args, labels)
        raw, rows_of_train = cut(data, data_args, labels)
        tokenizer = load_pretrained(AutoTokenizer.from_pretrained, model_name)
        data = tokenize(raw, tokenizer, columns, data_args.label_column, labels, data_args.max_seq_length)
    validation = {split.removeprefix("validation_"): rows for split, rows in data.items() if split != "train"}
    computed = []
    for name, rows in validation.items():
        prefix = f"{name}_" if len(validation) > 1 else ""
        computed += [prefix + key for key in (*metric_names(metric, rows["labels"][:]), "loss")]
    check_metric(training_args, computed)

    def build_trainer(args: ReweightedTrainingArguments) -> LengthGroupedTrainer:
        config = load_pretrained(AutoConfig.from_pretrained, model_name, **labels.config)
        model = load_pretrained(
            AutoModelForSequenceClassification.from_pretrained,
            model_name,
            config=config,
            ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
        )
        if trained is not None:
            text = data["train"][int(np.argmax(data["train"]["length"][:]))]
            ids = torch.tensor([text["input_ids"]])
            reorder_outputs(model, model_name, trained, labels.names, {"input_ids": ids})
        return LengthGroupedTrainer(
            model=model,
            args=args,
            train_dataset=data["train"],
            eval_dataset=validation if len(validation) > 1 else next(iter(validation.values())),
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(
                tokenizer, pad_to_multiple_of=8 if args.fp16 or args.bf16 else None
            ),
            compute_metrics=make_compute_metrics(metric),
        )

    card = {"tasks": "text-classification"}
    if data_args.task_name:
        card |= {"dataset": f"GLUE {data_args.task_name.upper()}", "dataset_tags": HUB_NAME}
        card |= {"dataset_args": data_args.task_name, "language": "en"}
    else:
        card["dataset"] = Path(data_args.train_file or data_args.dataset_dir or "").name
    samples = TrainingSamples(
        select=lambda _, indices: data["train"].select(indices),
        text=lambda index: " | ".join(str(raw["train"][index][column]) for column in columns),
        classes=labels.names,
        row=lambda index: {"index": int(rows_of_train[index])},
    )
    facts: dict[str, Any] = {"text_columns": columns}
    if labels.kind == "single_label_classification":
        counts = np.bincount(data["train"]["labels"], minlength=len(labels.names))
        facts["train_class_counts"] = counts.tolist()
    results = train_runs(plan, build_trainer, card, samples, facts)
    title = f"{data_args.task_name or 'Text classification'}: {len(data['train']):,} training samples"
    print_results(title, results)
    push_runs(plan)
    return results


if __name__ == "__main__":
    run_recipe(main)
