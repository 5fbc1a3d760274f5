"""Domain generalization: train on all domains but one, test on that one, with and without re-weighted losses.

    accelerate launch recipes/domainbed.py --dataset rotated_digits --reweightings none kl
    accelerate launch recipes/domainbed.py --dataset_dir PACS --model_name_or_path timm/resnet50.a1_in1k \
        --algorithms erm coral swad --reweightings none kl --n_trials 3 --n_draws 20 --output_dir runs/pacs

DomainBed's protocol on the Trainer. Finished runs are lines of `runs.jsonl` in the output directory: the same command
goes on where it was stopped, and with --report_only it shows what is finished. The last lines are the tables;
`report.md`, `report.html`, `results.json` and plots lie beside the runs.
"""

import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import concatenate_datasets

from rgd_hf import ReweightedTrainingArguments
from rgd_hf.scripts.cli import parse_args, run_recipe
from rgd_hf.scripts.domains.algorithms import ALGORITHMS
from rgd_hf.scripts.domains.backbones import (
    EFFICIENTNET_LITE0,
    MINILM,
    Backbone,
    image_backbone,
    text_backbone,
)
from rgd_hf.scripts.domains.digits import coloured_digits, grey_images, rotated_digits
from rgd_hf.scripts.domains.environments import DomainData, check_held_out
from rgd_hf.scripts.domains.experiment import Experiment
from rgd_hf.scripts.domains.predictions import CheckpointPredictions, predictions_file
from rgd_hf.scripts.domains.report import Comparison, print_tables, write_report
from rgd_hf.scripts.domains.selection import RULES
from rgd_hf.scripts.domains.sources import LOCAL_HINT, from_table, read_directory, read_table
from rgd_hf.scripts.domains.sweep import Job, plan_jobs, run_jobs
from rgd_hf.scripts.domains.views import ImageView, TextView, View
from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.predictions import write_table
from rgd_hf.scripts.results import say, settings_of, without_tokens, write_json
from rgd_hf.scripts.run_file import RunFile, parse_shard
from rgd_hf.scripts.vader import load_vader
from rgd_hf.weightings.choice import by_losses_alone

DATASETS = ("rotated_digits", "coloured_digits", "kinds_of_sentences")
DEFAULTS = {
    "output_dir": "runs/domainbed",
    "learning_rate": 5e-5,
    "max_steps": 5000,
    "eval_strategy": "steps",
    "eval_steps": 250,
    "save_strategy": "no",
    "logging_strategy": "no",
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "weight_decay": 0.0,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "reweighting": "none",
    "report_to": "none",
    "disable_tqdm": True,
    "remove_unused_columns": False,
    "dataloader_pin_memory": torch.accelerator.is_available(),
}
# They say how a sweep is run and shown, not what a run is.
NOT_OF_A_RUN = (
    "output_dir", "algorithms", "reweightings", "n_trials", "first_trial", "n_draws", "held_out", "selection", "shard", "report_only",
    "reweighting", "disable_tqdm", "report_to", "run_name", "dataloader_", "logging_", "log_",
)  # fmt: skip


@dataclass
class DataArguments:
    """Data: domains made here, or one's own."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Digits rotated by 0 to 75 degrees, digits whose colour misleads, or movie reviews, newspapers, "
            "product reviews and tweets. Digits need no network.",
            "choices": list(DATASETS),
        },
    )
    dataset_dir: str | None = field(
        default=None,
        metadata={
            "help": "Directory with <domain>/<class>/*.jpg (PACS, VLCS, OfficeHome, TerraIncognita, DomainNet) or "
            "<domain>.parquet (columns image or text, and the label)."
        },
    )
    data_file: str | None = field(
        default=None,
        metadata={
            "help": "File with all domains (parquet, csv, tsv, json, jsonl), see --domain_column. With --dataset "
            "rotated_digits or coloured_digits: the grey images to make them of (columns image and label)."
        },
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set of the Hub with all domains, see --domain_column."}
    )
    domain_column: str = field(
        default="domain", metadata={"help": "The column that names each row's domain."}
    )
    label_column: str = field(default="label", metadata={"help": "The column of the classes."})
    text_column: str | None = field(
        default=None,
        metadata={"help": "The text, where there are no images. Found by itself where it is clear."},
    )
    image_size: int = field(default=224, metadata={"help": "Height and width of images for the model."})
    augment: bool = field(
        default=True, metadata={"help": "Random crops, flips and colours in training, as DomainBed does."}
    )
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are cut to so many tokens."})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate a random choice of so many samples of each split."}
    )

    def __post_init__(self):
        for name in ("image_size", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} must be at least 1, not {value}.")


@dataclass
class ModelArguments:
    """Model."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": f"Model of the Hugging Face Hub (timm/... included) or a directory; {EFFICIENTNET_LITE0} (images) "
            f"and {MINILM} (texts), the defaults, come with packages. With --weights or --pretrained false, "
            "an architecture of timm."
        },
    )
    weights: str | None = field(
        default=None,
        metadata={
            "help": "Pretrained weights for the timm architecture --model_name_or_path from a local file (.safetensors, "
            ".pth, .pt). A classifier of another number of classes is left out; a new one starts."
        },
    )
    pretrained: bool = field(default=True, metadata={"help": "Start from pretrained weights."})
    freeze_batch_norm: bool = field(
        default=True,
        metadata={"help": "Keep the statistics of batch normalizations as they were pretrained."},
    )

    def __post_init__(self):
        if self.weights is not None and not self.pretrained:
            raise UserError("give either --weights or --pretrained false, not both.")


