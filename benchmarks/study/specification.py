"""What a study may say: data sets, methods, seeds and what is tried in tuning, checked before anything is trained."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rgd_hf.comparison.directions import is_lower_better
from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.training_args import ReweightingArguments

BASELINE, NO_WEIGHTS = "erm", "none"
LARGEST_SEED = 2**32 - 1
# What tells the trainings of a study apart, or keeps its output together.
STUDY_OPTIONS = (
    "seed",
    "seeds",
    "output_dir",
    "overwrite_output_dir",
    "compare",
    "holdout_fraction",
    "push_to_hub",
)
# What methods differ by: a data set's would re-weight ERM too. The LM head's losses are the same either way.
WEIGHT_OPTIONS = frozenset(ReweightingArguments.__dataclass_fields__) - {"fused_lm_head"}
# Names become parts of file names, of Markdown and of the names of cells.
NAME = re.compile(r"\w[\w.+-]*")

Options = dict[str, Any]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Method(_Part):
    """A way to train.

    Attributes:
        name: in the study.
        options: options of the recipe, as on its command line.
        recipe: a script of its own, where it is not that of the data set.
        tune: values to choose from, by option, beside the learning rate.
        scale_learning_rate_by: another method; this one has its learning rate, times the mean weight of its run of the
            same data set and seed.
        compared_with: the method that this one adds something to, ERM by default.
    """

    name: str
    options: Options = Field(default_factory=dict)
    recipe: str | None = None
    tune: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    scale_learning_rate_by: str | None = None
    compared_with: str = BASELINE

    @property
    def tuned_as(self) -> str:
        """The method whose tuning decides on this one's settings."""
        return self.scale_learning_rate_by or self.name

    @property
    def logs_weights(self) -> bool:
        """Whether its runs have a mean weight that another's learning rate can be scaled by."""
        reweights = self.options.get("reweighting", NO_WEIGHTS) != NO_WEIGHTS
        return reweights and self.scale_learning_rate_by is None

    @model_validator(mode="after")
    def _leaves_the_studys_options(self) -> "Method":
        _check_left_to_the_study({**self.options, **self.tune})
        shared = sorted(set(self.options) & set(self.tune))
        if shared:
            raise ValueError(f"{listed(shared)} stands in `options` and in `tune`: leave it out of one")
        if "learning_rate" in self.options and self.recipe is None:
            raise ValueError(
                "leave out 'learning_rate': every method has that of the data set, times its factors in tuning"
            )
        if "learning_rate" in self.tune and self.recipe is None:
            raise ValueError(
                "tune: leave out 'learning_rate': every method tries that of the data set times its `learning_rate_factors`"
            )
        if self.scale_learning_rate_by and self.tune:
            raise ValueError(
                f"leave out `tune`: with scale_learning_rate_by it has the settings that {self.scale_learning_rate_by} chose"
            )
        if self.scale_learning_rate_by and self.recipe and "learning_rate" not in self.options:
            raise ValueError(
                "scale_learning_rate_by: with a recipe of its own it needs a 'learning_rate' in `options`, which is scaled; "
                "add it, or leave scale_learning_rate_by out"
            )
        return self


class RandomSearch(_Part):
    """Random search as DomainBed does it: every seed draws, and chooses for itself by its own validation rows.

    Attributes:
        draws: settings tried, the first of which are those given.
        space: by option `{uniform: [low, high]}`, `{log_uniform: [low, high]}`, `{log2_integer: [low, high]}` (an integer
            2**x) or `{choice: [values]}`.
    """

    draws: Annotated[int, Field(ge=2, strict=True)]
    space: Annotated[
        dict[
            str,
            Annotated[
                dict[
                    Literal["uniform", "log_uniform", "log2_integer", "choice"],
                    Annotated[list[Any], Field(min_length=2)],
                ],
                Field(min_length=1, max_length=1),
            ],
        ],
        Field(min_length=1),
    ]

    @model_validator(mode="after")
    def _ranges_are_pairs(self) -> "RandomSearch":
        for option, range_ in self.space.items():
            for kind, values in range_.items():
                ends = kind == "choice" or (
                    len(values) == 2
                    and all(isinstance(v, int | float) for v in values)
                    and values[0] < values[1]
                )
                if not ends or (kind == "log_uniform" and values[0] <= 0):
                    raise ValueError(f"space: {option}: {kind} needs two numbers [low, high], not {values}")
        return self


