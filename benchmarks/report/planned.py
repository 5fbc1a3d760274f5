"""The study as its file has it now: the runs that it plans, and in what a line is of an earlier version of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.report.formats import ranges

Record = Mapping[str, Any]
Edits = dict[str, tuple[str, str]]

TUNING, PAIR = "tuning", "pair"
# What the engine sets where a study does not; the first two whatever a study says.
ENGINE_SETS = ("seed", "save_predictions", "report_to", "save_strategy", "disable_tqdm", "save_models")
WHILE_TUNING = ("eval_strategy", "eval_steps", "logging_strategy")
WHILE_FINAL = ("logging_strategy", "logging_steps")
LONGEST = 60
# Of a file that leaves them out.
DATASET: Record = {
    **{"kind": "data", "data": {}, "options": {}, "tuning_options": {}, "tuning_score": None},
    **{"parts": {}, "pairs": False, "random_search": None, "metrics": []},
}
METHOD: Record = {
    **{"options": {}, "recipe": None, "tune": {}},
    **{"scale_learning_rate_by": None, "compared_with": "erm"},
}


@dataclass(frozen=True)
class Plan:
    """What a study's file says of data sets and methods; nothing where there is no file, or none that names them.

    Attributes:
        datasets: by name, with the keys of a study file.
        methods: by name, with the keys of a study file.
    """

    datasets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def seeds(self, dataset: str) -> dict[str, Sequence[int]]:
        """Seeds of the final runs of a data set, by method; none where the plan does not have it."""
        data = self.datasets.get(dataset)
        return {} if data is None else dict.fromkeys(data["methods"], data["seeds"])

    def parts(self, dataset: str) -> Sequence[str]:
        """The parts that a data set is trained on in turn; none where it has none, or the plan does not have it."""
        return _part_values(self.datasets.get(dataset, DATASET))

    def as_now(self, run: Record) -> Record:
        """A line with what the file says now of that which decides nothing about its training."""
        if not self.datasets:
            return run
        data, method = self.datasets[run["dataset"]], self.methods[run["method"]]
        found = {**run, "kind": data["kind"], "compared_with": method["compared_with"]}
        found |= {"tuned_as": self._tuned_as(run["method"]), "looked_at": data["metrics"]}
        if "part" in run:
            found["parts"] = len(_part_values(data))
        if data["random_search"]:
            found["draws"] = data["random_search"]["draws"]
        return found

    def edits(self, run: Record) -> Edits:
        """What was otherwise when a line was written than it is now: by name, how it was and how it is.

        Which settings a random search drew is not compared, nor what scripts do by default.
        """
        if not self.datasets:
            return {}
        data = self.datasets.get(run["dataset"])
        if data is None:
            return {"data set": (run["dataset"], "not in the study")}
        if run["method"] not in data["methods"]:
            return {"method": (run["method"], "not in the study")}
        return self._of_cell(run, data) | self._of_settings(run, data)

    def _tuned_as(self, method: str) -> str:
        return self.methods[method]["scale_learning_rate_by"] or method

    def _of_cell(self, run: Record, data: Mapping[str, Any]) -> Edits:
        tuning, found = run["stage"] == TUNING, {}
        seeds = data["tuning_seeds" if tuning else "seeds"]
        if run["seed"] not in seeds:
            found["tuning seed" if tuning else "seed"] = (str(run["seed"]), ranges(sorted(seeds)))
        search, draws = data["random_search"], run.get("draws")
        if bool(search) != bool(draws):
            found["random search"] = ("none", "of some draws") if search else (f"of {draws} draws", "none")
        elif search and int(str(run["candidate"]).removeprefix("draw")) >= search["draws"]:
            found["draw"] = (run["candidate"], f"{search['draws']} draws")
        factor = run.get("learning_rate_factor")
        if not search and factor is not None and factor not in data["learning_rate_factors"]:
            found["learning rate factor"] = (f"{factor:g}", _shown(data["learning_rate_factors"]))
        part, values = run.get("part", ""), _part_values(data)
        if not (set(part.split("+")) <= set(values) if values else part == ""):
            found["part"] = (part or "none", _shown(values) if values else "none")
        elif run["stage"] == PAIR and not data["pairs"]:
            found["pair"] = (part, "not in the study")
        score = data["tuning_score"] or data["score"] if tuning else data["score"]
        if run.get("score_name", score) != score:
            found["score"] = (run["score_name"], score)
        return found

    def _of_settings(self, run: Record, data: Mapping[str, Any]) -> Edits:
        method, tuning, settings = self.methods[run["method"]], run["stage"] == TUNING, run["settings"]
        expected = {"reweighting": "none", **data["data"]}
        if method["recipe"] is None:
            expected |= {**data["options"], **(data["tuning_options"] if tuning else {})}
        expected |= {**method["options"], "recipe": method["recipe"] or data["recipe"]}
        factor = run.get("learning_rate_factor")
        if factor is not None and "learning_rate" in expected:
            expected["learning_rate"] *= factor * run.get("learning_rate_scale", 1.0)
        overruled = {*ENGINE_SETS[:2], *data["parts"]}
        if tuning and "holdout_fraction" in settings:
            expected["holdout_fraction"] = data["holdout_fraction"]
            overruled.update(WHILE_TUNING)
        by_engine = {*ENGINE_SETS, *(() if tuning else WHILE_FINAL)} - set(expected)
        search = data["random_search"] or {"space": {}}
        tune = self.methods[self._tuned_as(run["method"])]["tune"]
        names = {*expected, *settings} - overruled - by_engine - set(search["space"]) - set(tune)
        recorded = {"reweighting": "none", **settings}
        found = {
            name: (_shown(recorded.get(name)), _shown(expected.get(name)))
            for name in sorted(names)
            if not _same(recorded.get(name), expected.get(name))
        }
        return found | {
            name: (_shown(settings.get(name)), _shown(values))
            for name, values in tune.items()
            if settings.get(name) not in values
        }


def plan_of(study: Mapping[str, Any]) -> Plan:
    """Of the content of a study.json."""
    datasets = {name: {**DATASET, **data} for name, data in study.get("datasets", {}).items()}
    return Plan(datasets, {name: {**METHOD, **method} for name, method in study.get("methods", {}).items()})


def of_plan(lines: Sequence[Record], plan: Plan) -> tuple[list[Record], list[tuple[Record, Edits]]]:
    """The lines that are of a plan, and those of an earlier one with what was otherwise.

    A line whose learning rate was scaled by the mean weight of another run is of it as long as that run has this weight.
    """
    every = [(line, plan.edits(line)) for line in lines]
    weights = {
        _place(line, line["method"]): line["metrics"]["weight_mean"]
        for line, edits in every
        if not edits and "weight_mean" in line.get("metrics", {})
    }
    fitting, left_out = [], []
    for line, edits in every:
        now = line if edits else plan.as_now(line)
        scale, weight = (
            line.get("learning_rate_scale", 1.0),
            weights.get(_place(now, now.get("tuned_as", ""))),
        )
        scaled = plan.datasets and not edits and now["tuned_as"] != line["method"]
        if scaled and weight is not None and not _same(float(scale), float(weight)):
            edits = {"learning rate × mean weight": (f"{scale:.4g}", f"{weight:.4g}")}
        if edits:
            left_out.append((line, edits))
        else:
            fitting.append(now)
    return fitting, left_out


def _place(run: Record, method: str) -> tuple:
    return run["dataset"], method, *(run.get(name) for name in ("stage", "seed", "part", "candidate"))


def described(left_out: Sequence[tuple[Record, Edits]]) -> dict[str, int]:
    """How many runs were left out, by data set and method with all that was otherwise for any of them."""
    places: dict[str, dict[str, tuple[dict[str, None], str]]] = {}
    counts: dict[str, int] = {}
    for run, edits in left_out:
        place = f"{run['dataset']}/{run['method']}"
        counts[place] = counts.get(place, 0) + 1
        for name, (was, now) in edits.items():
            places.setdefault(place, {}).setdefault(name, ({}, now))[0].setdefault(was)
    found = {}
    for place in sorted(places):
        each = (f"{name} {' or '.join(was)}, now {now}" for name, (was, now) in places[place].items())
        found[f"{place}: {'; '.join(each)}"] = counts[place]
    return found


def _part_values(data: Mapping[str, Any]) -> Sequence[str]:
    return next(iter(data["parts"].values()), ())


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        return numbers and math.isclose(one, other, rel_tol=1e-9)
    return one == other


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, list | tuple):
        text = ", ".join(map(_shown, value))
    else:
        text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