@dataclass
class SweepArguments:
    """Sweep: algorithms x re-weightings x hyper-parameters x trials x held-out domains."""

    algorithms: list[str] = field(
        default_factory=lambda: ["erm"], metadata={"help": f"One or more of {', '.join(ALGORITHMS)}."}
    )
    reweightings: list[str] = field(
        default_factory=lambda: ["none", "kl"],
        metadata={
            "help": f"On top of every algorithm, one or more of {', '.join(by_losses_alone())}; --tau and the other settings "
            "of the weights hold for all that are re-weighted."
        },
    )
    held_out: list[str] = field(
        default_factory=list, metadata={"help": "Domains to hold out, in turn; all of them by default."}
    )
    n_trials: int = field(
        default=1, metadata={"help": "Repetitions with other splits, batches and initial classifiers."}
    )
    first_trial: int = field(default=0, metadata={"help": "Number of the first of these trials."})
    n_draws: int = field(
        default=1, metadata={"help": "Hyper-parameters: the given ones, then so many less one at random."}
    )
    selection: list[str] = field(
        default_factory=lambda: ["training_domain", "oracle"],
        metadata={
            "help": f"Rules to report, of {', '.join(RULES)}. leave_one_domain_out also trains without every pair of "
            "domains."
        },
    )
    shard: str = field(
        default="1/1",
        metadata={
            "help": "Train the i-th of n parts of the runs, e.g. 2/8 in the second task of a job array."
        },
    )
    save_predictions: bool = field(
        default=False,
        metadata={
            "help": "Write predictions/<run>.parquet into the output directory: label, prediction, whether it is correct, "
            "and plain loss of every evaluated sample of the held-out domain's `in` split, at every checkpoint. A "
            "finished run that lacks it is trained again."
        },
    )
    report_only: bool = field(
        default=False, metadata={"help": "Train nothing; report the runs that are finished."}
    )


def load_data(args: DataArguments) -> DomainData:
    """The environments that the options name."""
    given = [name for name in ("dataset_dir", "dataset_name") if getattr(args, name)]
    if args.dataset in ("rotated_digits", "coloured_digits") and not given:
        images, labels = grey_images(args.data_file, args.label_column)
        return (rotated_digits if args.dataset == "rotated_digits" else coloured_digits)(images, labels)
    given += [name for name in ("dataset", "data_file") if getattr(args, name)]
    if len(given) != 1:
        raise UserError(
            f"give exactly one source of data, not {len(given)} ({listed(given)}): --dataset {'|'.join(DATASETS)}, "
            f"{LOCAL_HINT}, or --dataset_name NAME."
        )
    if args.dataset is not None:
        rows = concatenate_datasets(list(load_vader().values()))
        return from_table(rows, "domain", "label", args.dataset)
    if args.dataset_dir is not None:
        return read_directory(args.dataset_dir, args.label_column, args.text_column)
    return read_table(
        args.domain_column,
        args.label_column,
        data_file=args.data_file,
        dataset_name=args.dataset_name,
        text_column=args.text_column,
    )


def load_backbone(args: ModelArguments, kind: str) -> Backbone:
    """The model for images or texts that the options name."""
    if kind == "image":
        if args.weights is not None and args.model_name_or_path is None:
            raise UserError(
                "--weights needs the timm architecture that they are for: --model_name_or_path timm/NAME."
            )
        return image_backbone(args.model_name_or_path or EFFICIENTNET_LITE0, args.pretrained, args.weights)
    if args.weights is not None:
        raise UserError("--weights is for images: a text model brings its own, leave the option out.")
    if not args.pretrained:
        raise UserError("--pretrained false is for images: give the name of a text model without it.")
    return text_backbone(args.model_name_or_path or MINILM)


def make_views(data: DomainData, backbone: Backbone, args: DataArguments) -> list[View]:
    """What the model is given of each environment."""
    if backbone.tokenizer is None:
        return [
            ImageView(environment, args.image_size, backbone.mean, backbone.std, args.augment)
            for environment in data.environments
        ]
    return [TextView(e, backbone.tokenizer, args.max_seq_length) for e in data.environments]