class Dataset(_Part):
    """A data set, the recipe that trains on it, and which of its cells the study has.

    Attributes:
        name: in the study.
        recipe: path of a script.
        score: the metric that methods are compared by; larger is better.
        kind: what it is, for reports.
        data: options that say which rows; every script that a method runs is given them.
        options: options of the recipe, `learning_rate` among them.
        tuning_options: options that differ in tuning.
        tuning_score: the metric that tuning goes by; `score` by default, on held-out training rows.
        parts: an option and the values that it takes in turn, one training each; their mean score is that of the run.
        pairs: also train without every two of the parts, as leave-one-domain-out selection needs.
        random_search: instead of tuning.
        methods: names, those whose learning rate is scaled by another's after it.
        seeds: seeds of the final runs.
        tuning_seeds: seeds of the runs that choose the settings; none of `seeds`.
        learning_rate_factors: what `learning_rate` is multiplied by in tuning.
        holdout_fraction: share of the training rows that tuning is scored on, where the recipe can hold rows out.
        metrics: what methods are compared by besides.
    """

    name: str
    recipe: str
    score: str
    kind: str = "data"
    data: Options = Field(default_factory=dict)
    options: Options
    tuning_options: Options = Field(default_factory=dict)
    tuning_score: str | None = None
    parts: Annotated[dict[str, Annotated[list[str], Field(min_length=1)]], Field(max_length=1)] = Field(
        default_factory=dict
    )
    pairs: bool = False
    random_search: RandomSearch | None = None
    methods: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    tuning_seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (100,)
    learning_rate_factors: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.5, 1.0, 2.0)
    holdout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    metrics: tuple[str, ...] = ()

    @property
    def learning_rate(self) -> float:
        """Before it is multiplied by a factor."""
        return float(self.options["learning_rate"])

    @property
    def chosen_by(self) -> str:
        """The metric that settings are chosen by."""
        return self.tuning_score or self.score

    @property
    def part_values(self) -> tuple[str, ...]:
        """The values of `parts`; `("",)` where there are none."""
        return tuple(next(iter(self.parts.values()), [""]))

    @field_validator("score")
    @classmethod
    def _rises(cls, score: str) -> str:
        if is_lower_better(score):
            raise ValueError(f"{score!r} is better when it is lower: choose one that rises")
        return score

    @field_validator("methods", "seeds", "tuning_seeds", "learning_rate_factors", "metrics")
    @classmethod
    def _differ(cls, values: tuple) -> tuple:
        if len(set(values)) < len(values):
            raise ValueError("the values must differ")
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> "Dataset":
        for name in ("data", "options", "tuning_options"):
            _check_left_to_the_study(getattr(self, name))
            _check_left_to_methods(name, getattr(self, name), WEIGHT_OPTIONS)
        _check_left_to_methods("parts", self.parts, WEIGHT_OPTIONS)
        if self.random_search is not None:
            space = self.random_search.space
            _check_left_to_methods("random_search: space", space, {"reweighting", "class_weights"})
        rate = self.options.get("learning_rate")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or rate <= 0:
            raise ValueError(
                f"options: learning_rate must be a positive number, which factors multiply, not {rate!r}; YAML wants a "
                "point in 1.0e-3"
            )
        if "learning_rate" in self.tuning_options:
            raise ValueError("tuning_options: leave out 'learning_rate': its factors are what tuning tries")
        twice = sorted(set(self.data) & set(self.options))
        if twice:
            raise ValueError(f"{listed(twice)} stands in `data` and in `options`: leave it out of one")
        shared = sorted(set(self.seeds) & set(self.tuning_seeds))
        if shared:
            raise ValueError(
                f"tuning_seeds must be others than seeds, or the choice of settings has seen what it is judged by; both have "
                f"{listed(shared)}"
            )
        strange = [value for value in self.part_values if value.startswith("-") or {"+", "/"} & set(value)]
        if strange:
            raise ValueError(
                f"parts: {listed(strange)} cannot be told from an option, a pair or a folder: names of parts do not begin with - "
                "and have no + or /"
            )
        if self.pairs and len(self.part_values) < 3:
            raise ValueError("pairs: leaving out two of them needs at least three `parts`")
        return self


class Question(_Part):
    """What a study is asked, before any result is known.

    Attributes:
        ask: the question.
        compare: a method and the one it is compared with.
        datasets: names; all that have both by default.
        metric: `score`, or one of the data sets' `metrics`.
    """

    ask: str
    compare: tuple[str, str]
    datasets: tuple[str, ...] = ()
    metric: str = "score"


