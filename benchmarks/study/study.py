"""A study: data sets x methods x learning rates x seeds, read from a YAML file and checked before anything is trained."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report.lines import OF_A_METHOD
from benchmarks.study.adapters import RECIPES, SET_BY_THE_STUDY
from rgd_hf.scripts.cli import check_option_names
from rgd_hf.scripts.errors import UserError, listed

BASELINE, NO_WEIGHTS = "erm", "none"
SHARED = ("seeds", "tuning_seeds", "learning_rate_factors", "holdout_fraction")
OF_STUDY = ("datasets", "methods", "time_budget", *SHARED)
OF_DATASET = (
    "recipe", "score", "options", "tuning_options", "methods", *SHARED,
)  # fmt: skip
OF_METHOD = ("options", "scale_learning_rate_by")
LARGEST_SEED = 2**32 - 1
# Names become parts of file names, of Markdown and of the names of cells.
NAME = re.compile(r"\w[\w.+-]*")


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        name: in the study.
        options: settings of re-weighting, as every recipe takes them.
        scale_learning_rate_by: another method; this one has its learning rate, times the mean weight of its run of the
            same data set and seed.
    """

    name: str
    options: Mapping[str, Any]
    scale_learning_rate_by: str | None = None

    @property
    def tuned_as(self) -> str:
        """The method whose tuning decides on this one's learning rate."""
        return self.scale_learning_rate_by or self.name

    @property
    def logs_weights(self) -> bool:
        """Whether its runs have a mean weight that another's learning rate can be scaled by."""
        reweights = self.options.get("reweighting", NO_WEIGHTS) != NO_WEIGHTS
        return reweights and self.scale_learning_rate_by is None


