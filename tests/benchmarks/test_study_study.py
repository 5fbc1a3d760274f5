"""Studies as files: what is read, what is refused, which cells there are, and what tells one from another."""

import copy
from pathlib import Path

import pytest
import yaml

from benchmarks.study.cells import FINAL, TUNING, CannotRun, Cell, identity, options_of, plan, resolve_cell
from benchmarks.study.checks import check_options
from benchmarks.study.study import read_study
from rgd_hf.scripts.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "benchmarks" / "configs"
STUDY = {
    "seeds": [0, 1],
    "tuning_seeds": [100, 101],
    "learning_rate_factors": [0.5, 2],
    "methods": {
        "erm": {"options": {"reweighting": "none"}},
        "erm_lr_scaled": {"options": {"reweighting": "none"}, "scale_learning_rate_by": "kl_tau1"},
        "kl_tau1": {"options": {"reweighting": "kl", "tau": 1}},
        "ess_90": {"options": {"reweighting": "kl", "target_ess": 0.9}},
    },
    "datasets": {
        "cancer": {
            "recipe": "tabular",
            "score": "accuracy",
            "options": {"data": "breast_cancer", "learning_rate": 0.001, "num_train_epochs": 2},
        },
        "digits": {
            "recipe": "tabular",
            "score": "accuracy",
            "methods": ["erm", "ess_90"],
            "seeds": [0, 1, 2],
            "options": {"data": "digits", "learning_rate": 0.002, "num_train_epochs": 2},
            "tuning_options": {"num_train_epochs": 1},
        },
    },
}


@pytest.fixture
def read(tmp_path):
    def read(changed=STUDY):
        path = tmp_path / "study.yaml"
        path.write_text(changed if isinstance(changed, str) else yaml.safe_dump(changed, sort_keys=False))
        return read_study(path)

    return read


def changed(*keys, value):
    """`STUDY` with one entry set, or left out where the value is None."""
    study = copy.deepcopy(STUDY)
    place = study
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return study


def finished(study, scores):
    """Records by identity of cells that gave these scores, with a mean weight of 1.5."""
    return {
        identity(study, cell): {"score": score, "metrics": {"weight_mean": 1.5}}
        for cell, score in scores.items()
    }


def test_a_study_names_its_time_budget(read):
    assert read().time_budget is None
    study = read(changed("time_budget", value=30))
    assert study.time_budget == 30 and study.restricted(["cancer"]).time_budget == 30


# --- what is refused ------------------------------------------------------------------------------------------------

