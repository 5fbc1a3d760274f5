"""Studies as files: what is read, and what is refused with its place, what was found and what is allowed."""

from pathlib import Path

import pytest
import yaml
from studies import STUDY, changed, write

from benchmarks.study.__main__ import check_options
from benchmarks.study.cells import plan
from benchmarks.study.study_file import read_study
from rgd_hf.scripts.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "benchmarks" / "configs"
DIGITS, KL = ("datasets", "digits"), ("methods", "kl")
WEIGHTS = {"draws": 2, "space": {"reweighting": {"choice": ["none", "kl"]}}}
ERM_ONLY = changed(*DIGITS, "methods", value=["erm"])
SEARCH = {"draws": 3, "space": {"learning_rate": {"log_uniform": [1e-4, 1e-2]}}}


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (changed("method", value={}), "unknown 'method': choose among 'datasets', 'methods', .*'seeds'"),
        (changed("methods", value=None), "`methods` is missing"),
        (changed("methods", "erm", value=None), "'erm' is missing, which all others are compared with"),
        (changed("time_budget", value=-1), "time_budget: input should be greater than or equal to 0, not -1"),
        (changed(*KL, "title", value="KL"), "methods: kl: unknown 'title': choose among 'options'"),
        (changed(*KL, "options", "seed", value=3), "methods: kl: leave out 'seed': the study sets that"),
        (changed(*KL, "options", "learning_rate", value=3), "kl: leave out 'learning_rate': every method"),
        (changed(*KL, value=[]), r"methods: kl: .*, not \[\]"),
        (changed("methods", "scaled", "scale_learning_rate_by", value="k"), "not 'k': choose among 'kl'"),
        (changed("methods", "scaled", "scale_learning_rate_by", value="erm"), "a method that re-weights"),
        (changed("methods", "erm", "options", "reweighting", value="kl"), "erm is what all others"),
        (changed("methods", "kl/1", value={"options": {}}), "methods: 'kl/1': a name has letters"),
        (changed("methods", "kl_tuned", "tune", value={"tau": []}), "tune: tau: .* at least 1 item"),
        (
            changed("methods", "kl_tuned", "options", "tau", value=2),
            "'tau' stands in `options` and in `tune`",
        ),
        (changed("methods", "kl_tuned", "compared_with", value="l"), "compared_with: unknown 'l'"),
        (changed("datasets", "my data", value=STUDY["datasets"]["few"]), "'my data': a name has letters"),
        (changed(*DIGITS, "options", value=[1]), r"options: .*dictionary, not \[1\]"),
        (changed("holdout_fraction", value="half"), "holdout_fraction: .*, not 'half'"),
        (changed("holdout_fraction", value=1), "holdout_fraction: .* less than 1, not 1"),
        (changed(*DIGITS, "score", value="log_loss"), "'log_loss' is better when it is lower"),
        (changed(*DIGITS, "score", value=None), "datasets: digits: `score` is missing"),
        (changed(*DIGITS, "tuning_options", value={"learning_rate": 1}), "leave out 'learning_rate'"),
        (changed(*DIGITS, "options", "rows", value=1), "'rows' stands in `data` and in `options`"),
        (changed("seeds", value=[2**32]), "seeds: 0: .*4294967295, not 4294967296"),
        (changed("seeds", value=[0, 0]), "seeds: the values must differ"),
        (changed("seeds", value=["0"]), "seeds: 0: .*integer, not '0'"),
        (changed("tuning_seeds", value=[1]), "tuning_seeds must be others than seeds.*both have '1'"),
        (changed("learning_rate_factors", value=[1, 1.0]), "learning_rate_factors: the values must differ"),
        (changed("learning_rate_factors", value=[0, 1]), "greater than 0, not 0"),
        (changed(*DIGITS, "methods", value=["erm", "rgd"]), "methods: unknown 'rgd'"),
        (changed(*DIGITS, "methods", value=["kl"]), "'erm' is missing"),
        (changed(*DIGITS, "methods", value=["erm", "scaled"]), "scaled needs kl: add that method"),
        (changed(*DIGITS, "methods", value=["erm", "kl_tuned"]), "kl_tuned needs kl"),
        (changed(*DIGITS, "options", "learning_rate", value="1e-3"), "YAML wants a point"),
        (changed(*DIGITS, "options", "learning_rate", value=None), "learning_rate must be a positive"),
        (changed(*DIGITS, "pairs", value=True), "pairs: leaving out two of them needs"),
        (changed(*DIGITS, "parts", value={"held_out": ["-90%"]}), "'-90%' cannot be told from an option"),
        (
            changed(*DIGITS, "parts", value={"held_out": ["a+b", "c"]}),
            "'a.b' cannot be told .* have no . or /",
        ),
        (changed("headline", value=list("abcdefg")), "headline: .* at most 6 items"),
        (changed(*DIGITS, "random_search", value=SEARCH), "'kl_tuned' has a grid in `tune`"),
        (
            changed(*DIGITS, "random_search", value=SEARCH | {"seed": 1}),
            "unknown 'seed': choose among 'draws'",
        ),
        (
            changed(*DIGITS, "random_search", value={"draws": 2, "space": {"rows": {"uniform": [3, 1]}}}),
            r"rows: uniform needs two numbers \[low, high\], not \[3, 1\]",
        ),
        (changed("questions", value=[{"ask": "?", "compare": ["kl", "l"]}]), "compare: unknown 'l'"),
        (
            changed("questions", value=[{"ask": "?", "compare": ["kl", "erm"], "metric": "f1"}]),
            "metric: unknown 'f1': choose among 'macro_f1', 'mean_loss', 'score'",
        ),
        (changed("headline", value=["l"]), "headline: unknown 'l'"),
        (
            changed(*DIGITS, "options", "reweighting", value="kl"),
            "options: leave out 'reweighting': all methods",
        ),
        (
            changed(*DIGITS, "data", "class_weights", value="balanced"),
            "data: leave out 'class_weights'.*`tune`",
        ),
        (changed(*DIGITS, "tuning_options", value={"tau": 2}), "tuning_options: leave out 'tau': .*ERM too"),
        (changed(*DIGITS, "parts", value={"reweighting": ["none", "kl"]}), "parts: leave out 'reweighting'"),
        (changed(*DIGITS, "random_search", value=WEIGHTS), "space: leave out 'reweighting': .*ERM too"),
        (changed("methods", "kl_tuned", "tune", "learning_rate", value=[1]), "kl_tuned: tune: leave out"),
        (
            changed("methods", "scaled", "tune", value={"tau": [1]}),
            "scaled: leave out `tune`: .*that kl chose",
        ),
        (changed("methods", "scaled", "recipe", value="own.py"), "scaled: .*needs a 'learning_rate' in `opt"),
        (changed("methods", value=["erm", "kl"]), r"methods: expected a mapping .*, found \['erm', 'kl'\]"),
        (changed("datasets", value=["digits"]), r"datasets: expected a mapping .*, found \['digits'\]"),
        ("datasets: [", "not valid YAML"),
        ("[]", "expected lines `name: value`, found list"),
        ("", "expected lines `name: value`, found nothing"),
        (yaml.safe_dump(STUDY).replace("  few:", "  digits:"), "'digits' is given twice"),
    ],
)
def test_a_study_that_cannot_be_is_refused_with_the_place_and_the_remedy(study, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_study(write(study, tmp_path))


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (
            changed(*KL, "options", "tua", value=3),
            "digits: method kl: .*unknown option 'tua': did you mean 'tau'",
        ),
        (changed(*DIGITS, "options", "epochs", value=2), "own_script.py: unknown option 'epochs'"),
        (changed(*DIGITS, "tuning_options", value={"row": 2}), "unknown option 'row': did you mean 'rows'"),
        (
            changed(*KL, "options", "tau", value="much"),
            "method kl: .*--tau: invalid float value: 'much'.*leave kl out",
        ),
        (changed(*DIGITS, "data", "rows", value="many"), "method erm: .*'many'"),
        (changed("methods", "kl_tuned", "tune", value={"tau": [1, "x"]}), "method kl_tuned: .*'x'"),
        (
            changed(*DIGITS, "tuning_score", value=None),
            "`tuning_score` is missing: .*cannot hold training rows out",
        ),
        (changed(*DIGITS, "tuning_score", value="accuracy"), "accuracy` is of the rows of the score"),
        (
            changed(
                *(*DIGITS, "random_search"),
                value=SEARCH,
                study=changed(*DIGITS, "tuning_score", value="accuracy", study=ERM_ONLY),
            ),
            "accuracy` is of the rows of the score, accuracy: .*Name a metric of validation rows",
        ),
        (changed(*DIGITS, "recipe", value="recipes/glu.py"), "there is no recipe 'recipes/glu.py'"),
        (changed(*DIGITS, "recipe", value="tests/benchmarks/studies.py"), "has no main: a study calls"),
        (changed(*KL, "recipe", value="nowhere.py"), "there is no recipe 'nowhere.py'"),
    ],
)
def test_an_option_that_a_script_would_refuse_is_refused_before_anything_is_trained(study, message, tmp_path):
    with pytest.raises(UserError, match=message):
        check_options(read_study(write(study, tmp_path)), "study.yaml")


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"there is no study 'nowhere\.yaml'"):
        read_study("nowhere.yaml")


