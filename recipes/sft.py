"""Fine-tune a causal language model with re-weighted token losses on your own chats or texts.

    accelerate launch recipes/sft.py --train_file chats.jsonl --validation_file valid.jsonl \
        --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --assistant_only_loss true --output_dir runs/chat

The columns are those of TRL: `messages` (chats), `prompt` and `completion`, or `text`. `--packing true`,
`--completion_only_loss` and TRL's other options work as in TRL; no logits are computed. `--compare` trains ERM and the chosen
re-weighting.
"""

import os

# Idle OpenMP threads shall sleep: spinning, their default, makes small steps many times slower beside another process on these cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from rgd_hf import ReweightingArguments, ReweightingMixin
from rgd_hf.batches.columns import SAMPLE_WEIGHT
from rgd_hf.hub.checks import check_base_model
from rgd_hf.scripts.cli import parse_args, run_recipe
from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.files.data_files import first_rows, sample_weights
from rgd_hf.scripts.files.holdout import HELP as HOLDOUT_HELP
from rgd_hf.scripts.files.holdout import hold_out
from rgd_hf.scripts.files.hub import load_pretrained
from rgd_hf.scripts.messages import say_warning
from rgd_hf.scripts.text.language_data import (
    check_assistant_turns,
    check_language_data,
    read_language_data,
)
from rgd_hf.scripts.training.best_metric import check_metric
from rgd_hf.scripts.training.plans import RunArguments, prepare_runs
from rgd_hf.scripts.training.predictions import PredictionsMixin
from rgd_hf.scripts.training.results import print_results, settings_of
from rgd_hf.scripts.training.runs import push_runs, train_runs
from rgd_hf.weightings.choice import weighting_of

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
    "dataloader_pin_memory": torch.accelerator.is_available(),
    "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
}
MOVED = dict.fromkeys(("text_column", "text_columns"), "give --dataset_text_field.")
DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")
HOLDOUT_SEED = 0


@dataclass
class InputArguments:
    """Data and model."""

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Training data: a jsonl, json, parquet, csv or tsv file with the column 'messages', the columns 'prompt' "
            "and 'completion', or the column 'text'; or a .txt file with one text per line. A column 'sample_weight' "
            "weights the rows (not with --packing)."
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
            "help": f"Dtype of the model's weights: {', '.join(DTYPES)} (that of the checkpoint); --bf16 is mixed "
            "precision instead."
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
                "--loss_type dft has weights of tokens of its own, which re-weighting would replace: give nll, or "
                "leave it out."
            )
        if self.class_weights is not None:
            raise UserError(
                "--class_weights are for classification, and tokens have no classes of this kind: leave them out. A "
                "column 'sample_weight' weights the rows of the training file."
            )
        if self.max_length is not None and self.max_length < 1:
            raise UserError(f"--max_length must be at least 1, not {self.max_length}.")
        if self.reweighting_level == "sample" and self.joins:
            raise UserError(
                f"--reweighting_level sample needs the loss of each row of the file, but {self.joins} puts several into one "
                f"sequence: leave out {self.joins}, or give --reweighting_level token."
            )
        super().__post_init__()

    @property
    def joins(self) -> str | None:
        """The option that puts several rows into one sequence, if one is given."""
        return "--packing" if self.packing else "--padding_free" if self.padding_free else None


class ReweightedSFTTrainer(PredictionsMixin, ReweightingMixin, SFTTrainer):  # type: ignore[misc]
    """TRL's Trainer with re-weighted losses; evaluation adds the perplexity."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the Trainer's, with `eval_perplexity`, the exponential of the mean loss per token."""
        metrics = super().evaluate(*args, **kwargs)
        return metrics | {"eval_perplexity": math.exp(min(metrics["eval_loss"], 700.0))}


def load_data(args: InputArguments, training_args: SFTArguments) -> DatasetDict:
    """The splits `train` and `validation`, every cell of theirs checked, with the columns that are used alone."""
    if args.train_file is None:
        raise UserError("no data: give --train_file, with --validation_file or --holdout_fraction.")
    if (args.validation_file is None) == (args.holdout_fraction is None):
        raise UserError("give either --validation_file or --holdout_fraction 0.05, to evaluate on.")
    files = {"train": args.train_file, "validation": args.validation_file or ""}
    if args.validation_file is None:
        del files["validation"]
    others = (SAMPLE_WEIGHT, *(() if training_args.packing else weighting_of(training_args).columns))
    rows, columns = read_language_data(files, training_args.dataset_text_field, others)
    rows["train"] = first_rows(rows["train"], args.max_train_samples, "max_train_samples")
    for split, name in files.items():
        if SAMPLE_WEIGHT not in rows[split].column_names:
            continue
        if joins := training_args.joins:
            raise UserError(
                f"{name} has a column {SAMPLE_WEIGHT!r}, but {joins} puts several rows into one sequence, which has "
                f"no weight of its own: leave out {joins}, or rename the column to train without weights."
            )
        weights = sample_weights(rows[split], name)
        rows[split] = rows[split].remove_columns(SAMPLE_WEIGHT).add_column(SAMPLE_WEIGHT, weights)
    chats = {files[split]: check_language_data(rows[split], columns, files[split]) for split in files}
    if len(set(chats.values())) > 1:
        raise UserError(
            f"training and validation data need the same format, but of {listed(chats)} one holds lists of messages, "
            "the other texts: write one of them anew, or leave out --validation_file and give --holdout_fraction "
            "0.05."
        )
    if training_args.assistant_only_loss:
        for split, name in files.items():
            if not chats[name]:
                raise UserError(
                    f"--assistant_only_loss is for chats, lists of messages, but {name} holds texts: leave it out. Of "
                    "'prompt' and 'completion' the completion alone is learnt without it."
                )
            check_assistant_turns(rows[split], columns, name)
    if "validation" in rows:
        return DatasetDict(rows)
    kept, held_out = hold_out(len(rows["train"]), args.holdout_fraction or 0.0, HOLDOUT_SEED)
    return DatasetDict({"train": rows["train"].select(kept), "validation": rows["train"].select(held_out)})