CANCER = ("datasets", "cancer")


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (changed("method", value={}), "unknown 'method': choose among 'datasets', 'methods'"),
        (changed("methods", value=None), "the study has no `methods`"),
        (changed("methods", "erm", value=None), "'erm' is missing, which all others are compared with"),
        (changed("time_budget", value=-1), "time_budget is in minutes, a number of at least 0, not -1"),
        (changed("methods", "kl_tau1", "title", value="KL"), "methods: kl_tau1: unknown 'title'"),
        (changed("methods", "kl_tau1", "options", "seed", value=3), "leave out 'seed': the study sets that"),
        (
            changed("methods", "kl_tau1", "options", "tua", value=3),
            "methods: kl_tau1: 'tua' is no option of re-weighting.*A method may set 'reweighting', 'tau'",
        ),
        (
            changed("methods", "kl_tau1", "options", "weight_decay", value=3),
            "must be the same for all methods",
        ),
        (
            changed("methods", "kl_tau1", value=[]),
            "methods: kl_tau1: expected lines `name: value`, found list",
        ),
        (
            changed("methods", "erm_lr_scaled", "scale_learning_rate_by", value="kl"),
            "not 'kl': choose among 'kl_tau1'",
        ),
        (
            changed("methods", "erm_lr_scaled", "scale_learning_rate_by", value=["kl_tau1"]),
            r"not \['kl_tau1'\]",
        ),
        (
            changed("methods", "erm_lr_scaled", "scale_learning_rate_by", value="erm"),
            "a method that re-weights",
        ),
        (
            changed("methods", "erm", "options", "reweighting", value="kl"),
            "erm is what all others are compared",
        ),
        (changed("methods", "erm", "scale_learning_rate_by", value="kl_tau1"), "a learning rate of its own"),
        (
            changed("methods", "kl/1", value={"options": {"reweighting": "kl"}}),
            "methods: 'kl/1': a name has letters",
        ),
        (changed("datasets", "my data", value={}), "datasets: 'my data': a name has letters"),
        (changed(*CANCER, "options", value=[1]), "options: expected lines `name: value`, found list"),
        (changed("holdout_fraction", value="half"), "above 0 and below 1, not 'half'"),
        (changed("holdout_fraction", value=1), "above 0 and below 1, not 1"),
        (changed(*CANCER, "score", value=3), "score must be the name of a metric, not 3"),
        (changed(*CANCER, "tuning_options", value={"learning_rate": 1}), "leave out 'learning_rate'"),
        (changed("seeds", value=[2**32]), "whole numbers from 0 to 4294967295"),
        (changed("learning_rate_factors", value=[1, 1.0]), "learning_rate_factors must differ"),
        (changed(*CANCER, "recipe", value="glu"), "recipe: unknown 'glu': choose among 'glue', 'imagenet'"),
        (changed(*CANCER, "score", value=None), "datasets: cancer: `score` is missing"),
        (changed(*CANCER, "score", value="log_loss"), "'log_loss' is better when it is lower"),
        (changed(*CANCER, "methods", value=["erm", "rgd"]), "methods: unknown 'rgd'"),
        (changed(*CANCER, "methods", value=["erm", "erm"]), "list of different values"),
        (changed(*CANCER, "methods", value=["kl_tau1"]), "'erm' is missing"),
        (changed(*CANCER, "methods", value=["erm", "erm_lr_scaled"]), "takes its learning rate from kl_tau1"),
        (changed(*CANCER, "options", "epochs", value=2), "cancer: unknown option 'epochs'"),
        (changed(*CANCER, "options", "learning_rate", value="1e-3"), "YAML wants a point"),
        (changed(*CANCER, "options", "learning_rate", value=None), "learning_rate must be a positive number"),
        (changed(*CANCER, "tuning_options", value={"n_epochs": 2}), "unknown option 'n_epochs'"),
        (changed("tuning_seeds", value=[1]), "tuning_seeds must be others than seeds.*both have '1'"),
        (changed("seeds", value=[0, 0]), "seeds must be a list of different values"),
        (changed("seeds", value=[-1]), "whole numbers from 0"),
        (changed("learning_rate_factors", value=[0, 1]), "must be positive numbers"),
        ("datasets: [", "not valid YAML"),
        ("[]", "expected lines `name: value`, found list"),
        (
            yaml.safe_dump(STUDY).replace("  digits:", "  cancer:"),
            "'cancer' stands here twice",
        ),
    ],
)
def test_a_study_that_cannot_be_is_refused_with_the_place_and_the_remedy(study, message, read):
    with pytest.raises(UserError, match=message):
        read(study)


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"there is no study 'nowhere\.yaml'"):
        read_study("nowhere.yaml")


def test_scores_fit_the_recipe(read):
    options = {"learning_rate": 0.1}
    for recipe, score, message in (
        ("glue", "accuracy", "must begin with eval_"),
        ("glue", "eval_loss", "better when it is lower"),
        ("domainbed", "ece", "compared by `accuracy`"),
    ):
        with pytest.raises(UserError, match=message):
            read(changed(*CANCER, value={"recipe": recipe, "score": score, "options": options}))


def test_merged_keys_are_not_taken_for_duplicates(read):
    text = yaml.safe_dump(STUDY, sort_keys=False).replace("  cancer:", "  cancer: &base")
    study = read(
        text + "  again: &again\n    <<: *base\n    score: f1_macro\n  third: {<<: *again, score: auroc}\n"
    )
    assert [data.score for data in study.datasets.values()] == ["accuracy", "accuracy", "f1_macro", "auroc"]


@pytest.mark.parametrize("name", ["compare_quick.yaml", "compare.yaml"])
def test_the_studies_of_the_project_are_read_and_all_their_cells_have_options(name):
    study = read_study(CONFIGS / name)
    cells = plan(study)
    assert len({cell.name for cell in cells if cell.stage == TUNING}) == sum(c.stage == TUNING for c in cells)
    for cell in cells:
        assert options_of(study, cell)["learning_rate"] > 0


def test_a_study_can_be_restricted(read):
    study = read()
    part = study.restricted(["cancer"], ["erm_lr_scaled"], [1])
    assert list(part.datasets) == ["cancer"] and part.datasets["cancer"].seeds == (1,)
    assert part.datasets["cancer"].methods == ("kl_tau1", "erm_lr_scaled")
    for arguments, message in (
        ((["cencer"],), "--datasets: unknown 'cencer'"),
        (((), ["kl"]), "--methods: unknown 'kl'"),
        (((), (), [7]), "--seeds: unknown '7'"),
        ((["digits"], ["kl_tau1"]), "none of these data sets"),
        ((["cancer"], (), [2]), "none of these data sets"),
    ):
        with pytest.raises(UserError, match=message):
            study.restricted(*arguments)


