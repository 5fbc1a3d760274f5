"""Which trainings a study has, in which order and shard, with which options, and what tells one from another."""

from collections import Counter

import pytest
from studies import STUDY, changed, write

from benchmarks.study.cells import (
    FINAL,
    PAIR,
    TUNING,
    Candidate,
    CannotRun,
    Cell,
    candidates,
    identity,
    options_of,
    plan,
    resolve_cell,
)
from benchmarks.study.study_file import read_study

LOW, HIGH = Candidate("lr0.5", 0.5), Candidate("lr2", 2.0)


@pytest.fixture
def read(tmp_path):
    return lambda study=STUDY: read_study(write(study, tmp_path))


def finished(study, scores):
    """Records by identity of cells that gave these scores, with a mean weight of 1.5."""
    return {
        identity(study, cell): {"score": score, "metrics": {"weight_mean": 1.5}}
        for cell, score in scores.items()
    }


def test_tuning_comes_first_then_seed_by_seed_all_data_sets_and_methods(read):
    cells = plan(read())
    tuned = (2 + 2 + 4) * 2 + (
        2 + 2
    ) * 2  # candidates of the methods with a tuning of their own x tuning seeds
    assert [cell.stage for cell in cells] == [TUNING] * tuned + [FINAL] * (4 * 2 + 2 * 3)
    final = [(cell.seed, cell.dataset, cell.method) for cell in cells if cell.stage == FINAL]
    assert final[:4] == [(0, "digits", m) for m in ("erm", "kl", "kl_tuned", "scaled")]
    assert [seed for seed, *_ in final] == sorted(seed for seed, *_ in final)
    assert len({cell.name for cell in cells}) == len(cells)


def test_every_method_tries_the_same_learning_rates_with_each_of_its_own_values(read):
    study = read()
    digits = study.datasets["digits"]
    assert [c.label for c in candidates(digits, study.methods["kl"])] == ["lr0.5", "lr2"]
    expected = ["lr0.5,tau1", "lr0.5,tau3", "lr2,tau1", "lr2,tau3"]
    assert [c.label for c in candidates(digits, study.methods["kl_tuned"])] == expected
    cell = Cell("digits", "kl_tuned", TUNING, 100, candidates(digits, study.methods["kl_tuned"])[3])
    options = options_of(study, cell)
    assert (options["tau"], options["learning_rate"], options["seed"]) == (3, 0.002, 100)


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
    wanted = Cell("digits", "erm", FINAL, 0)

    def tuning(candidate, seed):
        return Cell("digits", "erm", TUNING, seed, candidate)

    def chosen(scores):
        return resolve_cell(study, wanted, finished(study, scores)).candidate.label

    with pytest.raises(CannotRun, match="no settings of digits/erm have finished"):
        chosen({})
    scores = {tuning(LOW, 100): 0.7, tuning(LOW, 101): 0.8, tuning(HIGH, 100): 0.9, tuning(HIGH, 101): 0.5}
    assert chosen(scores) == "lr0.5"
    scores[tuning(HIGH, 101)] = 0.7
    assert chosen(scores) == "lr2"
    del scores[tuning(HIGH, 101)]
    assert chosen(scores) == "lr0.5"
    assert chosen(dict.fromkeys([*scores, tuning(HIGH, 101)], 0.7)) == "lr0.5"


def test_every_part_has_the_settings_that_its_own_runs_choose(read):
    """With a domain held out, the tuning runs that hold out another one have trained on it."""
    study = read(changed("datasets", "digits", "parts", value={"domain": ["a", "b"]}))
    scores = {
        Cell("digits", "erm", TUNING, seed, candidate, part): score
        for seed in (100, 101)
        for candidate, part, score in ((LOW, "a", 0.6), (HIGH, "a", 0.5), (LOW, "b", 0.1), (HIGH, "b", 0.9))
    }

    def chosen(part, scores=scores):
        cell = resolve_cell(study, Cell("digits", "erm", FINAL, 0, part=part), finished(study, scores))
        return cell.candidate.label

    assert (chosen("a"), chosen("b"), chosen("a+b")) == ("lr0.5", "lr2", "lr2")
    of_a = {cell: score for cell, score in scores.items() if cell.part == "a"}
    assert chosen("a", of_a) == "lr0.5"
    with pytest.raises(CannotRun, match="no settings of digits/erm/b have finished"):
        chosen("b", of_a)


