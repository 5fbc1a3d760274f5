"""Reads the file of a study; what is wrong with it is reported in terms of the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from benchmarks.study.specification import Dataset, Method, Question, RandomSearch, Study
from rgd_hf.scripts.config_files import UniqueKeys
from rgd_hf.scripts.errors import UserError, listed

SHARED = ("seeds", "tuning_seeds", "learning_rate_factors", "holdout_fraction", "metrics")
"""Keys of all data sets; one may have its own."""


def read_study(filename: str | Path) -> Study:
    """Read and check a study.

    Raises:
        UserError: the file cannot be read, or says something that no study can do; the message names the place, what was
            found there, and what is allowed.
    """
    path = Path(filename)
    if not path.is_file():
        raise UserError(f"there is no study {str(filename)!r} (looked in {Path.cwd()}).")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise UserError(f"{path}: expected lines `name: value`, found {found}.")
    for name, entry in (("methods", "kl: {options: {reweighting: kl}}"), ("datasets", "NAME: {recipe: ...}")):
        if not isinstance(content.get(name, {}), dict):
            raise UserError(
                f"{path}: {name}: expected a mapping with a line `{entry}` for each, found {content[name]!r}."
            )
    defaults = {name: content.pop(name) for name in SHARED if name in content}
    if "methods" in content:
        defaults = {"methods": list(content["methods"]), **defaults}
        content["methods"] = _named(content["methods"], {})
    if "datasets" in content:
        content["datasets"] = _named(content["datasets"], defaults)
    try:
        study = Study.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {_explained(error)}") from error
    scaled_last = {
        name: data.model_copy(
            update={
                "methods": tuple(
                    sorted(data.methods, key=lambda m: study.methods[m].scale_learning_rate_by is not None)
                )
            }
        )
        for name, data in study.datasets.items()
    }
    return study.model_copy(update={"datasets": scaled_last})


def _named(content: Mapping[Any, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The entries with their names and what they share; one that is no mapping is left to the check."""
    return {
        str(name): {"name": str(name), **defaults, **value} if isinstance(value, dict) else value
        for name, value in content.items()
    }


def _explained(error: ValidationError) -> str:
    """The first thing that is wrong: where, what was found, what is allowed."""
    found = error.errors()[0]
    place = [str(part) for part in found["loc"]]
    if found["type"] == "extra_forbidden":
        model: type[BaseModel] = Study
        for key, cls in (("methods", Method), ("datasets", Dataset), ("questions", Question)):
            model = cls if len(place) > 1 and place[0] == key else model
        model = RandomSearch if "random_search" in place[:-1] else model
        allowed = [name for name in model.model_fields if name != "name"] + (
            list(SHARED) if model is Study else []
        )
        where = "".join(f"{part}: " for part in place[:-1])
        return f"{where}unknown {place[-1]!r}: choose among {listed(allowed)}."
    if found["type"] == "missing":
        return f"{''.join(f'{part}: ' for part in place[:-1])}`{place[-1]}` is missing."
    where = "".join(f"{part}: " for part in place if not part.startswith("function-"))
    if found["type"] == "value_error":
        return f"{where}{found['ctx']['error']}."
    return f"{where}{found['msg'][0].lower()}{found['msg'][1:]}, not {found['input']!r}."
