"""Train a network on a table with re-weighted losses: your own file, a data set of the Hub, or an embedded table.

    accelerate launch recipes/tabular.py --data mine.csv --target price --compare --seeds 0 1 2 3 4
    accelerate launch recipes/tabular.py --data breast_cancer --network tabm --output_dir runs/tabm

The best epoch is chosen on validation rows, by accuracy or RMSE, or as --metric_for_best_model says, and scores are computed
once, on test rows. The network is saved with its preprocessing and predicts a DataFrame:

    model = transformers.AutoModel.from_pretrained("runs/tabm", trust_remote_code=True)
    model.predict(frame)

For gradient boosting and other baselines on the same splits, tuning, and several tables, run a study: see benchmarks/.
"""

import os

# Idle OpenMP threads shall sleep: spinning, their default, makes small steps many times slower beside another process on these cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import gc
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from rgd_hf import ReweightedTrainingArguments
from rgd_hf.scripts.cli import parse_args, run_recipe
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.ranges import DATA_SEED, OF_CLASSIFICATION, ORDER, check_usable
from rgd_hf.scripts.tabular.card import write_card
from rgd_hf.scripts.tabular.columns import ColumnArguments, shown_columns
from rgd_hf.scripts.tabular.configuration import ATTENTION_HEADS, NETWORKS
from rgd_hf.scripts.tabular.hard_examples import list_hard_rows
from rgd_hf.scripts.tabular.label_noise import with_label_noise
from rgd_hf.scripts.tabular.options import NetworkArguments
from rgd_hf.scripts.tabular.predictions import write_predictions
from rgd_hf.scripts.tabular.scores import better_is_larger, scores, selecting_score
from rgd_hf.scripts.tabular.table import TableArguments, prepare_table
from rgd_hf.scripts.tabular.training import train_network
from rgd_hf.scripts.training.plans import Run, RunArguments, prepare_runs
from rgd_hf.scripts.training.results import print_results, settings_of
from rgd_hf.scripts.training.runs import Begin, run_plan
from rgd_hf.weightings.choice import weighting_of

DEFAULTS = {
    "output_dir": "runs/tabular",
    "learning_rate": 1e-3,
    "num_train_epochs": 100.0,
    "per_device_train_batch_size": 256,
    "per_device_eval_batch_size": 4096,
    "weight_decay": 1e-3,
    "lr_scheduler_type": "constant",
    "eval_strategy": "epoch",
    "save_strategy": "no",
    "logging_strategy": "epoch",
    "report_to": "none",
    "disable_tqdm": True,
    # The library itself stops at a NaN loss; the filter would wait for the device in every step.
    "logging_nan_inf_filter": False,
}
STUDY = "a study trains several (see benchmarks/study)."
MOVED = {
    "networks": f"one training has one --network; {STUDY}",
    "objectives": f"one training has one --reweighting (none, kl, focal, ...) and --class_weights; {STUDY}",
    "rivals": "gradient boosting and linear models are methods of a study (see benchmarks/tables).",
    "tune": "a study tunes (see benchmarks/study).",
    "first_seed": "give --seed, or --compare --seeds 0 1 2.",
} | {
    name: f'give --network_args \'{{"{name}": ...}}\'.'
    for name in (
        "k", "num_embeddings", "d_embedding", "n_bins", "pretrain_epochs", "mask_rate", "reweight_pretraining"
    )
}  # fmt: skip


@dataclass
class ModelArguments:
    """Network."""

    network: str = field(default="mlp", metadata={"help": "Kind of network.", "choices": list(NETWORKS)})
    n_blocks: int | None = field(
        default=None, metadata={"help": "Number of blocks; by default that of the kind of network."}
    )
    d_block: int | None = field(
        default=None, metadata={"help": "Width of a block; by default that of the kind of network."}
    )
    dropout: float | None = field(
        default=None, metadata={"help": "Dropout rate; by default that of the kind of network."}
    )
    network_args: dict | str | None = field(
        default=None,
        metadata={
            "help": "Further settings of the network, as JSON: k (number of members of the TabM ensemble), num_embeddings "
            "(embeddings of numeric features: auto, none, piecewise_linear, periodic), d_embedding (their size), n_bins (of "
            "piecewise_linear), pretrain_epochs (self-supervised: masked features are reconstructed), mask_rate (fraction of "
            "the features that are masked in it, above 0 and below 1), reweight_pretraining (true re-weights its losses too)."
        },
    )
    patience: int = field(
        default=16, metadata={"help": "Epochs without a better validation score before training stops."}
    )

    def __post_init__(self):
        if isinstance(self.network_args, str):
            try:
                self.network_args = json.loads(self.network_args)
            except ValueError as error:
                raise UserError(f"--network_args is not valid JSON: {error}") from error
        given: Any = self.network_args or {}
        known = [name for name in NetworkArguments.__dataclass_fields__ if not hasattr(type(self), name)]
        if not isinstance(given, dict) or not set(given) <= set(known):
            raise UserError(f"--network_args must be a JSON object of {', '.join(known)}, not {given!r}.")
        self.sizes()
        if self.network == "ft_transformer" and (self.d_block or 0) % ATTENTION_HEADS:
            raise UserError(
                f"--d_block must be a multiple of the FT-Transformer's {ATTENTION_HEADS} attention heads, not {self.d_block}."
            )

    def sizes(self) -> NetworkArguments:
        """What the network is built from."""
        more: Any = self.network_args or {}
        return NetworkArguments(
            n_blocks=self.n_blocks, d_block=self.d_block, dropout=self.dropout, patience=self.patience, **more
        )


