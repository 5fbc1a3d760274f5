"""Train a baseline that is no network on a table: gradient boosting, or a linear model, on the recipe's own splits.

    python benchmarks/tables/baselines.py --data mine.csv --target price --model lightgbm --output_dir runs/lightgbm

The rows and their encoding are those of recipes/tabular.py with the same options and the same seed: so are the names of the
scores, `eval_...` on validation rows, on which boosting stops by its own loss, and `test_...` on test rows.
"""

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # called by its path: what it imports lies in the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.tables.fitting import BASELINES, is_installed
from rgd_hf.scripts.cli import parse_args, run_recipe
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.messages import say
from rgd_hf.scripts.tabular.columns import ColumnArguments
from rgd_hf.scripts.tabular.label_noise import with_label_noise
from rgd_hf.scripts.tabular.predictions import write_predictions
from rgd_hf.scripts.tabular.scores import CLASSIFICATION, REGRESSION, scores
from rgd_hf.scripts.tabular.table import TableArguments, prepare_table
from rgd_hf.scripts.training.results import (
    RESULTS_NAME,
    package_versions,
    read_results,
    settings_of,
    write_results,
)


@dataclass
class BaselineArguments:
    """Model."""

    model: str = field(
        default="hist_gradient_boosting",
        metadata={"help": "The baseline to fit.", "choices": list(BASELINES)},
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of boosting; by default that of the library."}
    )
    leaves: int | None = field(
        default=None, metadata={"help": "Maximum number of leaves per tree; 31 by default."}
    )
    min_leaf: int | None = field(
        default=None, metadata={"help": "Minimum number of rows per leaf; 20 by default."}
    )
    l2: float | None = field(default=None, metadata={"help": "L2 regularization of boosting."})
    strength: float | None = field(
        default=None, metadata={"help": "Inverse of the linear model's L2 regularization; 1 by default."}
    )
    seed: int = field(default=42, metadata={"help": "Random seed of the model and of the validation split."})
    output_dir: str = field(default="runs/baseline", metadata={"help": "Directory for the results."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Discard the results in the output directory and start again."}
    )
    save_predictions: bool = field(
        default=False,
        metadata={"help": "Write predictions.parquet, one row per test row, as recipes/tabular.py does."},
    )

    def settings(self) -> dict[str, Any]:
        """The settings of the model that were given."""
        names = ("learning_rate", "leaves", "min_leaf", "l2", "strength")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


ARGUMENTS = (TableArguments, ColumnArguments, BaselineArguments)


def main(argv: list[str] | None = None) -> dict:
    """Fit the baseline that the command line asks for; what `all_results.json` holds."""
    description = (__doc__ or "").split("\n\n")[0]
    data_args, column_args, args = parse_args(ARGUMENTS, argv, description=description)
    if not is_installed(args.model):
        raise UserError(f"--model {args.model}: the package is not installed: pip install {args.model}.")
    if read_results(args.output_dir) is not None and not args.overwrite_output_dir:
        raise UserError(
            f"the output directory {args.output_dir} already holds a finished run ({RESULTS_NAME}). Choose another "
            "--output_dir, or give --overwrite_output_dir to discard it."
        )
    table = prepare_table(data_args, column_args, smoothing=0.0)
    started = time.perf_counter()
    splits = with_label_noise(table.split(args.seed), data_args.label_noise)
    predict = BASELINES[args.model](splits, args.settings(), args.seed)
    regression, directory = splits.target.is_regression, Path(args.output_dir)
    validation, test = predict(splits.validation), predict(splits.test)
    main_name = next(iter(REGRESSION if regression else CLASSIFICATION))
    os.makedirs(directory, exist_ok=True)
    if args.save_predictions:
        write_predictions(splits, test, directory)
    record: dict[str, Any] = {
        "name": args.model,
        "method": args.model,
        "seconds": round(time.perf_counter() - started, 2),
        **{
            f"eval_{name}": value
            for name, value in scores(splits.validation.y, validation, regression).items()
        },
        **{f"test_{name}": value for name, value in scores(splits.test.y, test, regression).items()},
        "settings": {**settings_of(data_args, column_args, args), "seed": args.seed},
        "versions": package_versions(),
    }
    if not regression:
        record["train_class_counts"] = np.bincount(
            splits.train.y, minlength=len(splits.target.classes)
        ).tolist()
    record["files"] = sorted(path.name for path in directory.iterdir() if path.is_file())
    write_results(directory, record)
    say(f"{args.model}: {main_name} {record[f'test_{main_name}']:.4f} on test rows")
    return record


if __name__ == "__main__":
    run_recipe(main)
