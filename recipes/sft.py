"""Fine-tune a causal language model with re-weighted token losses on your own chats or texts.

    accelerate launch recipes/sft.py --train_file chats.jsonl --validation_file valid.jsonl \
        --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --assistant_only_loss true --output_dir runs/chat

The columns are those of TRL: `messages` (chats), `prompt` and `completion`, or `text`. `--packing true`,
`--completion_only_loss` and TRL's other options work as in TRL; no logits are computed. `--compare` trains ERM and the chosen
re-weighting.
"""

import os

# A thread that waits sleeps: spinning, as OpenMP does by default, many small steps take many times as long beside another process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from rgd_hf import ReweightingArguments, ReweightingMixin
from rgd_hf.hub_checks import check_base_model
from rgd_hf.scripts.cli import parse_args, run_recipe
from rgd_hf.scripts.data_files import first_rows, read_splits
from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.hard_examples import InspectedTrainer
from rgd_hf.scripts.holdout import HELP as HOLDOUT_HELP
from rgd_hf.scripts.holdout import hold_out
from rgd_hf.scripts.hub import load_pretrained
from rgd_hf.scripts.plans import RunArguments, prepare_runs
from rgd_hf.scripts.results import print_results, settings_of
from rgd_hf.scripts.runs import push_runs, train_runs

FORMATS = (("messages",), ("prompt", "completion"), ("text",))
DEFAULTS = {
    "output_dir": "runs/sft",
    "tau": 5.0,
    "learning_rate": 2e-5,
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "warmup_steps": 0.03,
    "lr_scheduler_type": "cosine",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "logging_steps": 10,
    "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
}
DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")
HOLDOUT_SEED = 0


@dataclass
class InputArguments:
    """Data and model."""

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Training data: a jsonl, json, parquet, csv or tsv file with the column 'messages', the columns 'prompt' "
            "and 'completion', or the column 'text'; or a .txt file with one text per line."
        },
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "Validation data, in the same format as --train_file."}
    )
    holdout_fraction: float | None = field(default=None, metadata={"help": HOLDOUT_HELP})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Maximum number of training samples: the first rows are used."}
    )
    model_name_or_path: str = field(
        default="Qwen/Qwen2.5-0.5B",
        metadata={"help": "Name of a causal language model on the Hugging Face Hub, or its directory."},
    )
    dtype: str = field(
        default="float32",
        metadata={
            "help": f"Dtype of the model's weights: {', '.join(DTYPES)} (that of the checkpoint); --bf16 is mixed precision "
            "instead."
        },
    )
    lora_rank: int = field(
        default=0, metadata={"help": "Rank of LoRA adapters to train; 0 trains the whole model."}
    )

    def __post_init__(self):
        if self.lora_rank < 0:
            raise UserError(
                f"--lora_rank must be at least 1, or 0 to train the whole model, not {self.lora_rank}."
            )
        if self.dtype not in DTYPES:
            raise UserError(f"--dtype must be one of {listed(DTYPES)}, not {self.dtype!r}.")


@dataclass
class SFTArguments(ReweightingArguments, SFTConfig):
    """Training: TRL's settings of supervised fine-tuning, with those of re-weighting."""

    def __post_init__(self):
        if self.loss_type == "dft":
            raise UserError(
                "--loss_type dft has weights of tokens of its own, which re-weighting would replace: give nll, or leave it out."
            )
        if self.class_weights is not None:
            raise UserError(
                "--class_weights are for classification, and tokens have no classes of this kind: leave them out. A column "
                "'sample_weight' weights the rows of the training file."
            )
        if self.max_length is not None and self.max_length < 1:
            raise UserError(f"--max_length must be at least 1, not {self.max_length}.")
        super().__post_init__()


class ReweightedSFTTrainer(InspectedTrainer, ReweightingMixin, SFTTrainer):  # type: ignore[misc]
    """TRL's Trainer with re-weighted losses; evaluation adds the perplexity."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the Trainer's, with `eval_perplexity`, the exponential of the mean loss per token."""
        metrics = super().evaluate(*args, **kwargs)
        return metrics | {"eval_perplexity": math.exp(min(metrics["eval_loss"], 700.0))}


def load_data(args: InputArguments) -> DatasetDict:
    """The splits `train` and `validation`, with the columns of one of `FORMATS`."""
    if args.train_file is None:
        raise UserError("no data: give --train_file, with --validation_file or --holdout_fraction.")
    if (args.validation_file is None) == (args.holdout_fraction is None):
        raise UserError("give either --validation_file or --holdout_fraction 0.05, to evaluate on.")
    train = first_rows(_read(args.train_file), args.max_train_samples, "max_train_samples")
    if args.validation_file is not None:
        return DatasetDict({"train": train, "validation": _read(args.validation_file)})
    kept, held_out = hold_out(len(train), args.holdout_fraction or 0.0, HOLDOUT_SEED)
    return DatasetDict({"train": train.select(kept), "validation": train.select(held_out)})


def _read(filename: str) -> Dataset:
    if Path(filename).suffix == ".txt" and Path(filename).is_file():
        lines = Path(filename).read_text(encoding="utf-8").splitlines()
        return Dataset.from_dict({"text": [line for line in lines if line.strip()]})
    data = read_splits({"train": filename})["train"]
    if not any(set(columns) <= set(data.column_names) for columns in FORMATS):
        wanted = ", or ".join(" and ".join(map(repr, columns)) for columns in FORMATS)
        raise UserError(f"{filename} has the columns {listed(data.column_names)}, but needs {wanted}.")
    return data


ARGUMENTS = (InputArguments, RunArguments, SFTArguments)


def main(argv: list[str] | None = None) -> dict:
    """Run the recipe with the given command-line arguments; returns the content of `all_results.json`."""
    description = __doc__.split("\n\n")[0]
    inputs, run_args, training_args = parse_args(ARGUMENTS, argv, description=description, defaults=DEFAULTS)
    if run_args.hard_examples or run_args.save_predictions:
        raise UserError(
            "--hard_examples and --save_predictions are for classification, not for language models."
        )
    plan = prepare_runs(training_args, run_args, settings_of(inputs))
    if plan.finished:
        return push_runs(plan)
    name = inputs.model_name_or_path
    if inputs.lora_rank and training_args.push_to_hub:
        check_base_model(name, "Give it as --model_name_or_path, or leave out --lora_rank.")
    with training_args.main_process_first(desc="data preparation"):
        data = load_data(inputs)
    tokenizer = load_pretrained(AutoTokenizer.from_pretrained, name)
    has_template = tokenizer.chat_template or training_args.chat_template_path
    if "messages" in data["train"].column_names and not has_template:
        raise UserError(f"the tokenizer of {name} has no chat template: give one with --chat_template_path.")

    def build_trainer(args: Any) -> ReweightedSFTTrainer:
        lora = LoraConfig(r=inputs.lora_rank or 1, target_modules="all-linear", task_type="CAUSAL_LM")
        return ReweightedSFTTrainer(
            model=load_pretrained(AutoModelForCausalLM.from_pretrained, name, dtype=inputs.dtype),
            args=args,
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=tokenizer,
            peft_config=lora if inputs.lora_rank else None,
            record_examples=False,
        )

    card = {"tasks": "text-generation", "dataset": Path(inputs.train_file).name}
    results = train_runs(plan, build_trainer, card)
    print_results(f"Supervised fine-tuning: {len(data['train']):,} training samples", results)
    push_runs(plan)
    return results


if __name__ == "__main__":
    run_recipe(main)
