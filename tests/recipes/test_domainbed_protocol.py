"""Splits, batches, hyper-parameters and selection rules against the rules as they are written."""

import hashlib

import numpy as np
import pytest

from rgd_hf.scripts.domains.algorithms import ALGORITHMS, draw_hyper_parameters
from rgd_hf.scripts.domains.batches import DomainSampler
from rgd_hf.scripts.domains.comparison import Comparison, Method, estimate
from rgd_hf.scripts.domains.environments import (
    DomainData,
    Environment,
    check_environments,
    check_held_out,
    seed_hash,
    split,
)
from rgd_hf.scripts.domains.metrics import expected_calibration_error
from rgd_hf.scripts.domains.selection import RULES
from rgd_hf.scripts.domains.sweep import Job, plan_jobs
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.run_file import parse_shard


@pytest.mark.parametrize("count,trial,position", [(5, 0, 0), (37, 0, 1), (1670, 2, 3)])
def test_split_is_a_brute_force_reading_of_the_rule(count, trial, position):
    # DomainBed: seed = md5 of the arguments' tuple; shuffle all keys; the first int(0.2 n) are out, the others in.
    seed = int(hashlib.md5(str((trial, position)).encode("utf-8")).hexdigest(), 16) % 2**31
    keys = list(range(count))
    np.random.RandomState(seed).shuffle(keys)
    n_out = int(count * 0.2)
    inside, outside = split(count, trial, position)
    assert outside.tolist() == keys[:n_out] and inside.tolist() == keys[n_out:]


def test_split_depends_on_trial_and_environment():
    splits = {(t, p): tuple(split(40, t, p)[1]) for t in range(3) for p in range(3)}
    assert len(set(splits.values())) == 9


def environment(name, labels):
    return Environment(name, np.zeros((len(labels), 2, 2, 3), np.uint8), np.array(labels, dtype=np.int64))


def data(**labels):
    return DomainData(tuple(environment(n, v) for n, v in labels.items()), ("cat", "dog"), "image")


@pytest.mark.parametrize(
    "bad,message",
    [
        (data(photo=[0, 1] * 5), "found 1 domain"),
        (data(photo=[0, 1] * 5, sketch=[]), "'sketch' have no images"),
        (data(photo=[0, 1] * 5, sketch=[0] * 9), "'sketch' has no image of the class.*'dog'"),
        (data(photo=[0, 1] * 5, sketch=[0, 1]), "'sketch' have too few samples"),
    ],
)
def test_domains_that_do_not_fit_are_named(bad, message):
    with pytest.raises(UserError, match=message):
        check_environments(bad)


def test_unknown_held_out_domain_lists_the_names():
    both = data(photo=[0, 1] * 5, sketch=[0, 1] * 5)
    assert check_held_out([], both) == ["photo", "sketch"]
    assert check_held_out(["sketch"], both) == ["sketch"]
    with pytest.raises(UserError, match="no domain 'art'; domains: 'photo', 'sketch'"):
        check_held_out(["art"], both)


def draws(positions, trial=0, per_domain=4, batches=6):
    splits = [np.arange(100) + 1000 * position for position in positions]
    drawn = list(DomainSampler(splits, positions, trial, per_domain, batches))
    return {p: [(d.sample, d.seed) for d in drawn if d.domain == k] for k, p in enumerate(positions)}, drawn


def test_batches_are_per_domain_and_the_same_whatever_is_held_out():
    without_one, drawn = draws([0, 2])
    assert [d.domain for d in drawn] == ([0] * 4 + [1] * 4) * 6
    without_none, _ = draws([0, 1, 2])
    assert without_one[0] == without_none[0] and without_one[2] == without_none[2]
    assert draws([0, 2], trial=1)[0][0] != without_one[0]
    larger, _ = draws([0], per_domain=8, batches=3)
    assert larger[0] == without_one[0]