def test_a_scaled_learning_rate_is_that_of_the_other_method_times_its_mean_weight(read):
    study = read()
    scores = {
        Cell("digits", "kl", TUNING, seed, candidate): candidate.factor
        for seed in (100, 101)
        for candidate in (LOW, HIGH)
    }
    wanted = Cell("digits", "scaled", FINAL, 1)
    with pytest.raises(CannotRun, match="mean weight of digits/kl/lr2/seed1/final"):
        resolve_cell(study, wanted, finished(study, scores))
    scores[Cell("digits", "kl", FINAL, 1, HIGH)] = 0.9
    found = resolve_cell(study, wanted, finished(study, scores))
    assert (found.candidate.label, found.scale) == ("lr2", 1.5)
    options = options_of(study, found)
    assert options["learning_rate"] == pytest.approx(0.001 * 2 * 1.5) and options["reweighting"] == "none"


def test_a_method_with_a_script_of_its_own_has_the_data_options_and_no_learning_rate(read):
    own = {"recipe": "tests/benchmarks/own_script.py", "options": {"tau": 2}}
    study = read(changed("methods", "other", value=own))
    (candidate,) = candidates(study.datasets["digits"], study.methods["other"])
    options = options_of(study, Cell("digits", "other", FINAL, 0, candidate))
    assert (options["rows"], options["tau"], candidate.label) == (200, 2, "default")
    assert "learning_rate" not in options


def test_parts_are_trained_one_by_one_and_pairs_beside_them(read):
    parts = changed("datasets", "few", "parts", value={"domain": ["a", "b", "c"]})
    study = read(changed("datasets", "few", "pairs", value=True, study=parts))
    cells = [
        cell for cell in plan(study) if cell.dataset == "few" and cell.method == "erm" and cell.seed == 0
    ]
    assert [(cell.stage, cell.part) for cell in cells] == [
        *((FINAL, part) for part in "abc"),
        *((PAIR, pair) for pair in ("a+b", "a+c", "b+c")),
    ]
    assert options_of(study, resolve_cell(study, Cell("few", "erm", PAIR, 0, LOW, "a+c"), {}))["domain"] == [
        "a",
        "c",
    ]


def test_a_random_search_draws_the_same_for_all_methods_and_anew_for_every_seed(read):
    space = {
        "learning_rate": {"log_uniform": [1e-4, 1e-2]},
        "tau": {"choice": [1, 2, 3, 4, 5, 6, 7, 8]},
        "rows": {"log2_integer": [4, 7]},
    }
    few = changed("datasets", "few", "random_search", value={"draws": 4, "space": space})
    study = read(changed("datasets", "few", "data", value={}, study=few))
    cells = [cell for cell in plan(study) if cell.dataset == "few"]
    assert Counter(cell.stage for cell in cells) == {FINAL: 2 * 3 * 4}
    drawn = {(c.method, c.seed, c.candidate.label): options_of(study, c) for c in cells}
    for (method, seed, label), options in drawn.items():
        assert options["learning_rate"] == drawn["erm", seed, label]["learning_rate"], method
        assert 1e-4 <= options["learning_rate"] <= 1e-2 and 16 <= options.get("rows", 16) <= 128
    assert drawn["kl", 0, "draw0"]["learning_rate"] == 0.002 and drawn["kl", 0, "draw0"]["tau"] == 1
    assert len({options["learning_rate"] for options in drawn.values()}) == 1 + 3 * 3


def test_without_a_choice_nothing_is_tuned(read):
    study = read(changed("learning_rate_factors", value=[1]))
    assert {cell.method for cell in plan(study) if cell.stage == TUNING} == {"kl_tuned"}
    assert resolve_cell(study, Cell("digits", "erm", FINAL, 0), {}).candidate.factor == 1.0


def test_a_change_of_any_option_is_another_cell_and_nothing_else_is(read):
    study, cell = read(), Cell("few", "kl", FINAL, 0, LOW)
    others = [
        Cell("few", "erm", FINAL, 0, LOW),
        Cell("digits", "kl", FINAL, 0, LOW),
        Cell("few", "kl", FINAL, 1, LOW),
    ]
    more_seeds = read(changed("datasets", "few", "seeds", value=[0, 1, 2, 3]))
    assert identity(more_seeds, cell) == identity(study, cell)
    stronger = read(changed("methods", "kl", "options", "tau", value=5))
    assert identity(stronger, cell) != identity(study, cell)
    assert identity(stronger, others[0]) == identity(study, others[0])
    smaller = read(changed("datasets", "few", "data", "rows", value=59))
    assert identity(smaller, cell) != identity(study, cell)
    assert identity(smaller, others[1]) == identity(study, others[1])
    assert len({identity(study, each) for each in (cell, *others)}) == 4