ARGUMENTS = (TableArguments, ColumnArguments, ModelArguments, RunArguments, ReweightedTrainingArguments)


def main(argv: list[str] | None = None) -> dict:
    """Run the recipe with the given command-line arguments; what `all_results.json` holds."""
    description = (__doc__ or "").split("\n\n")[0]
    data_args, column_args, model_args, run_args, training_args = parse_args(
        ARGUMENTS, argv, description=description, defaults=DEFAULTS, moved=MOVED
    )
    if training_args.push_to_hub:
        raise UserError(
            "--push_to_hub: push the finished model by AutoModel.from_pretrained(OUTPUT_DIR, "
            "trust_remote_code=True).push_to_hub(NAME)."
        )
    if training_args.eval_strategy == "no":
        raise UserError(
            "--eval_strategy no: the best epoch is that of the best score on the validation split."
        )
    by_epoch = training_args.eval_strategy == "epoch"
    end = training_args.max_steps if training_args.max_steps > 0 else training_args.num_train_epochs
    # The number of steps of an epoch is known later.
    if by_epoch == (training_args.max_steps <= 0) and training_args.eval_delay > end:
        raise UserError(
            f"--eval_delay {training_args.eval_delay:g} is beyond the end of the training ({end:g}), and the best epoch is one that "
            "was evaluated: give a smaller one, or leave it out."
        )
    check_usable(training_args, OF_CLASSIFICATION | ORDER | DATA_SEED)
    if training_args.save_strategy != "no":
        raise UserError(
            "--save_strategy: the best epoch is kept in memory and saved at the end; leave it out."
        )
    if training_args.train_batch_size == 1 and weighting_of(training_args).compares_items:
        raise UserError(
            f"--reweighting {training_args.reweighting} compares the rows of a batch with one another: "
            "--per_device_train_batch_size must be at least 2."
        )
    plan = prepare_runs(training_args, run_args, settings_of(data_args, column_args, model_args))
    prepared = prepare_table(data_args, column_args, training_args.label_smoothing_factor)
    score = selecting_score(prepared.target.is_regression, training_args)

    def train(run: Run, begin: Begin) -> dict[str, Any]:
        splits = with_label_noise(prepared.split(run.args.seed), data_args.label_noise)
        trained = train_network(
            splits,
            model_args.network,
            model_args.sizes(),
            run.args,
            record_examples=run_args.hard_examples > 0,
            before_training=lambda: begin({"table": len(prepared.frame)}),
        )
        directory = Path(str(run.args.output_dir))
        if run_args.save_models:
            trained.trainer.save_model(str(directory))
        write_card(trained.trainer, directory, prepared, f"{model_args.network}, {run.method}")
        trained.trainer.save_state()
        if run_args.hard_examples:
            names = shown_columns(prepared.frame, prepared.columns, column_args)
            list_hard_rows(trained, run_args.hard_examples, prepared, splits, names, run.method, directory)
        if run_args.save_predictions and PartialState().is_main_process:
            write_predictions(splits, trained.test, directory)
        found = scores(splits.test.y, trained.test, prepared.target.is_regression)
        record: dict[str, Any] = {
            f"eval_{score}": better_is_larger(score, trained.validation_score),
            "best_epoch": round(trained.best_epoch),
            **{f"test_{name}": value for name, value in found.items()},
        }
        if not prepared.target.is_regression:
            counts = np.bincount(splits.train.y, minlength=len(prepared.target.classes))
            record["train_class_counts"] = counts.tolist()
        return record

    gc.freeze()  # every training starts with a garbage collection, which would walk through all modules again
    try:
        results = run_plan(plan, train)
    finally:
        gc.unfreeze()
    print_results(f"{prepared.name}: scores of the test rows", results)
    return results


if __name__ == "__main__":
    run_recipe(main)
