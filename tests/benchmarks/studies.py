"""Studies of a script that trains in milliseconds, and the lines that they leave."""

import copy
import json
from pathlib import Path

import yaml

STUDY = {
    "seeds": [0, 1],
    "tuning_seeds": [100, 101],
    "learning_rate_factors": [0.5, 2],
    "metrics": ["macro_f1", "mean_loss"],
    "methods": {
        "erm": {"options": {"reweighting": "none"}},
        "scaled": {"options": {"reweighting": "none"}, "scale_learning_rate_by": "kl"},
        "kl": {"options": {"reweighting": "kl", "tau": 1}},
        "kl_tuned": {"options": {"reweighting": "kl"}, "tune": {"tau": [1, 3]}, "compared_with": "kl"},
    },
    "datasets": {
        "digits": {
            "recipe": "tests/benchmarks/own_script.py",
            "kind": "images",
            "score": "accuracy",
            "tuning_score": "validation_accuracy",
            "data": {"rows": 200},
            "options": {"learning_rate": 0.001},
        },
        "few": {
            "recipe": "tests/benchmarks/own_script.py",
            "score": "accuracy",
            "tuning_score": "validation_accuracy",
            "methods": ["erm", "kl"],
            "seeds": [0, 1, 2],
            "data": {"rows": 60},
            "options": {"learning_rate": 0.002},
        },
    },
}
TIMINGS = ("seconds", "finished", "peak_memory_mb", "commit")


def changed(*keys, value, study=STUDY):
    """A study with one entry set, or left out where the value is None."""
    study = copy.deepcopy(study)
    place = study
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return study


def write(study, folder) -> str:
    """The study as a file of the folder."""
    path = Path(folder) / "study.yaml"
    path.write_text(study if isinstance(study, str) else yaml.safe_dump(study, sort_keys=False))
    return str(path)


def lines(directory) -> list[dict]:
    """All whole lines of a directory."""
    return [
        json.loads(line)
        for path in sorted(Path(directory).glob("runs*.jsonl"))
        for line in path.read_text().splitlines()
        if line.endswith("}")
    ]


def by_cell(directory) -> dict:
    """What was measured, without what depends on the clock."""
    return {
        line["cell"]: {key: value for key, value in line.items() if key not in TIMINGS}
        for line in lines(directory)
    }