def test_merged_keys_are_not_taken_for_duplicates(tmp_path):
    text = yaml.safe_dump(STUDY, sort_keys=False).replace("  digits:", "  digits: &base")
    study = read_study(
        write(
            text + "  again: &again\n    <<: *base\n    score: macro_f1\n  third: {<<: *again, kind: x}\n",
            tmp_path,
        )
    )
    assert [data.score for data in study.datasets.values()] == [
        "accuracy",
        "accuracy",
        "macro_f1",
        "macro_f1",
    ]


def test_a_study_can_be_restricted(tmp_path):
    study = read_study(write(STUDY, tmp_path))
    part = study.restricted(["digits"], ["scaled"], [1])
    assert list(part.datasets) == ["digits"] and part.datasets["digits"].seeds == (1,)
    assert part.datasets["digits"].methods == ("kl", "scaled")
    for arguments, message in (
        ((["digit"],), "--datasets: unknown 'digit'"),
        (((), ["k"]), "--methods: unknown 'k'"),
        (((), (), [7]), "--seeds: unknown '7'"),
        ((["few"], ["kl_tuned"]), "none of these data sets"),
        ((["digits"], (), [2]), "none of these data sets"),
    ):
        with pytest.raises(UserError, match=message):
            study.restricted(*arguments)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_of_the_project_have_options_that_their_scripts_take(path):
    study = read_study(path)
    check_options(study, path.name)
    assert len({cell.name for cell in plan(study)}) == len(plan(study))


def test_what_leaves_the_weights_alone_may_stand_at_a_data_set(tmp_path):
    read_study(write(changed(*DIGITS, "options", "fused_lm_head", value=False), tmp_path))