def test_hyper_parameters_are_paired_between_algorithms():
    defaults = {"learning_rate": 1e-3, "batch_size": 4, "weight_decay": 0.0, "dropout": 0.0}
    assert draw_hyper_parameters("erm", defaults, "pretrained", 0, 5) == defaults
    assert draw_hyper_parameters("coral", defaults, "pretrained", 0, 5) == {**defaults, "coral_weight": 1.0}
    drawn = [draw_hyper_parameters(name, defaults, "pretrained", 3, 1) for name in ALGORITHMS]
    assert len({d["learning_rate"] for d in drawn}) == 1
    assert 1e-5 <= drawn[0]["learning_rate"] <= 10**-3.5 and 8 <= drawn[0]["batch_size"] <= 46
    dropouts = {draw_hyper_parameters("erm", defaults, "pretrained", d, 0)["dropout"] for d in range(1, 30)}
    assert dropouts == {0.0, 0.1, 0.5}
    others = [draw_hyper_parameters("erm", defaults, "pretrained", d, t) for d, t in [(1, 1), (3, 0)]]
    assert len({d["learning_rate"] for d in [drawn[0], *others]}) == 3


# --- selection rules, by hand --------------------------------------------------------------------------------------

NAMES = ["a", "b", "c"]


def point(step, inside=None, **out):
    values = {f"{name}_out_accuracy": accuracy for name, accuracy in out.items()}
    for name, accuracy in (inside or {}).items():
        values |= {f"{name}_in_accuracy": accuracy, f"{name}_in_ece": accuracy / 10}
    return {"step": step, **values}


def run(draw, held_out, *checkpoints, trial=0, algorithm="erm", reweighting="none"):
    return {
        "name": f"{algorithm}-{reweighting}-{trial}-{draw}-{'+'.join(held_out)}",
        "algorithm": algorithm,
        "reweighting": reweighting,
        "trial": trial,
        "draw": draw,
        "held_out": held_out,
        "checkpoints": list(checkpoints),
    }


RUNS = [
    # means of b and c out: 0.5, 0.7 | 0.6, 0.65; out of a at the last step: 0.2 | 0.9
    run(0, ["a"], point(10, {"a": 0.41}, a=0.99, b=0.4, c=0.6), point(20, {"a": 0.42}, a=0.2, b=0.6, c=0.8)),
    run(1, ["a"], point(10, {"a": 0.43}, a=0.1, b=0.6, c=0.6), point(20, {"a": 0.44}, a=0.9, b=0.7, c=0.6)),
    # Cross-validation of a: b held out with a, c held out with a. Draw 0: 0.3, 0.5; draw 1: 0.8, 0.1.
    run(0, ["a", "b"], point(10, {"a": 0, "b": 0.2}), point(20, {"a": 0, "b": 0.6})),
    run(0, ["a", "c"], point(10, {"a": 0, "c": 0.4}), point(20, {"a": 0, "c": 0.4})),
    run(1, ["a", "b"], point(10, {"a": 0, "b": 0.7}), point(20, {"a": 0, "b": 0.1})),
    run(1, ["a", "c"], point(10, {"a": 0, "c": 0.9}), point(20, {"a": 0, "c": 0.1})),
    # A run of another environment must not count.
    run(0, ["b"], point(20, {"b": 1.0}, a=1.0, b=1.0, c=1.0)),
]


@pytest.mark.parametrize(
    "rule,validation,accuracy,draw,step",
    [
        ("training_domain", 0.7, 0.42, 0, 20),
        ("leave_one_domain_out", 0.8, 0.43, 1, 10),
        ("oracle", 0.9, 0.44, 1, 20),
    ],
)
def test_selection_rules_by_hand(rule, validation, accuracy, draw, step):
    choice = RULES[rule][1](RUNS, "a", NAMES)
    assert (choice.validation, choice.accuracy) == pytest.approx((validation, accuracy))
    assert (choice.run, choice.step) == (f"erm-none-0-{draw}-a", step)
    assert choice.ece == pytest.approx(accuracy / 10)