def say_what_is_left_out(trainer: ReweightedSFTTrainer, data: DatasetDict) -> None:
    """Report the rows that TRL drops, because truncation leaves nothing of them to learn.

    Raises:
        UserError: no row of a split is left.
    """
    args: Any = trainer.args
    eval_packing = args.packing if args.eval_packing is None else args.eval_packing
    splits = (
        ("training", trainer.train_dataset, data["train"], args.packing),
        ("validation", trainer.eval_dataset, data["validation"], eval_packing),
    )
    for name, prepared, given, packed in splits:
        left, rows = len(prepared), len(given)  # type: ignore[arg-type]
        if packed or left == rows:
            continue
        message = (
            f"{rows - left:,} of {rows:,} {name} rows are left out: cut to {args.max_length} tokens (--max_length) "
            "they have none that the loss counts; a prompt of this length leaves its completion no room. Raise "
            "--max_length, or shorten these rows."
        )
        if not left:
            raise UserError(message)
        say_warning(message)


ARGUMENTS = (InputArguments, RunArguments, SFTArguments)


def main(argv: list[str] | None = None) -> dict:
    """Run the recipe with the given command-line arguments; returns the content of `all_results.json`."""
    description = __doc__.split("\n\n")[0]
    inputs, run_args, training_args = parse_args(
        ARGUMENTS, argv, description=description, defaults=DEFAULTS, moved=MOVED
    )
    if run_args.hard_examples or run_args.save_predictions:
        raise UserError(
            "--hard_examples and --save_predictions are for classification, not for language models."
        )
    check_metric(training_args, ("loss", "perplexity"))
    plan = prepare_runs(training_args, run_args, settings_of(inputs))
    if plan.finished:
        return push_runs(plan)
    name = inputs.model_name_or_path
    if inputs.lora_rank and training_args.push_to_hub:
        check_base_model(name, "Give it as --model_name_or_path, or leave out --lora_rank.")
    with training_args.main_process_first(desc="data preparation"):
        data = load_data(inputs, training_args)
    tokenizer = load_pretrained(AutoTokenizer.from_pretrained, name)
    template = training_args.chat_template_path
    # What is no file is a model, whose tokenizer's template TRL takes.
    if template is not None and not Path(template).is_file():
        if template.endswith((".jinja", ".j2")):
            raise UserError(
                f"--chat_template_path {template!r}: there is no such file (looked in {Path.cwd()})."
            )
        load_pretrained(AutoTokenizer.from_pretrained, template)
    has_template = tokenizer.chat_template or template
    is_chat = isinstance(data["train"][0][data["train"].column_names[0]], list)
    if is_chat and not has_template:
        raise UserError(f"the tokenizer of {name} has no chat template: give one with --chat_template_path.")

    # TRL ends each text with it, and pads with it where there is no token for that.
    needed = not is_chat or not (training_args.pad_token or tokenizer.pad_token)
    if needed and training_args.eos_token is None and tokenizer.eos_token is None:
        raise UserError(
            f"the tokenizer of {name} has no end-of-sequence token: name one of its tokens with --eos_token TOKEN."
        )

    trained = 0

    def build_trainer(args: Any) -> ReweightedSFTTrainer:
        nonlocal trained
        model = load_pretrained(AutoModelForCausalLM.from_pretrained, name, dtype=inputs.dtype)
        router = getattr(args, "router_aux_loss_coef", None)  # not in every release of TRL
        if router and not hasattr(model.config.get_text_config(), "output_router_logits"):
            raise UserError(
                f"--router_aux_loss_coef is for mixtures of experts, which {name} is not ({type(model).__name__}): leave it "
                "out."
            )
        lora = LoraConfig(r=inputs.lora_rank or 1, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = ReweightedSFTTrainer(
            model=model,
            args=args,
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=tokenizer,
            peft_config=lora if inputs.lora_rank else None,
        )
        if not trained:  # the same for all runs
            say_what_is_left_out(trainer, data)
        trained = len(trainer.train_dataset)  # type: ignore[arg-type]
        return trainer

    card = {"tasks": "text-generation", "dataset": Path(inputs.train_file).name}
    results = train_runs(plan, build_trainer, card)
    samples = f"{trained or len(data['train']):,} training samples"
    if training_args.packing:
        samples = f"{len(data['train']):,} training samples, packed into {trained:,} sequences"
    print_results(f"Supervised fine-tuning: {samples}", results)
    push_runs(plan)
    return results


if __name__ == "__main__":
    run_recipe(main)
