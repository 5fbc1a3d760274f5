"""Which runs are pairs: never those of other devices or of unequal searches; and what else the two differ in."""

import pytest
from study_lines import run, study

from benchmarks.report.lines import Records
from benchmarks.report.markdown import build_report
from benchmarks.report.merging import merged
from benchmarks.report.parts import by_difficulty
from benchmarks.report.selection import by_rule
from benchmarks.report.summary import difference


def records_of(lines) -> Records:
    return Records({(r["dataset"], r["method"], r["seed"]): r for r in lines if r["stage"] == "final"}, {})


@pytest.fixture
def lines():
    return study({"one": "tabular"}, {"erm": 0.0, "kl_tau1": 1.0, "cvar": 0.0}, seeds=4, rows=80)


def test_tenths_have_the_pairs_of_the_score_and_other_devices_are_told(lines):
    for line in lines:
        line["device"] = "H100" if line["method"] == "kl_tau1" and line["seed"] else "cpu"
    records = records_of(lines)
    tenths = by_difficulty(records, "one", ["kl_tau1"]).difference["kl_tau1"]
    assert {estimate.n for estimate in tenths} == {difference(records, "one", "kl_tau1").n} == {1}
    told = "- Devices: H100; cpu; not paired with ERM, which had another one: 3 runs\n"
    assert told in build_report(records)[0]


def test_where_no_pair_has_one_device_the_table_says_why(lines):
    for line in lines:
        line["device"] = "H100" if line["method"] == "kl_tau1" else "cpu"
    assert "–: not run yet, or on another device than ERM" in build_report(records_of(lines))[0]


def part(method, name, device, **more):
    return run("d", method, 0, 0.5, part=name, parts=2, device=device, metrics={}, **more)


def test_a_run_has_the_devices_of_all_its_parts():
    erm, kl = (
        merged([part(method, "x", "cpu", commit="a"), part(method, "y", second, commit="a")])
        for method, second in (("erm", "cpu"), ("kl_tau1", "H100"))
    )
    assert (erm["device"], kl["device"], kl["commit"]) == ("cpu", "cpu for x; H100 for y", "a")
    assert "processor" not in kl and difference(records_of([erm, kl]), "d", "kl_tau1").n == 0


def test_each_place_of_the_runs_stands_once():
    parts = [("x", "cpu", "a"), ("y", "H100", "b")]
    runs = [
        merged([part(method, name, device, commit=commit) for name, device, commit in parts])
        for method in ("erm", "kl_tau1")
    ]
    text = build_report(records_of([*runs, run("d", "erm", 1, 0.5, device="cpu", commit="b")]))[0]
    assert "- Commit: a, b\n" in text and "- Devices: H100; cpu\n" in text


def checkpointed(method, device="cpu", draws=(0, 1)):
    point = {"step": 1} | {
        f"{name}_{split}": 0.5 for name in "xy" for split in ("in_accuracy", "in_ece", "out_accuracy")
    }
    return [
        part(method, name, device, draws=2, candidate=f"draw{draw}", checkpoints=[point])
        | {"cell": f"d/{method}/{name}/{draw}"}
        for name in "xy"
        for draw in draws
    ]


def test_rules_of_domains_pair_equal_searches_of_one_device():
    def text(kl):
        return "\n".join(by_rule(Records({}, {}, {}, {"d": [*checkpointed("erm"), *kl]}), "d"))

    assert "| KL, τ = 1 | 50.00 | 0.00 (no interval: 1 value) |" in text(checkpointed("kl_tau1"))
    assert "| KL, τ = 1 | 50.00 | – |" in text(checkpointed("kl_tau1", device="H100"))
    assert "KL" not in text(checkpointed("kl_tau1", draws=(0,))), "the best of one draw against that of two"


def test_pairs_of_other_processors_and_commits_are_counted(lines):
    text = build_report(records_of(lines))[0]
    assert "Pairs with ERM of" not in text
    for line in lines:
        if line["method"] == "cvar":
            line["processor"] = "One"
        if line["method"] == "kl_tau1" and line["seed"] < 2:
            line["commit"] = "fff0000"
    text = build_report(records_of(lines))[0]
    assert "Pairs with ERM of different processors: 4 of 4 (CVaR)." in text
    assert "Pairs with ERM of different commits: 2 of 4 (KL, τ = 1)." in text
