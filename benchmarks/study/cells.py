"""The cells of a study: which there are, in which order and shard they run, and what tells one from another."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from benchmarks.report.choice import best_candidate
from benchmarks.study.scripts import Script, load_script
from benchmarks.study.specification import Dataset, Method, Options, Study, grid

TUNING, FINAL, PAIR = "tuning", "final", "pair"
LOGS = 0.05
"""A final run logs at every twentieth of its steps."""
Finished = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Candidate:
    """Settings that tuning may choose.

    Attributes:
        label: short, unique among those of a data set and method: `"lr0.5"`, `"lr2,tau3"`, `"draw4"`.
        factor: factor of the learning rate; None for a method without one.
        options: the others, as JSON, so that cells can be compared.
    """

    label: str
    factor: float | None = None
    options: str = "{}"


@dataclass(frozen=True)
class Cell:
    """One training of a study.

    Attributes:
        dataset: name.
        method: name.
        stage: `"tuning"`, `"final"`, or `"pair"` for one that only selects checkpoints of others.
        seed: random seed of the run.
        candidate: its settings; None for a final run whose settings are still to be chosen.
        part: part of the data set, `""` where it has none; of a pair both, with `+` between.
        scale: what the learning rate is multiplied by beside its factor.
    """

    dataset: str
    method: str
    stage: str
    seed: int
    candidate: Candidate | None = None
    part: str = ""
    scale: float = 1.0

    @property
    def name(self) -> str:
        """Unique within a study."""
        settings = "lr?" if self.candidate is None else self.candidate.label
        parts = [self.dataset, self.method, settings, *([self.part] if self.part else [])]
        return "/".join([*parts, f"seed{self.seed}", self.stage])


class CannotRun(Exception):
    """A cell lacks the result of another that did not finish."""


def script_of(data: Dataset, method: Method) -> Script:
    """The script that trains a method on a data set."""
    return load_script(method.recipe or data.recipe)


def candidates(data: Dataset, method: Method, seed: int = 0) -> list[Candidate]:
    """What tuning tries; with a random search, what a seed draws."""
    if data.random_search is not None:
        return [_draw(data, method, number, seed) for number in range(data.random_search.draws)]
    factors: list[float | None] = [None]
    if method.recipe is None or "learning_rate" in method.options:
        factors = [*data.learning_rate_factors]
    found = []
    for factor in factors:
        for options in grid(method.tune):
            parts = [] if factor is None else [f"lr{factor:g}"]
            parts += [
                f"{name}{value:g}" if isinstance(value, float) else f"{name}{value}"
                for name, value in options.items()
            ]
            found.append(Candidate(",".join(parts) or "default", factor, json.dumps(options)))
    return found


def _draw(data: Dataset, method: Method, number: int, seed: int) -> Candidate:
    """The first draw is what is given. Every option has a generator of its own: methods share the draws of common ones."""
    assert data.random_search is not None
    script = script_of(data, method)
    options: Options = {}
    for name, space in data.random_search.space.items():
        if number and script.knows(name):
            digest = hashlib.sha256(f"{data.name}/{number}/{seed}/{name}".encode()).digest()
            random = np.random.default_rng(int.from_bytes(digest[:8], "little"))
            ((kind, values),) = space.items()
            if kind == "choice":
                options[name] = values[int(random.integers(len(values)))]
            elif kind == "uniform":
                options[name] = float(random.uniform(*values))
            elif kind == "log_uniform":
                options[name] = float(np.exp(random.uniform(*np.log(values))))
            else:
                options[name] = int(2 ** random.uniform(*values))
    return Candidate(f"draw{number}", 1.0 if method.recipe is None else None, json.dumps(options))


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
    every = [
        (data, study.methods[name])
        for data in study.datasets.values()
        for name in data.methods
        if groups[data.name, study.methods[name].tuned_as] % count == number - 1
    ]
    tuning = [
        Cell(data.name, method.name, TUNING, seed, candidate, part)
        for data, method in every
        if is_tuned(data, method)
        for seed in data.tuning_seeds
        for candidate in candidates(data, method)
        for part in data.part_values
    ]
    seeds = sorted({seed for data, _ in every for seed in data.seeds})
    final = [
        cell
        for seed in seeds
        for data, method in every
        if seed in data.seeds
        for candidate in (candidates(data, method, seed) if data.random_search else [None])
        for cell in _final(data, method, seed, candidate)
    ]
    return tuning + final


def _final(data: Dataset, method: Method, seed: int, candidate: Candidate | None) -> list[Cell]:
    found = [Cell(data.name, method.name, FINAL, seed, candidate, part) for part in data.part_values]
    if data.pairs:
        pairs = ("+".join(pair) for pair in combinations(data.part_values, 2))
        found += [Cell(data.name, method.name, PAIR, seed, candidate, pair) for pair in pairs]
    return found


def is_tuned(data: Dataset, method: Method) -> bool:
    """Whether a method has tuning runs of its own on this data set."""
    return (
        method.scale_learning_rate_by is None
        and data.random_search is None
        and len(candidates(data, method)) > 1
    )


def resolve_cell(study: Study, cell: Cell, finished: Finished) -> Cell:
    """A final cell with the settings that tuning chose, once the runs that this takes are finished.

    Which ones these are says `benchmarks.report.choice`.

    Args:
        study: the study of the cell.
        cell: any; those of tuning stay as they are.
        finished: records by identity.

    Raises:
        CannotRun: no candidate has finished in tuning, or not the run whose mean weight is needed.
    """
    data, method = study.datasets[cell.dataset], study.methods[cell.method]
    source = method.scale_learning_rate_by
    if cell.candidate is not None and source is None:
        return cell
    if cell.candidate is None:
        chosen = _chosen(study, data, study.methods[method.tuned_as], cell.part, finished)
        cell = replace(cell, candidate=chosen)
    if source is None:
        return cell
    other = replace(cell, method=source)
    record = finished.get(identity(study, other))
    if record is None:
        raise CannotRun(f"needs the mean weight of {other.name}, which did not finish")
    scale = record["metrics"].get("weight_mean")
    if scale is None:
        raise CannotRun(f"needs the mean weight of {other.name}, which logged none")
    return replace(cell, scale=scale)


def _chosen(study: Study, data: Dataset, method: Method, part: str, finished: Finished) -> Candidate:
    """Of a part by its own runs alone: with a domain held out, those with another one held out have seen it."""
    tried = candidates(data, method)
    if len(tried) == 1:
        return tried[0]
    scores: dict[str, dict[tuple[int, str], float]] = {}
    needed = [(seed, one) for seed in data.tuning_seeds for one in part.split("+")]
    for candidate in tried:
        for seed, one in needed:
            run = finished.get(identity(study, Cell(data.name, method.name, TUNING, seed, candidate, one)))
            if run is not None:
                scores.setdefault(candidate.label, {})[seed, one] = run["score"]
    best = best_candidate(scores, needed)
    if best is None:
        where = "/".join([data.name, method.name, *([part] if part else [])])
        raise CannotRun(f"no settings of {where} have finished on all tuning seeds")
    return next(candidate for candidate in tried if candidate.label == best)


def options_of(study: Study, cell: Cell) -> Options:
    """The options that the script is called with, but for the output directory; paths of packages unresolved."""
    data, method = study.datasets[cell.dataset], study.methods[cell.method]
    script, tuning, own = script_of(data, method), cell.stage == TUNING, method.recipe is not None
    fixed: Options = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "save_models": False}
    after: Options = {"seed": cell.seed}
    if tuning and script.knows("holdout_fraction"):
        # Nothing reads its curves; without them `eval_steps` means nothing, and must not tell one run from another.
        after |= {"holdout_fraction": data.holdout_fraction, "eval_strategy": "no", "eval_steps": None}
        after["logging_strategy"] = "no"
    elif not tuning:
        after["save_predictions"] = True
        if script.defaults.get("logging_strategy") != "epoch":
            fixed |= {"logging_strategy": "steps", "logging_steps": LOGS}
    options = {**fixed, "reweighting": "none", **data.data}
    if not own:
        options |= {**data.options, **(data.tuning_options if tuning else {})}
    options |= method.options
    if cell.candidate is not None:
        drawn = json.loads(cell.candidate.options)
        if cell.candidate.factor is not None:
            rate = method.options["learning_rate"] if own else data.learning_rate
            rate = drawn.pop("learning_rate", rate * cell.candidate.factor)
            options["learning_rate"] = rate * cell.scale
        options |= drawn
    if cell.part:
        ((option, _),) = data.parts.items()
        options[option] = cell.part.split("+")
    options |= after
    mine = {*data.data, *data.options, *data.tuning_options, *method.options, *method.tune}
    return {
        name: value
        for name, value in options.items()
        if value is not None and (name in mine or script.knows(name))
    }


def identity(study: Study, cell: Cell) -> str:
    """A hash of what a study says of a cell's run: a changed study has other cells.

    Code and packages are not in it, nor what the files have that options name, nor the score that settings are chosen by
    (`chooses_as_now`).
    """
    return _identity(
        study.datasets[cell.dataset], study.methods[cell.method], _options_as_json(study, cell), cell
    )


def chooses_as_now(study: Study, line: Mapping[str, Any]) -> bool:
    """Whether the score by which a finished line chooses settings is the study's: `tuning_score` may have been changed.

    Lines of a random search once did not tell it, and are taken as they are.
    """
    data = study.datasets.get(line["dataset"])
    name = line.get("score_name" if line["stage"] == TUNING else "validation_score_name")
    return data is None or name is None or name == data.chosen_by


def _options_as_json(study: Study, cell: Cell) -> str:
    return json.dumps(options_of(study, cell), sort_keys=True, default=str)


def _identity(data: Dataset, method: Method, options: str, cell: Cell) -> str:
    content = json.dumps([cell.name, method.recipe or data.recipe, data.score, options])
    return hashlib.sha256(content.encode("utf-8")).hexdigest()[:16]
