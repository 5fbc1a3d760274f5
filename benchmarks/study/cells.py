"""The cells of a study: which there are, in which order and shard they run, and what tells one from another."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.report.learning_rates import best_factor
from benchmarks.study.adapters import RECIPES
from benchmarks.study.study import Dataset, Method, Study
from rgd_hf.scripts.errors import UserError

TUNING, FINAL = "tuning", "final"
Finished = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        dataset: name.
        method: name.
        stage: `"tuning"` or `"final"`.
        seed: of the run.
        factor: of the learning rate; None for a final run whose learning rate is still to be chosen.
        scale: what the learning rate is multiplied by beside it.
    """

    dataset: str
    method: str
    stage: str
    seed: int
    factor: float | None = None
    scale: float = 1.0

    @property
    def name(self) -> str:
        """Unique within a study."""
        factor = "?" if self.factor is None else f"{self.factor:g}"
        return f"{self.dataset}/{self.method}/lr{factor}/seed{self.seed}/{self.stage}"


class CannotRun(Exception):
    """A cell lacks the result of another that did not finish."""


def plan(study: Study, shard: tuple[int, int] = (1, 1)) -> list[Cell]:
    """The cells of a shard: tuning first, then seed by seed all data sets and methods, so that any part is balanced.

    Shards need nothing of each other: all cells of a data set and method, and those of a method whose learning rate
    its runs scale, are in one.
    """
    number, count = shard
    groups: dict[tuple[str, str], int] = {}
    for data in study.datasets.values():
        for name in data.methods:
            groups.setdefault((data.name, study.methods[name].tuned_as), len(groups))

    def mine(data: Dataset, method: Method) -> bool:
        return groups[data.name, method.tuned_as] % count == number - 1

    every = [
        (data, study.methods[name])
        for data in study.datasets.values()
        for name in data.methods
        if mine(data, study.methods[name])
    ]
    tuning = [
        Cell(data.name, method.name, TUNING, seed, factor)
        for data, method in every
        if is_tuned(data, method)
        for seed in data.tuning_seeds
        for factor in data.learning_rate_factors
    ]
    seeds = sorted({seed for data, _ in every for seed in data.seeds})
    final = [
        Cell(data.name, method.name, FINAL, seed)
        for seed in seeds
        for data, method in every
        if seed in data.seeds
    ]
    return tuning + final


def is_tuned(data: Dataset, method: Method) -> bool:
    """Whether a method has tuning runs of its own on this data set."""
    return method.scale_learning_rate_by is None and len(data.learning_rate_factors) > 1


def resolve_cell(study: Study, cell: Cell, finished: Finished) -> Cell:
    """A final cell with the learning rate that tuning chose, once the runs that this takes are finished.

    Which one that is says `learning_rates.best_factor`.

    Args:
        study: of the cell.
        cell: any; those of tuning stay as they are.
        finished: records by identity.

    Raises:
        CannotRun: no learning rate has finished in tuning, or not the run whose mean weight is needed.
    """
    if cell.stage == TUNING:
        return cell
    data, method = study.datasets[cell.dataset], study.methods[cell.method]
    factor = _best_factor(study, data, method.tuned_as, finished)
    source = method.scale_learning_rate_by
    if source is None:
        return Cell(cell.dataset, cell.method, FINAL, cell.seed, factor)
    other = Cell(cell.dataset, source, FINAL, cell.seed, factor)
    record = finished.get(identity(study, other))
    if record is None:
        raise CannotRun(f"needs the mean weight of {other.name}, which did not finish")
    scale = record["metrics"].get("weight_mean")
    if scale is None:
        raise CannotRun(f"needs the mean weight of {other.name}, which logged none")
    return Cell(cell.dataset, cell.method, FINAL, cell.seed, factor, scale)


def _best_factor(study: Study, data: Dataset, method: str, finished: Finished) -> float:
    factors = data.learning_rate_factors
    if len(factors) == 1:
        return factors[0]
    scores: dict[float, dict[int, float]] = {factor: {} for factor in factors}
    for factor, by_seed in scores.items():
        for seed in data.tuning_seeds:
            run = finished.get(identity(study, Cell(data.name, method, TUNING, seed, factor)))
            if run is not None:
                by_seed[seed] = run["score"]
    best = best_factor(scores, data.tuning_seeds)
    if best is None:
        raise CannotRun(f"no learning rate of {data.name}/{method} has finished on all tuning seeds")
    return best


def options_of(study: Study, cell: Cell) -> dict[str, Any]:
    """The options that the recipe is called with, but for the output directory; paths of packages unresolved.

    Raises:
        CannotRun: the method is not for this kind of data.
    """
    data, method = study.datasets[cell.dataset], study.methods[cell.method]
    tuning = cell.stage == TUNING
    options = {
        "reweighting": "none",
        **data.options,
        **(data.tuning_options if tuning else {}),
        **method.options,
    }
    options["learning_rate"] = data.learning_rate * (cell.factor or 1.0) * cell.scale
    try:
        return RECIPES[data.recipe].options(options, cell.seed, tuning, data.holdout_fraction)
    except UserError as error:
        raise CannotRun(str(error)) from error


def identity(study: Study, cell: Cell) -> str:
    """A hash of all that decides what a cell's run gives but for code and packages: a changed study has other cells."""
    data = study.datasets[cell.dataset]
    content = [cell.name, data.recipe, data.score, options_of(study, cell)]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode("utf-8")).hexdigest()[:16]