# --- cells ----------------------------------------------------------------------------------------------------------


def test_tuning_comes_first_then_seed_by_seed_all_data_sets_and_methods(read):
    cells = plan(read())
    stages = [cell.stage for cell in cells]
    tuned = 3 * 2 * 2 + 2 * 2 * 2  # methods with a tuning of their own x factors x seeds, of each data set
    assert stages == [TUNING] * tuned + [FINAL] * (4 * 2 + 2 * 3)
    final = [(cell.seed, cell.dataset, cell.method) for cell in cells if cell.stage == FINAL]
    assert final[:6] == [
        (0, "cancer", "erm"),
        (0, "cancer", "kl_tau1"),
        (0, "cancer", "ess_90"),
        (0, "cancer", "erm_lr_scaled"),
        (0, "digits", "erm"),
        (0, "digits", "ess_90"),
    ]
    assert [seed for seed, *_ in final] == sorted(seed for seed, *_ in final)


def test_every_method_tries_the_same_learning_rates(read):
    tried = {}
    for cell in plan(read()):
        if cell.stage == TUNING:
            tried.setdefault((cell.dataset, cell.method), []).append((cell.seed, cell.factor))
    expected = [(100, 0.5), (100, 2), (101, 0.5), (101, 2)]
    assert all(sorted(pairs) == expected for pairs in tried.values())


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shards_are_disjoint_complete_and_need_nothing_of_each_other(read, count):
    study = read()
    shards = [plan(study, (number, count)) for number in range(1, count + 1)]
    together = [cell for shard in shards for cell in shard]
    assert len(together) == len(set(together)) and set(together) == set(plan(study))
    for shard in shards:
        tuned = {(cell.dataset, cell.method) for cell in shard if cell.stage == TUNING}
        for cell in shard:
            if cell.stage == FINAL:
                assert (cell.dataset, study.methods[cell.method].tuned_as) in tuned


def test_tuning_decides_by_the_mean_over_its_seeds_and_passes_over_what_failed(read):
    study = read()
    wanted = Cell("cancer", "erm", FINAL, 0)

    def tuning(factor, seed):
        return Cell("cancer", "erm", TUNING, seed, factor)

    with pytest.raises(CannotRun, match="no learning rate of cancer/erm has finished"):
        resolve_cell(study, wanted, {})
    scores = {tuning(0.5, 100): 0.7, tuning(0.5, 101): 0.8, tuning(2.0, 100): 0.9, tuning(2.0, 101): 0.5}
    assert resolve_cell(study, wanted, finished(study, scores)).factor == 0.5
    scores[tuning(2.0, 101)] = 0.7
    assert resolve_cell(study, wanted, finished(study, scores)).factor == 2.0
    del scores[tuning(2.0, 101)]
    assert resolve_cell(study, wanted, finished(study, scores)).factor == 0.5
    scores = dict.fromkeys(scores, 0.7) | {tuning(2.0, 101): 0.7}
    assert resolve_cell(study, wanted, finished(study, scores)).factor == 0.5


def test_a_scaled_learning_rate_is_that_of_the_other_method_times_its_mean_weight(read):
    study = read()
    scores = {
        Cell("cancer", "kl_tau1", TUNING, seed, factor): factor
        for seed in (100, 101)
        for factor in (0.5, 2.0)
    }
    wanted = Cell("cancer", "erm_lr_scaled", FINAL, 1)
    with pytest.raises(CannotRun, match="mean weight of cancer/kl_tau1/lr2/seed1/final"):
        resolve_cell(study, wanted, finished(study, scores))
    scores[Cell("cancer", "kl_tau1", FINAL, 1, 2.0)] = 0.9
    found = resolve_cell(study, wanted, finished(study, scores))
    assert (found.factor, found.scale) == (2.0, 1.5)
    options = options_of(study, found)
    assert options["learning_rate"] == pytest.approx(0.001 * 2 * 1.5) and options["reweighting"] == "none"


def test_without_a_choice_nothing_is_tuned(read):
    study = read(changed("learning_rate_factors", value=[1]))
    assert all(cell.stage == FINAL for cell in plan(study))
    assert resolve_cell(study, Cell("cancer", "erm", FINAL, 0), {}).factor == 1.0


