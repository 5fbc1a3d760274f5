"""Train on all domains but one, with the parts of `recipes/domainbed.py`, and score the checkpoint that training domains choose.

    python benchmarks/domains/held_out.py --dataset rotated_digits --held_out 0 --algorithm coral --reweighting kl

One training with the recipe's splits, batches and model of a trial, which is `--seed`. The checkpoint is the one with the
best mean accuracy on the training domains' validation rows (`eval_validation_accuracy`); `eval_accuracy` is its accuracy on the
held-out domain. The record has all checkpoints too, for other rules.
"""

import gc
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # called by its path: what it imports lies in the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.study.scripts import load_module
from rgd_hf import ReweightedTrainingArguments
from rgd_hf.scripts.cli import parse_args, run_recipe
from rgd_hf.scripts.domains.algorithms import ALGORITHMS
from rgd_hf.scripts.domains.environments import check_held_out
from rgd_hf.scripts.domains.predictions import CheckpointPredictions
from rgd_hf.scripts.domains.selection import training_domain_validation
from rgd_hf.scripts.domains.sweep import Job
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.predictions import PREDICTIONS, write_table
from rgd_hf.scripts.results import settings_of, write_json, write_results

domainbed = load_module("recipes/domainbed.py")
DEFAULTS = domainbed.DEFAULTS


@dataclass
class HeldOutArguments:
    """Algorithm and held-out domain."""

    held_out: list[str] = field(
        default_factory=list,
        metadata={"help": "The domain to hold out; two for leave-one-domain-out selection."},
    )
    algorithm: str = field(
        default="erm", metadata={"help": "What trains on the others.", "choices": list(ALGORITHMS)}
    )
    save_predictions: bool = field(
        default=False,
        metadata={"help": "Write predictions.parquet: one row a sample of the held-out domain."},
    )


ARGUMENTS = (domainbed.DataArguments, domainbed.ModelArguments, HeldOutArguments, ReweightedTrainingArguments)


def main(argv: list[str] | None = None) -> dict:
    """Train once; what `all_results.json` holds."""
    data_args, model_args, chosen, training = parse_args(
        ARGUMENTS, argv, description=(__doc__ or "").split("\n\n")[0], defaults=DEFAULTS
    )
    if len(chosen.held_out) not in (1, 2):
        raise UserError(f"--held_out must be one domain, or two, not {len(chosen.held_out)}.")
    data = domainbed.load_data(data_args)
    held_out = tuple(check_held_out(chosen.held_out, data))
    experiment = domainbed.make_experiment(data, data_args, model_args, training)
    job = Job(chosen.algorithm, training.reweighting, training.seed, 0, held_out)
    kept = CheckpointPredictions(held_out) if chosen.save_predictions and len(held_out) == 1 else None
    run = {"name": job.title, **experiment.train(job, kept)}
    directory = Path(str(training.output_dir))
    record: dict[str, Any] = {
        "name": chosen.algorithm,
        "method": f"{ALGORITHMS[chosen.algorithm].title}, {training.reweighting}",
        **{name: run[name] for name in ("seconds", "checkpoints", "hyper_parameters", "versions")},
        "settings": settings_of(data_args, model_args, chosen, training),
    }
    choice = training_domain_validation([run], held_out[0], data.names) if len(held_out) == 1 else None
    if choice is not None:
        record |= {"eval_accuracy": choice.accuracy, "eval_ece": choice.ece}
        record["eval_validation_accuracy"] = choice.validation
        if kept is not None:
            table = kept.table()
            write_table(table[table["step"] == choice.step], directory / f"{PREDICTIONS}.parquet")
    write_json(directory / "trainer_state.json", {"log_history": _log(run, data.names)})
    write_results(directory, record)
    del experiment
    gc.collect()
    return record


def _log(run: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """The training log, with the mean loss on the training domains' validation rows as `eval_loss`."""
    training = [name for name in names if name not in run["held_out"]]
    checkpoints = [
        {"step": point["step"], "eval_loss": float(np.mean([point[f"{name}_out_loss"] for name in training]))}
        for point in run["checkpoints"]
    ]
    return [*run.get("training_log", []), *checkpoints]


if __name__ == "__main__":
    run_recipe(main)
