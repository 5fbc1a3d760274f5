"""Domain generalization: train on all domains but one, test on that one, with or without re-weighted losses.

    accelerate launch recipes/domainbed.py --dataset rotated_digits --held_out 75 --compare --seeds 0 1 2
    accelerate launch recipes/domainbed.py --dataset_dir PACS --held_out sketch --algorithm coral --reweighting kl \
        --model_name_or_path timm/resnet50.a1_in1k --output_dir runs/sketch

Splits, batches and augmentation are DomainBed's; `--seed` is its trial. The model is the checkpoint with the best mean accuracy
on validation rows of the training domains, and `test_accuracy` is its accuracy on the held-out one.

To hold out every domain in turn, or for DomainBed's random search and its other rules of selection, run a study: see benchmarks/.
"""

import os

# Idle OpenMP threads shall sleep: spinning, their default, makes small steps many times slower beside another process on these cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import dataclasses
from pathlib import Path

import torch

from rgd_hf import ReweightedTrainingArguments
from rgd_hf.scripts.cli import parse_args, run_recipe
from rgd_hf.scripts.domains.algorithms import AlgorithmArguments
from rgd_hf.scripts.domains.backbones import BackboneArguments, load_backbone
from rgd_hf.scripts.domains.data import DomainArguments, load_data, make_views
from rgd_hf.scripts.domains.environments import check_held_out
from rgd_hf.scripts.domains.experiment import Experiment
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.messages import say
from rgd_hf.scripts.ranges import DATA_SEED, OF_CLASSIFICATION, ORDER, check_usable
from rgd_hf.scripts.training.best_metric import asked_metric
from rgd_hf.scripts.training.plans import Run, RunArguments, prepare_runs
from rgd_hf.scripts.training.results import print_results, settings_of
from rgd_hf.scripts.training.runs import Begin, checked_trainer, push_runs, rows_of, run_plan

DEFAULTS = {
    "output_dir": "runs/domainbed",
    "learning_rate": 5e-5,
    "max_steps": 5000,
    "eval_strategy": "steps",
    "eval_steps": 250,
    "save_steps": 250,
    "save_total_limit": 1,
    "logging_strategy": "no",
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "weight_decay": 0.0,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "report_to": "none",
    "remove_unused_columns": False,
    "dataloader_pin_memory": torch.accelerator.is_available(),
}
TASKS = {"image": "image-classification", "text": "text-classification"}
STUDY = "a study trains several: see benchmarks/README.md"
MOVED = {
    "algorithms": f"one training has one --algorithm; {STUDY} (methods).",
    "reweightings": f"give --reweighting kl, and --compare for ERM beside it; {STUDY} (methods).",
    "n_trials": "a trial is a seed: give --compare --seeds 0 1 2, or `seeds` in a study (see benchmarks/README.md).",
    "first_trial": "a trial is a seed: give --seed, or --compare --seeds 3 4 5.",
    "n_draws": f"{STUDY} (random_search).",
    "selection": "the model is chosen by training-domain validation; the report of a study has DomainBed's three rules (`pairs` "
    "for leave_one_domain_out, see benchmarks/README.md).",
    "shard": f"{STUDY} (--shard).",
    "report_only": "python -m benchmarks.report reads the lines of a study (see benchmarks/README.md).",
    "dataset_name": "give --dataset owner/name.",
    "pretrained": "give --weights none for random weights.",
}  # fmt: skip
ARGUMENTS = (
    DomainArguments,
    BackboneArguments,
    AlgorithmArguments,
    RunArguments,
    ReweightedTrainingArguments,
)


def check(algorithm: AlgorithmArguments, args: ReweightedTrainingArguments) -> None:
    """Raise `UserError` where settings are not allowed together; say which have no effect."""
    if args.eval_strategy != "steps":
        raise UserError("--eval_strategy must be steps: the model is one of the checkpoints evaluated.")
    interval = int(args.eval_steps or 0)
    if args.max_steps < 1 or interval < 1 or args.max_steps % interval:
        raise UserError(
            f"--max_steps {args.max_steps} must be a multiple of --eval_steps {args.eval_steps}, so that the last model "
            "is evaluated."
        )
    if args.eval_delay > args.max_steps:
        raise UserError(
            f"--eval_delay {args.eval_delay:g} is beyond the last step (--max_steps {args.max_steps}), and the model is one of the "
            "checkpoints evaluated: give a smaller one, or leave it out."
        )
    check_usable(args, OF_CLASSIFICATION | ORDER | DATA_SEED)
    if args.load_best_model_at_end:
        raise UserError(
            "--load_best_model_at_end: leave it out, the model is that of the best checkpoint without it."
        )
    if asked_metric(args) is not None:
        raise UserError(
            "--metric_for_best_model: leave it out, the best checkpoint is that of the best mean accuracy on validation "
            "rows of the training domains."
        )
    for option in algorithm.idle():
        say(f"note: --{option} has no effect with --algorithm {algorithm.algorithm}.")


def main(argv: list[str] | None = None) -> dict:
    """Run the recipe with the given command-line arguments; what `all_results.json` holds."""
    description = (__doc__ or "").split("\n\n")[0]
    data_args, model_args, algorithm, run_args, training_args = parse_args(
        ARGUMENTS, argv, description=description, defaults=DEFAULTS, moved=MOVED
    )
    check(algorithm, training_args)
    plan = prepare_runs(training_args, run_args, settings_of(data_args, model_args, algorithm))
    if plan.finished:
        return push_runs(plan)
    runs = [dataclasses.replace(run, method=algorithm.method(run.method)) for run in plan.runs]
    plan = dataclasses.replace(plan, runs=tuple(runs))
    with training_args.main_process_first(desc="data preparation"):
        data = load_data(data_args)
    check_held_out(algorithm.held_out, data)
    backbone = load_backbone(model_args, data.kind)
    name = data_args.dataset or Path(data_args.dataset_dir or data_args.data_file or "").name
    experiment = Experiment(
        data,
        make_views(data, backbone, data_args),
        backbone,
        algorithm,
        run_args,
        {"dataset": name, "tags": ["domain-generalization", algorithm.algorithm], "tasks": TASKS[data.kind]},
        model_args.freeze_batch_norm,
        data_args.max_eval_samples,
    )

    def train(run: Run, begin: Begin) -> dict:
        trainer = checked_trainer(experiment.make_trainer, run, plan)
        return experiment.train(run, begin(rows_of(trainer)), trainer)

    results = run_plan(plan, train)
    print_results(f"{name}, held out: {', '.join(experiment.held_out)}", results)
    push_runs(plan)
    return results


if __name__ == "__main__":
    run_recipe(main)