def test_a_change_of_any_option_is_another_cell_and_nothing_else_is(read):
    study, cell = read(), Cell("digits", "ess_90", FINAL, 0, 1.0)
    tuning = Cell("digits", "ess_90", TUNING, 100, 0.5)
    others = [Cell("digits", "erm", FINAL, 0, 1.0), Cell("cancer", "ess_90", FINAL, 0, 1.0)]
    same = read(yaml.safe_dump(STUDY, sort_keys=False, default_flow_style=True))
    assert identity(same, cell) == identity(study, cell)
    more_seeds = read(changed("datasets", "digits", "seeds", value=[0, 1, 2, 3]))
    assert identity(more_seeds, cell) == identity(study, cell)
    stronger = read(changed("methods", "ess_90", "options", "target_ess", value=0.8))
    assert identity(stronger, cell) != identity(study, cell)
    assert identity(stronger, others[0]) == identity(study, others[0])
    longer = read(changed("datasets", "digits", "options", "num_train_epochs", value=3))
    assert identity(longer, cell) != identity(study, cell)
    assert identity(longer, tuning) == identity(study, tuning)  # which has epochs of its own
    assert identity(longer, others[1]) == identity(study, others[1])
    names = {identity(study, c) for c in (cell, tuning, *others, Cell("digits", "ess_90", FINAL, 1, 1.0))}
    assert len(names) == 5


def test_methods_mean_the_same_to_every_recipe(read):
    study = read_study(CONFIGS / "compare_quick.yaml")
    texts = options_of(study, Cell("sentences", "ess_90", FINAL, 3, 2.0))
    assert (texts["reweighting"], texts["target_ess"], texts["seed"]) == ("kl", 0.9, 3)
    assert texts["learning_rate"] == pytest.approx(4e-4) and "holdout_fraction" not in texts
    tuning = options_of(study, Cell("sentences", "ess_90", TUNING, 100, 2.0))
    assert tuning["holdout_fraction"] == 0.2 and tuning["seed"] == 100
    table = options_of(study, Cell("breast_cancer", "erm", FINAL, 3, 1.0))
    assert (table["objectives"], table["first_seed"], table["seeds"]) == ("erm", 3, 1)
    domains = options_of(study, Cell("rotated_digits", "kl_tau1", FINAL, 3, 1.0))
    assert (domains["reweightings"], domains["first_trial"], domains["n_trials"]) == ("kl", 3, 1)
    assert "reweighting" not in domains


def test_class_weights_are_an_objective_of_tables(read):
    options = {"reweighting": "none", "class_weights": "balanced"}
    study = read(changed("methods", "class_weights", value={"options": options}))
    found = options_of(study, Cell("cancer", "class_weights", FINAL, 0, 1.0))
    assert found["objectives"] == "class_weights" and "class_weights" not in found
    options = {"reweighting": "kl", "class_weights": "balanced"}
    study = read(changed("methods", "class_weights", value={"options": options}))
    with pytest.raises(CannotRun, match="without re-weighting alone"):
        options_of(study, Cell("cancer", "class_weights", FINAL, 0, 1.0))


@pytest.mark.parametrize("name", ["compare_quick.yaml", "compare.yaml"])
def test_the_studies_of_the_project_have_options_that_their_recipes_take(name):
    check_options(read_study(CONFIGS / name), name)


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (
            changed("methods", "kl_tau1", "options", "tau", value=-1),
            "method kl_tau1: tau is .* positive, .*not -1",
        ),
        (changed("methods", "kl_tau1", "options", "tau", value="much"), "--tau: invalid float value: 'much'"),
        (changed("methods", "ess_90", "options", "target_ess", value=1.5), "below 1, not 1.5"),
        (changed("methods", "kl_tau1", "options", "reweighting", value="lk"), "'lk'.*choose from 'kl'"),
        (
            changed(*CANCER, "score", value="acuracy"),
            "cancer: score: unknown 'acuracy': choose among accuracy",
        ),
        (changed(*CANCER, "options", "num_train_epochs", value="many"), "cancer: method erm: .*'many'"),
        (
            changed("datasets", "digits", "tuning_options", value={"num_train_epochs": "few"}),
            "digits: .*'few'",
        ),
        (
            changed("methods", "ess_90", "options", "class_weights", value="balanced"),
            "without re-weighting alone.*leave ess_90 out",
        ),
        (
            changed(*CANCER, "options", "networks", value=["mlp", "tabm"]),
            "networks must be a single one, not .*'tabm'",
        ),
        (changed(*CANCER, "options", "data", value=["wine", "digits"]), "data must be a single one"),
    ],
)
def test_a_value_that_a_recipe_would_refuse_is_refused_before_anything_is_trained(study, message, read):
    with pytest.raises(UserError, match=message):
        check_options(read(study), "study.yaml")