class Study(_Part):
    """What is compared.

    Attributes:
        datasets: by name.
        methods: by name.
        questions: that the report answers.
        headline: methods that the first page and the curves of a report show; by default the first two besides ERM.
        time_budget: minutes after which no run is begun; None for no limit.
    """

    datasets: Annotated[dict[str, Dataset], Field(min_length=1)]
    methods: Annotated[dict[str, Method], Field(min_length=1)]
    questions: tuple[Question, ...] = ()
    headline: Annotated[tuple[str, ...], Field(max_length=6)] = ()  # as many colours tell apart
    time_budget: Annotated[float, Field(ge=0)] | None = None

    @field_validator("datasets", "methods")
    @classmethod
    def _names(cls, found: dict[str, Any]) -> dict[str, Any]:
        wrong = [name for name in found if not NAME.fullmatch(name)]
        if wrong:
            raise ValueError(
                f"{listed(wrong)}: a name has letters, digits, and _ . + - inside, because files are called by it"
            )
        return found

    @model_validator(mode="after")
    def _fits_together(self) -> "Study":
        methods = self.methods
        if BASELINE not in methods:
            raise ValueError(
                f"methods: {BASELINE!r} is missing, which all others are compared with. Add "
                f"`{BASELINE}: {{options: {{reweighting: none}}}}`"
            )
        erm = methods[BASELINE]
        if erm.options.get("reweighting", NO_WEIGHTS) != NO_WEIGHTS or erm.scale_learning_rate_by or erm.tune:
            raise ValueError(
                f"methods: {BASELINE} is what all others are compared with: plain training, `reweighting: none` with a "
                "learning rate of its own. Give the re-weighted method another name"
            )
        weighted = [name for name, method in methods.items() if method.logs_weights]
        for name, method in methods.items():
            source = method.scale_learning_rate_by
            if source is not None and source not in weighted:
                raise ValueError(
                    f"methods: {name}: scale_learning_rate_by must name a method that re-weights and is tuned itself, not "
                    f"{source!r}: choose among {listed(weighted)}"
                )
            _check_known(f"methods: {name}: compared_with", [method.compared_with], methods)
        for name, data in self.datasets.items():
            where = f"datasets: {name}: methods"
            _check_known(where, data.methods, methods)
            if BASELINE not in data.methods:
                raise ValueError(f"{where}: {BASELINE!r} is missing, which all others are compared with")
            tuned = [chosen for chosen in data.methods if methods[chosen].tune and data.random_search]
            if tuned:
                raise ValueError(
                    f"datasets: {name}: random_search: {listed(tuned)} has a grid in `tune`, which a random search does not "
                    "use: put its options into the search's `space`, or leave the method out"
                )
            for chosen in data.methods:
                for other in (methods[chosen].tuned_as, methods[chosen].compared_with):
                    if other not in data.methods:
                        raise ValueError(
                            f"{where}: {chosen} needs {other}: add that method, or leave {chosen} out"
                        )
        for question in self.questions:
            _check_known(f"questions: {question.ask}: compare", question.compare, methods)
            _check_known(f"questions: {question.ask}: datasets", question.datasets, self.datasets)
            known = {"score", *(metric for data in self.datasets.values() for metric in data.metrics)}
            _check_known(f"questions: {question.ask}: metric", [question.metric], sorted(known))
        _check_known("headline", self.headline, methods)
        return self

    def restricted(
        self, datasets: Sequence[str] = (), methods: Sequence[str] = (), seeds: Sequence[int] = ()
    ) -> "Study":
        """The part of the study with these data sets, methods and seeds; all of them where a list is empty.

        A method whose learning rate is scaled by another's brings that one along.

        Raises:
            UserError: the study has none of that name, or nothing is left.
        """
        try:
            _check_known("--datasets", datasets, self.datasets)
            _check_known("--methods", methods, self.methods)
            _check_known("--seeds", seeds, sorted({s for data in self.datasets.values() for s in data.seeds}))
        except ValueError as error:
            raise UserError(f"{error}.") from error
        wanted = {*methods, *(self.methods[name].tuned_as for name in methods)}
        kept = {
            name: data.model_copy(
                update={
                    "methods": tuple(m for m in data.methods if not wanted or m in wanted),
                    "seeds": tuple(seed for seed in data.seeds if not seeds or seed in seeds),
                }
            )
            for name, data in self.datasets.items()
            if not datasets or name in datasets
        }
        kept = {name: data for name, data in kept.items() if data.methods and data.seeds}
        if not kept:
            raise UserError("none of these data sets has any of these methods with any of these seeds.")
        return self.model_copy(update={"datasets": kept})


def _check_known(where: str, given: Sequence[Any], known: Any) -> None:
    every = list(known)
    unknown = [str(name) for name in given if name not in every]
    if unknown:
        raise ValueError(f"{where}: unknown {listed(unknown)}: choose among {listed(map(str, every))}")


def _check_left_to_the_study(options: Mapping[str, Any]) -> None:
    taken = [name for name in options if name in STUDY_OPTIONS]
    if taken:
        raise ValueError(f"leave out {listed(taken)}: the study sets that itself for every run")


def _check_left_to_methods(where: str, given: Iterable[str], refused: Collection[str]) -> None:
    found = [name for name in given if name in refused]
    if found:
        raise ValueError(
            f"{where}: leave out {listed(found)}: all methods would have it, ERM too. Put it into the `options` or the `tune` "
            "of the methods that are to re-weight"
        )


def grid(tune: Mapping[str, Sequence[Any]]) -> list[Options]:
    """All combinations of the values of a method's `tune`; a single empty one where there are none."""
    return [dict(zip(tune, values)) for values in product(*tune.values())]
