"""Compare re-weighted networks with gradient boosting on tables: your own file, a data set of the Hub, or an embedded one.

    accelerate launch recipes/tabular.py --data mine.csv --target price
    accelerate launch recipes/tabular.py --data breast_cancer digits --networks all --seeds 5

Every network is trained with ERM, re-weighted losses, focal loss and class weights, beside gradient boosting and a
linear model on the same encoded splits. The report is printed and written to `summary.json` and `scores.png` in the
output directory; each network of seed 0 is saved there with its preprocessing and predicts a DataFrame:

    model = transformers.AutoModel.from_pretrained("runs/tabular/mine/mlp_kl", trust_remote_code=True)
    model.predict(frame)
"""

import gc
import json
import shlex
import sys
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate import PartialState

from rgd_hf import ReweightedTrainingArguments
from rgd_hf.scripts.cli import parse_args, run_recipe
from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.results import package_versions, say, settings_of, without_tokens, write_json
from rgd_hf.scripts.runs import REPORTING_SETTINGS
from rgd_hf.scripts.tabular.columns import ColumnArguments
from rgd_hf.scripts.tabular.options import NetworkArguments
from rgd_hf.scripts.tabular.plot import plot_scores
from rgd_hf.scripts.tabular.report import differences, print_report, ranks, summarize
from rgd_hf.scripts.tabular.sources import EMBEDDED, Table, load_table
from rgd_hf.scripts.tabular.study import Study, StudyArguments, deciding_settings

SUMMARY_NAME = "summary.json"
PLOT_NAME = "scores.png"
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


@dataclass
class DataArguments:
    """Data."""

    data: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Tables: csv, tsv, parquet, json or jsonl files, data sets of the Hub (owner/name), or "
            f"scikit-learn's {', '.join(EMBEDDED)}."
        },
    )
    target: list[str] = field(
        default_factory=list,
        metadata={"help": "The column to predict: one for all tables, or one each. Embedded tables know it."},
    )
    max_rows: int | None = field(
        default=None, metadata={"help": "Use a random subset of so many rows of larger tables."}
    )


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the recipe with the given command-line arguments and return one record a run."""
    argv = list(sys.argv[1:] if argv is None else argv)
    data_args, column_args, network_args, study_args, training_args = parse_args(
        [DataArguments, ColumnArguments, NetworkArguments, StudyArguments, ReweightedTrainingArguments],
        argv,
        description=(__doc__ or "").split("\n\n")[0],
        defaults=DEFAULTS,
    )
    if training_args.push_to_hub:
        raise UserError(
            "--push_to_hub: a study has many models. Push the one you choose: AutoModel.from_pretrained(FOLDER, "
            "trust_remote_code=True).push_to_hub(NAME)."
        )
    if training_args.eval_strategy == "no":
        raise UserError(
            "--eval_strategy no: the best epoch is that of the best score on the validation split."
        )
    targets = targets_of(data_args)
    tables = [
        limited(load_table(name, target), data_args.max_rows) for name, target in zip(data_args.data, targets)
    ]
    names = [table.name for table in tables]
    if len(set(names)) < len(names):
        raise UserError(
            f"several tables have the same name (found {listed(names)}), by which results are told apart. Rename the "
            "files, or run each with its own --output_dir."
        )
    study = Study(study_args, network_args, column_args, training_args)
    of_training = {
        name: value
        for name, value in settings_of(training_args).items()
        if name != "reweighting" and not name.startswith(REPORTING_SETTINGS)
    }
    settings = {**deciding_settings(column_args, network_args, study_args), **of_training}
    settings["focal_gamma"] = training_args.focal_gamma
    study.start(settings)
    # Every training starts with a garbage collection, which would walk through all modules again and again.
    gc.freeze()
    try:
        for table in tables:
            study.run(table)
    finally:
        gc.unfreeze()
    if PartialState().is_main_process:
        report(study, argv, settings)
    PartialState().wait_for_everyone()
    return study.records


def targets_of(args: DataArguments) -> list[str | None]:
    """The target of each table, None where it is not given."""
    if not args.data:
        raise UserError(
            "no data: give --data FILE.csv --target COLUMN, a data set of the Hub (owner/name), or one of "
            f"{', '.join(EMBEDDED)}."
        )
    if not args.target:
        return [None] * len(args.data)
    if len(args.target) == 1:
        return [*args.target * len(args.data)]
    if len(args.target) != len(args.data):
        raise UserError(
            f"{len(args.data)} tables and {len(args.target)} targets: give one --target, or one each."
        )
    return list(args.target)


def limited(table: Table, max_rows: int | None) -> Table:
    """`table`, or a note on it that a subset of its rows is to be used, which its name tells too."""
    if max_rows is None or max_rows >= len(table.frame):
        return table
    if max_rows < 10:
        raise UserError(f"--max_rows must be at least 10, not {max_rows}.")
    return replace(table, name=f"{table.name}_{max_rows}", max_rows=max_rows)


def report(study: Study, argv: list[str], settings: dict[str, Any]) -> None:
    """Print what the study found; write it, with the command, to the output directory."""
    records = study.records
    print_report(records)
    path = study.directory / SUMMARY_NAME
    commands = json.loads(path.read_text(encoding="utf-8"))["commands"] if path.is_file() else []
    command = shlex.join(["accelerate", "launch", "recipes/tabular.py", *without_tokens(argv)])
    write_json(
        path,
        {
            "commands": [*(c for c in commands if c != command), command],
            "settings": settings,
            "versions": package_versions(),
            "scores": summarize(records),
            "paired_differences": differences(records),
            "ranks": ranks(records),
        },
    )
    plot_scores(records, study.directory / PLOT_NAME)
    say("", f"Runs, summary and picture are in {study.directory}.")


if __name__ == "__main__":
    run_recipe(main)
