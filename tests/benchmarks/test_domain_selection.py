"""DomainBed's rules of selection by hand."""

import pytest

from benchmarks.domains.selection import RULES

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