def check_sweep(sweep: SweepArguments, args: ReweightedTrainingArguments) -> None:
    """Raise `UserError` where a setting of the sweep is not allowed."""
    for option, allowed in (
        ("algorithms", ALGORITHMS),
        ("reweightings", by_losses_alone()),
        ("selection", RULES),
    ):
        given = getattr(sweep, option)
        strange = [name for name in given if name not in allowed]
        if strange or not given:
            raise UserError(f"--{option} must be one or more of {listed(allowed)}, not {listed(strange)}.")
    if args.reweighting != "none":
        raise UserError(
            "--reweighting is for a single run: list what to compare with --reweightings none kl."
        )
    if args.eval_strategy != "steps":
        raise UserError("--eval_strategy must be steps: the selection rules need checkpoints.")
    interval = int(args.eval_steps or 0)
    if args.max_steps < 1 or interval < 1 or args.max_steps % interval:
        raise UserError(
            f"--max_steps {args.max_steps} must be a multiple of --eval_steps {args.eval_steps}, so that the last model "
            "is evaluated."
        )
    for option in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option} must be at least 1, not {getattr(args, option)}.")
    for option, least in (("n_trials", 1), ("n_draws", 1), ("first_trial", 0)):
        if getattr(sweep, option) < least:
            raise UserError(f"--{option} must be at least {least}, not {getattr(sweep, option)}.")


def main(argv: list[str] | None = None) -> list[dict]:
    """Run the recipe with the given command-line arguments and return the finished runs of the sweep."""
    data_args, model_args, sweep, training_args = parse_args(
        [DataArguments, ModelArguments, SweepArguments, ReweightedTrainingArguments],
        argv,
        description=__doc__.split("\n\n")[0],
        defaults=DEFAULTS,
    )
    check_sweep(sweep, training_args)
    shard = parse_shard(sweep.shard)
    with training_args.main_process_first(desc="data preparation"):
        data = load_data(data_args)
    held_out = check_held_out(sweep.held_out, data)
    pairs = "leave_one_domain_out" in sweep.selection
    if pairs and len(data.names) < 3:
        raise UserError(
            f"--selection leave_one_domain_out needs at least three domains, not {listed(data.names)}."
        )
    settings = {
        name: value
        for name, value in settings_of(data_args, model_args, training_args).items()
        if not name.startswith(NOT_OF_A_RUN)
    } | {"world_size": training_args.world_size}
    trials = sweep.n_trials, sweep.n_draws
    jobs = plan_jobs(
        sweep.algorithms, sweep.reweightings, *trials, held_out, data.names, pairs, sweep.first_trial
    )
    names = [(job.name(settings), job) for job in jobs]
    file = RunFile(Path(str(training_args.output_dir)), shard)
    if not sweep.report_only:
        experiment = make_experiment(data, data_args, model_args, training_args)

        def finished_runs() -> dict[str, dict]:
            runs = file.read()
            if sweep.save_predictions:
                runs = {
                    name: run
                    for name, run in runs.items()
                    if predictions_file(file.directory, name).is_file()
                }
            return broadcast_object_list([runs])[0]

        def train(name: str, job: Job) -> None:
            kept = CheckpointPredictions(job.held_out) if sweep.save_predictions else None
            record = {"name": name, **experiment.train(job, kept), "settings": settings}
            if PartialState().is_main_process:
                file.append(record)
                # After the line: a file beside a line is of the same training, even if the run was killed in between.
                if kept is not None:
                    write_table(kept.table(), predictions_file(file.directory, name))
            PartialState().wait_for_everyone()

        number, count = shard
        run_jobs(names[number - 1 :: count], finished_runs, train, say)
    finished = file.read()
    runs = [finished[name] for name, _ in names if name in finished]
    if PartialState().is_main_process:
        comparison = Comparison(runs, held_out, data.names, sweep.n_trials, len(jobs), sweep.first_trial)
        rules = [rule for rule in RULES if rule in sweep.selection]
        print_tables(comparison, rules)
        where = write_report(
            comparison, rules, file.directory, json.dumps(settings, indent=2, sort_keys=True)
        )
        command = [
            "accelerate",
            "launch",
            "recipes/domainbed.py",
            *without_tokens(sys.argv[1:] if argv is None else argv),
        ]
        results = {"tables": comparison.summary(rules), "runs": runs}
        write_json(file.directory / "results.json", {"command": shlex.join(command), **results})
        say("", f"Report: {where}")
    return runs


def make_experiment(
    data: DomainData,
    data_args: DataArguments,
    model_args: ModelArguments,
    training_args: ReweightedTrainingArguments,
) -> Experiment:
    """What every run of the sweep shares."""
    backbone = load_backbone(model_args, data.kind)
    return Experiment(
        data,
        make_views(data, backbone, data_args),
        backbone,
        training_args,
        space="pretrained" if model_args.pretrained else "from_scratch",
        frozen_statistics=model_args.freeze_batch_norm,
        max_eval_samples=data_args.max_eval_samples,
    )


if __name__ == "__main__":
    run_recipe(main)
