"""What a run predicts, at every checkpoint, for the environments that it was not trained on."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rgd_hf.scripts.predictions import PREDICTIONS


class CheckpointPredictions:
    """Predictions for the `in` split of every held-out environment, taken from the evaluations of a training.

    Args:
        held_out: names of the environments.
    """

    def __init__(self, held_out: Sequence[str]):
        self.splits = {f"{name}_in": name for name in held_out}
        self._tables: dict[tuple[int, str], pd.DataFrame] = {}

    def add(self, step: int, split: str, table: pd.DataFrame, rows: np.ndarray) -> None:
        """Keep one evaluation, if it is of such a split; a later one of the same step takes its place.

        Args:
            step: of the model.
            split: `<environment>_in` or `<environment>_out`.
            table: as `rgd_hf.scripts.predictions.predictions_table` makes it.
            rows: of the environment that were evaluated, int `[samples]`, in the order of the table.
        """
        if split in self.splits:
            head = pd.DataFrame({"step": step, "environment": self.splits[split], "row": rows})
            self._tables[step, split] = pd.concat([head, table], axis=1)

    def forget(self) -> None:
        """Drop what is kept: the run's model is another than those that were evaluated."""
        self._tables.clear()

    def table(self) -> pd.DataFrame:
        """One row a sample and checkpoint, by step, then in the order of `held_out` and of the evaluation.

        Returns:
            The columns `step`, `environment`, `row` (the sample's number in its environment, from 0), and those of
            `rgd_hf.scripts.predictions.predictions_table`.

        Raises:
            ValueError: nothing was evaluated.
        """
        order = list(self.splits)
        keys = sorted(self._tables, key=lambda key: (key[0], order.index(key[1])))
        return pd.concat([self._tables[key] for key in keys], ignore_index=True)


def predictions_file(directory: Path, run: str) -> Path:
    """Where a sweep keeps the predictions of a run.

    Args:
        directory: of the sweep.
        run: its name, which may hold anything that a domain is called by.
    """
    name = re.sub(r"[^\w.-]", "_", run)
    return directory / PREDICTIONS / f"{name}.parquet"
