"""What a study asks of the recipes, and what it reads of their runs."""

import copy
from pathlib import Path

import pytest
import yaml
from recipe_lib.compare.cells import FINAL, TUNING, Cell, identity
from recipe_lib.compare.study import read_study

CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs"


@pytest.mark.parametrize("name", ["cifar10", "sst2"])
def test_curves_of_final_runs_leave_the_tuning_runs_as_they_are(name, tmp_path):
    content = yaml.safe_load((CONFIGS / "compare.yaml").read_text())
    more = copy.deepcopy(content)
    more["datasets"][name]["options"] |= {"eval_strategy": "steps", "eval_steps": 0.1}
    fewer = content
    for option in ("eval_strategy", "eval_steps"):
        fewer["datasets"][name]["options"].pop(option, None)
    studies = []
    for number, each in enumerate((fewer, more)):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(each))
        studies.append(read_study(path))
    before, after = studies
    tuning = Cell(name, "kl_tau1", TUNING, 100, 0.5)
    assert identity(before, tuning) == identity(after, tuning)
    final = Cell(name, "kl_tau1", FINAL, 0, 0.5)
    assert identity(before, final) != identity(after, final)