@dataclass(frozen=True)
class Dataset:
    """A data set, the recipe that trains on it, and which of its cells the study has.

    Attributes:
        name: in the study.
        recipe: name in `adapters.RECIPES`.
        score: the metric of the recipe that methods are compared by; larger is better.
        options: of the recipe, `learning_rate` among them.
        tuning_options: options that differ in tuning.
        methods: names, those whose learning rate is scaled by another's after it.
        seeds: of the final runs.
        tuning_seeds: of the runs that choose the learning rate; none of `seeds`.
        learning_rate_factors: what `learning_rate` is multiplied by in tuning.
        holdout_fraction: share of the training rows that tuning is scored on, where the recipe has no validation
            split of its own beside the rows that final runs are scored on.
    """

    name: str
    recipe: str
    score: str
    options: Mapping[str, Any]
    tuning_options: Mapping[str, Any]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    learning_rate_factors: tuple[float, ...]
    holdout_fraction: float

    @property
    def learning_rate(self) -> float:
        """Before it is multiplied by a factor."""
        return float(self.options["learning_rate"])


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        datasets: by name.
        methods: by name.
        time_budget: minutes after which no run is begun; None for no limit.
    """

    datasets: Mapping[str, Dataset]
    methods: Mapping[str, Method] = field(default_factory=dict)
    time_budget: float | None = None

    def restricted(
        self, datasets: Sequence[str] = (), methods: Sequence[str] = (), seeds: Sequence[int] = ()
    ) -> "Study":
        """The part of the study with these data sets, methods and seeds; all of them where a list is empty.

        A method whose learning rate is scaled by another's brings that one along.

        Raises:
            UserError: the study has none of that name, or nothing is left.
        """
        _check_known("--datasets", datasets, self.datasets)
        _check_known("--methods", methods, self.methods)
        _check_known(
            "--seeds", seeds, sorted({seed for data in self.datasets.values() for seed in data.seeds})
        )
        wanted = {*methods, *(self.methods[name].tuned_as for name in methods)}
        kept = {
            name: replace(
                data,
                methods=tuple(m for m in data.methods if not wanted or m in wanted),
                seeds=tuple(seed for seed in data.seeds if not seeds or seed in seeds),
            )
            for name, data in self.datasets.items()
            if not datasets or name in datasets
        }
        kept = {name: data for name, data in kept.items() if data.methods and data.seeds}
        if not kept:
            raise UserError("none of these data sets has any of these methods with any of these seeds.")
        return replace(self, datasets=kept)


def read_study(filename: str | Path) -> Study:
    """Read and check a study.

    Raises:
        UserError: the file cannot be read, or says something that no study can do; the message names the place.
    """
    path = Path(filename)
    if not path.is_file():
        raise UserError(f"there is no study {str(filename)!r} (looked in {Path.cwd()}).")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    content = _mapping(content, str(path))
    _check_keys(content, OF_STUDY, str(path))
    for name in ("datasets", "methods"):
        if not content.get(name):
            raise UserError(f"{path}: the study has no `{name}`.")
    for kind in ("datasets", "methods"):
        wrong = [name for name in _mapping(content[kind], f"{path}: {kind}") if not NAME.fullmatch(name)]
        if wrong:
            raise UserError(
                f"{path}: {kind}: {listed(wrong)}: a name has letters, digits, and _ . + - inside, because files are "
                "called by it."
            )
    methods = {
        name: _method(f"{path}: methods: {name}", name, value)
        for name, value in _mapping(content["methods"], f"{path}: methods").items()
    }
    if BASELINE not in methods:
        raise UserError(
            f"{path}: methods: {BASELINE!r} is missing, which all others are compared with. Add "
            f"`{BASELINE}: {{options: {{reweighting: none}}}}`."
        )
    erm = methods[BASELINE]
    if erm.options.get("reweighting", NO_WEIGHTS) != NO_WEIGHTS or erm.scale_learning_rate_by is not None:
        raise UserError(
            f"{path}: methods: {BASELINE} is what all others are compared with: plain training, `reweighting: none` with a "
            "learning rate of its own. Give the re-weighted method another name."
        )
    weighted = [name for name, method in methods.items() if method.logs_weights]
    for method in methods.values():
        source = method.scale_learning_rate_by
        if source is not None and source not in weighted:
            raise UserError(
                f"{path}: methods: {method.name}: scale_learning_rate_by must name a method that re-weights and is tuned "
                f"itself, not {source!r}: choose among {listed(weighted)}."
            )
    budget = content.get("time_budget")
    if budget is not None and not (_is_number(budget) and budget >= 0):
        raise UserError(f"{path}: time_budget is in minutes, a number of at least 0, not {budget!r}.")
    defaults = {name: content[name] for name in SHARED if name in content}
    datasets = {
        name: _dataset(f"{path}: datasets: {name}", name, value, methods, defaults)
        for name, value in _mapping(content["datasets"], f"{path}: datasets").items()
    }
    return Study(datasets, methods, budget)


def _method(where: str, name: str, content: Any) -> Method:
    content = _mapping(content, where)
    _check_keys(content, OF_METHOD, where)
    options = _mapping(content.get("options", {}), f"{where}: options")
    _check_options(options, (*SET_BY_THE_STUDY, "learning_rate"), where)
    allowed = [name for name in OF_A_METHOD if name not in SET_BY_THE_STUDY]
    foreign = [name for name in options if name not in allowed]
    if foreign:
        raise UserError(
            f"{where}: {listed(foreign)} is no option of re-weighting; what else a run has must be the same for all methods, "
            f"in the `options` of the data sets. A method may set {listed(allowed)}."
        )
    return Method(name, options, content.get("scale_learning_rate_by"))


def _dataset(
    where: str, name: str, content: Any, methods: Mapping[str, Method], defaults: Mapping[str, Any]
) -> Dataset:
    content = _mapping(content, where)
    _check_keys(content, OF_DATASET, where)
    content = {"tuning_options": {}, "methods": list(methods), **defaults, **content}
    content.setdefault("seeds", [0, 1, 2, 3, 4])
    content.setdefault("tuning_seeds", [100])
    content.setdefault("learning_rate_factors", [0.5, 1, 2])
    content.setdefault("holdout_fraction", 0.2)
    for key in ("recipe", "score", "options"):
        if key not in content:
            raise UserError(f"{where}: `{key}` is missing.")
    if not isinstance(content["score"], str):
        raise UserError(f"{where}: score must be the name of a metric, not {content['score']!r}.")
    _check_known(f"{where}: recipe", [content["recipe"]], RECIPES)
    chosen = _list(content, "methods", where)
    _check_known(f"{where}: methods", chosen, methods)
    if BASELINE not in chosen:
        raise UserError(f"{where}: methods: {BASELINE!r} is missing, which all others are compared with.")
    for method in chosen:
        source = methods[method].scale_learning_rate_by
        if source is not None and source not in chosen:
            raise UserError(
                f"{where}: methods: {method} takes its learning rate from {source}: add that method, or leave {method} "
                "out."
            )
    recipe = RECIPES[content["recipe"]]
    recipe.check_score(content["score"], where)
    for key, more in (("options", ()), ("tuning_options", ("learning_rate",))):
        _check_options(
            _mapping(content[key], f"{where}: {key}"), (*SET_BY_THE_STUDY, *more), f"{where}: {key}"
        )
    settings = {
        **content["options"],
        **content["tuning_options"],
        **{key: 0 for m in chosen for key in methods[m].options},
    }
    check_option_names(recipe.arguments, settings, where)
    rate = content["options"].get("learning_rate")
    if not _is_number(rate) or rate <= 0:
        raise UserError(
            f"{where}: options: learning_rate must be a positive number, which factors multiply, not {rate!r}; YAML "
            "wants a point in 1.0e-3."
        )
    seeds, tuning_seeds = (_list(content, key, where) for key in ("seeds", "tuning_seeds"))
    if not all(type(seed) is int and 0 <= seed <= LARGEST_SEED for seed in [*seeds, *tuning_seeds]):
        raise UserError(
            f"{where}: seeds must be whole numbers from 0 to {LARGEST_SEED}, not {seeds} and {tuning_seeds}."
        )
    shared = sorted(set(seeds) & set(tuning_seeds))
    if shared:
        raise UserError(
            f"{where}: tuning_seeds must be others than seeds, or the choice of a learning rate has seen what it is "
            f"judged by; both have {listed(map(str, shared))}."
        )
    factors = _list(content, "learning_rate_factors", where)
    if not all(_is_number(factor) and factor > 0 for factor in factors):
        raise UserError(f"{where}: learning_rate_factors must be positive numbers, not {factors}.")
    if len(set(factors)) < len(factors):
        raise UserError(f"{where}: learning_rate_factors must differ, which {factors} do not.")
    holdout = content["holdout_fraction"]
    if not (_is_number(holdout) and 0 < holdout < 1):
        raise UserError(
            f"{where}: holdout_fraction is a share of the training rows, above 0 and below 1, not {holdout!r}."
        )
    return Dataset(
        name,
        content["recipe"],
        content["score"],
        content["options"],
        content["tuning_options"],
        tuple(sorted(chosen, key=lambda method: methods[method].scale_learning_rate_by is not None)),
        tuple(seeds),
        tuple(tuning_seeds),
        tuple(float(factor) for factor in factors),
        float(holdout),
    )


class _UniqueKeys(yaml.SafeLoader):
    """Stops where a mapping names a key twice; YAML would let the last one win."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = [key.value for key, _ in node.value]
        twice = [key for key, _ in node.value if names.count(key.value) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[-1].value!r} stands here twice", twice[-1].start_mark
            )
        return node


def _mapping(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise UserError(f"{where}: expected lines `name: value`, found {found}.")
    return {str(name): value for name, value in content.items()}


def _list(content: Mapping[str, Any], key: str, where: str) -> list[Any]:
    values = content[key]
    if not isinstance(values, list) or not values or len(set(map(str, values))) < len(values):
        raise UserError(f"{where}: {key} must be a list of different values, at least one, not {values!r}.")
    return values


def _check_keys(content: Iterable[str], known: Sequence[str], where: str) -> None:
    unknown = [name for name in content if name not in known]
    if unknown:
        raise UserError(f"{where}: unknown {listed(unknown)}: choose among {listed(known)}.")


def _check_known(where: str, given: Iterable[Any], known: Iterable[Any]) -> None:
    every = list(known)
    unknown = [str(name) for name in given if name not in every]
    if unknown:
        raise UserError(f"{where}: unknown {listed(unknown)}: choose among {listed(map(str, every))}.")


def _check_options(options: Iterable[str], reserved: Sequence[str], where: str) -> None:
    taken = [name for name in options if name in reserved]
    if taken:
        raise UserError(f"{where}: leave out {listed(taken)}: the study sets that itself for every run.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