def test_cross_validation_needs_every_pair():
    rule = RULES["leave_one_domain_out"][1]
    without = [r for r in RUNS if r["name"] != "erm-none-0-1-a+c"]
    assert rule(without, "a", NAMES).validation == pytest.approx(0.5)  # draw 0 is whole
    assert rule([r for r in without if r["held_out"] != ["a", "b"]], "a", NAMES) is None
    assert RULES["oracle"][1](RUNS, "c", NAMES) is None


def test_standard_error_and_interval():
    found = estimate([1.0, 2.0, 6.0])
    assert found.mean == 3 and found.error == pytest.approx(np.sqrt(7 / 3))  # variance (4 + 1 + 9) / 2 = 7
    low, high = found.interval()
    assert (low, high) == pytest.approx((3 - 4.3027 * found.error, 3 + 4.3027 * found.error), rel=1e-4)
    assert estimate([1.0]).interval() is None and np.isnan(estimate([1.0]).error)


def test_differences_are_paired_by_trial_and_whole_trials_only():
    def one(method, trial, a, b=None):
        runs = [run(0, ["a"], point(9, {"a": a}, a=a, b=0.5, c=0.5), trial=trial, reweighting=method)]
        if b is not None:
            runs.append(run(0, ["b"], point(9, {"b": b}, a=0.5, b=b, c=0.5), trial=trial, reweighting=method))
        return runs

    runs = one("none", 0, 0.5, 0.7) + one("none", 1, 0.2, 0.2) + one("none", 2, 0.9, 0.9)
    runs += one("kl", 0, 0.6, 0.8) + one("kl", 1, 0.2, 0.6) + one("kl", 2, 0.1)
    comparison = Comparison(runs, ["a", "b"], NAMES, trials=3, planned=18)
    found = comparison.difference("oracle", Method("erm", "kl"), Method("erm", "none"))
    assert found.trials == 2 and found.mean == pytest.approx(15)  # trials 0 and 1: +10 and +20 points
    row = comparison.row("oracle", Method("erm", "none"))
    assert row["a"].mean == pytest.approx(100 * (0.5 + 0.2 + 0.9) / 3) and row["a"].trials == 3
    assert row["worst"].mean == pytest.approx(100 * (0.5 + 0.2 + 0.9) / 3)
    assert comparison.row("oracle", Method("erm", "kl"))["average"].trials == 2


def test_calibration_error_by_hand():
    probabilities = np.array([[0.95, 0.05], [0.9, 0.1], [0.4, 0.6], [0.45, 0.55]])
    labels = np.array([0, 1, 1, 1])
    # Ten bins: 0.95 right | 0.9 wrong | 0.6 and 0.55 right -> (0.05 + 0.9 + 0.4 + 0.45) / 4, bins (0.5, 0.6].
    assert expected_calibration_error(probabilities, labels, bins=10) == pytest.approx(
        (0.05 + 0.9 + 0.85) / 4
    )
    assert expected_calibration_error(np.eye(3), np.arange(3)) == 0


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_plan_has_every_pair_only_for_cross_validation():
    singles = plan_jobs(["erm", "coral"], ["none", "kl"], 2, 3, NAMES, NAMES, pairs=False)
    assert len(singles) == len(set(singles)) == 2 * 2 * 2 * 3 * 3
    held_out = {job.held_out for job in plan_jobs(["erm"], ["none"], 1, 1, ["a"], NAMES, pairs=True)}
    assert held_out == {("a",), ("a", "b"), ("a", "c")}


def test_names_tell_settings_apart():
    job = Job("erm", "kl", 0, 1, ("a", "b"))
    assert job.name({"max_steps": 3}).startswith("erm-kl-trial0-draw1-a-b-")
    assert job.name({"max_steps": 3}) == job.name({"max_steps": 3}) != job.name({"max_steps": 4})


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_shards_that_are_none(text):
    with pytest.raises(UserError, match="--shard must be i/n"):
        parse_shard(text)
    assert parse_shard("2/3") == (2, 3)


def test_seed_hash_is_that_of_a_tuple():
    assert seed_hash(0, 1) == int(hashlib.md5(b"(0, 1)").hexdigest(), 16) % 2**31
