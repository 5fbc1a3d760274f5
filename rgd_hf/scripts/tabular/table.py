"""The table that a command line names: read, understood, and cut into training, validation and test rows."""

from dataclasses import dataclass, field

from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.messages import say
from rgd_hf.scripts.tabular.columns import ColumnArguments, choose_columns, find_target
from rgd_hf.scripts.tabular.sources import EMBEDDED, load_table
from rgd_hf.scripts.tabular.splits import PreparedTable, limit_rows, without_rare_classes


@dataclass
class TableArguments:
    """Data."""

    data: str | None = field(
        default=None,
        metadata={
            "help": "The table: a csv, tsv, parquet, json or jsonl file, a data set on the Hub (owner/name), or one of "
            f"scikit-learn's {', '.join(EMBEDDED)}."
        },
    )
    target: str | None = field(
        default=None, metadata={"help": "The column to predict. Not needed for scikit-learn's tables."}
    )
    max_rows: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of rows: a random subset, stratified by class. A class that keeps no row is left out, "
            "with a warning."
        },
    )
    test_size: float = field(default=0.2, metadata={"help": "Fraction of the rows for the final test score."})
    validation_size: float = field(
        default=0.2,
        metadata={"help": "Fraction of the remaining rows for validation, which chooses the best epoch."},
    )
    split_seed: int = field(
        default=0,
        metadata={
            "help": "Random seed of the split into test and remaining rows; the validation rows depend on --seed."
        },
    )
    label_noise: float = field(
        default=0.0,
        metadata={
            "help": "Fraction of the training labels that are replaced by a wrong one, drawn with --seed."
        },
    )

    def __post_init__(self):
        if self.max_rows is not None and self.max_rows < 10:
            raise UserError(f"--max_rows must be at least 10, not {self.max_rows}.")
        for name in ("test_size", "validation_size"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"--{name} must lie between 0 and 1, not {getattr(self, name):g}.")


def prepare_table(args: TableArguments, columns_args: ColumnArguments, smoothing: float) -> PreparedTable:
    """Read the table and infer its column types.

    Args:
        args: the table and how it is split.
        columns_args: the user's choices for its columns.
        smoothing: label smoothing factor, which a regression cannot have.

    Raises:
        UserError: there is no such table, or nothing can be learned from it.
    """
    if args.data is None:
        raise UserError(
            "no data: give --data FILE.csv --target COLUMN, a data set of the Hub (owner/name), or one of "
            f"{', '.join(EMBEDDED)}."
        )
    table = load_table(args.data, args.target)

    def warn(message: str) -> None:
        say(f"warning: {message}")

    columns = choose_columns(table.frame, table.target, columns_args, warn)
    frame, target = find_target(table.frame, table.target, columns_args, warn)
    if target.is_regression and smoothing:
        raise UserError("--label_smoothing_factor smooths classes, but this is a regression.")
    y = target.encode(frame[table.target])
    if args.max_rows is not None:
        frame, y = limit_rows(frame, y, target, args.max_rows, args.split_seed)
    frame, y, target = without_rare_classes(
        frame, y, target, drop=columns_args.drop_rare_classes, limited=args.max_rows is not None, warn=warn
    )
    kinds = [column["kind"] for column in columns]
    described = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    task = "regression" if target.is_regression else f"{len(target.classes)} classes"
    say(f"{table.name}: predicting {target.name!r} ({task}) of {len(frame):,} rows from {described} columns")
    sizes = (args.test_size, args.validation_size, args.split_seed)
    return PreparedTable(table.name, frame, y, target, columns, *sizes, table.marks)
