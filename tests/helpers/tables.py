"""Small tables, and trainings on them of a second."""

from pathlib import Path

import numpy as np
import pandas as pd

import tabular
from rgd_hf import ReweightedTrainingArguments
from rgd_hf.scripts.tabular.columns import ColumnArguments, choose_columns, find_target
from rgd_hf.scripts.tabular.options import NetworkArguments
from rgd_hf.scripts.tabular.splits import PreparedTable, Splits


def learnable(rows: int = 240, regression: bool = False) -> pd.DataFrame:
    """A small table of all types whose target follows from two columns."""
    draw = np.random.default_rng(0)
    size, city = draw.normal(size=rows), draw.choice(["Oslo", "Rome", "Lima"], rows)
    score = 2 * size + (city == "Oslo")
    size[::11] = np.nan
    return pd.DataFrame(
        {
            "size": size,
            "city": city,
            "noise": draw.normal(size=rows),
            "flag": draw.random(rows) < 0.5,
            "y": score if regression else np.where(score > 0.3, "big", "small"),
        }
    )


def splits_of(frame: pd.DataFrame) -> Splits:
    columns = choose_columns(frame, "y", ColumnArguments(), print)
    frame, target = find_target(frame, "y", ColumnArguments(), print)
    return PreparedTable("t", frame, target.encode(frame["y"]), target, columns).split(0)


def arguments(tmp_path: Path, **options) -> ReweightedTrainingArguments:
    defaults = {
        **tabular.DEFAULTS,
        "output_dir": str(tmp_path / "out"),
        "num_train_epochs": 6,
        "learning_rate": 1e-2,
        "use_cpu": True,
    }
    return ReweightedTrainingArguments(**{**defaults, **options})


SIZES = NetworkArguments(n_blocks=1, d_block=16, k=3, n_bins=4, d_embedding=4)
