"""Which of several lines of a final run counts: the one whose learning rate tuning chose, whatever the order."""

import itertools
import json

import pytest

from benchmarks.report.choice import best_candidate, best_candidates, in_order
from benchmarks.report.formats import settings_title
from benchmarks.report.lines import read_records
from benchmarks.report.summary import differences_by_seed, final_gap, tuning
from benchmarks.run_file import RunFile
from rgd_hf.scripts.errors import UserError


def line(method, stage, seed, factor, score, **more):
    name = f"data/{method}/lr{factor:g}/seed{seed}/{stage}"
    head = {
        "cell": name,
        "dataset": "data",
        "method": method,
        "stage": stage,
        "seed": seed,
        "kind": "tabular",
    }
    return {**head, "learning_rate_factor": factor, "score": score, **more}


def write(folder, lines, name="runs.jsonl"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return folder


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"lr0.5": {1: 0.7, 2: 0.8}, "lr2": {1: 0.9, 2: 0.5}}, "lr0.5"),
        ({"lr0.5": {1: 0.7, 2: 0.8}, "lr2": {1: 0.9, 2: 0.7}}, "lr2"),
        (
            {"lr2": {1: 0.7, 2: 0.8}, "lr0.5": {1: 0.8, 2: 0.7}},
            "lr0.5",
        ),  # between equals the smaller, in any order
        ({"lr0.5": {1: 0.1, 2: 0.1}, "lr2": {1: 0.9}}, "lr0.5"),  # a run of 2 failed
        ({"lr0.5": {1: 0.1}, "lr2": {2: 0.9}}, None),
        # 600 of 604 rows twice, and 598 and 602 of them, as lines round them: between equals the smaller.
        ({"lr0.5": {1: 0.993377, 2: 0.993377}, "lr2": {1: 0.990066, 2: 0.996689}}, "lr0.5"),
        ({"lr0.5": {1: 0.990066, 2: 0.996689}, "lr2": {1: 0.993377, 2: 0.993377}}, "lr0.5"),
        ({"lr0.5": {1: 0.993377, 2: 0.993377}, "lr2": {1: 0.993380, 2: 0.993377}}, "lr2"),
        ({}, None),
    ],
)
def test_the_best_mean_over_all_tuning_seeds_is_chosen(scores, expected):
    assert best_candidate(scores, (1, 2)) == expected


def test_means_that_are_equal_but_for_the_order_of_their_sum_are_equal():
    for values in itertools.permutations((0.1, 0.2, 0.3)):
        scores = {"lr1": {1: 0.1, 2: 0.2, 3: 0.3}, "lr0.5": dict(enumerate(values, 1))}
        assert best_candidate(scores, (1, 2, 3)) == "lr0.5"


def test_tied_settings_are_all_told():
    scores = {"lr2": {1: 0.5}, "lr0.5": {1: 0.5}, "lr1": {1: 0.4}}
    assert best_candidates(scores, (1,)) == ["lr0.5", "lr2"]


@pytest.mark.parametrize(("commit", "best_epoch"), [("ae36080", 1), ("ae36080", 3), ("fffffff", 1)])
def test_the_best_model_evaluated_again_is_no_last_point_of_the_curve(tmp_path, commit, best_epoch):
    """Of two commits alone: elsewhere, and where the last epoch was the best, the point is what it seems."""
    losses = {1: 0.3, 2: 0.5, 3: 0.3}
    history = [
        {"step": 8 * epoch, "unweighted_loss": 0.1, "eval_loss": loss, "eval_score": 1 - loss}
        for epoch, loss in losses.items()
    ]
    run = line("erm", "final", 0, 1.0, 0.5, commit=commit, history=history)
    records = read_records(write(tmp_path, [run | {"metrics": {"best_epoch": best_epoch}}]))
    found = records.final["data", "erm", 0]["history"]
    again = (commit, best_epoch) == ("ae36080", 1)
    assert found[:2] == history[:2] and found[2] == (
        {"step": 24, "unweighted_loss": 0.1} if again else history[2]
    )
    assert final_gap(records.runs("data", "erm")) == pytest.approx(0.4 if again else 0.2)


def test_a_final_run_with_another_learning_rate_than_tuning_chose_does_not_count(tmp_path):
    tuned = [line("erm", "tuning", 100, 0.5, 0.6), line("erm", "tuning", 100, 2.0, 0.9)]
    finals = [line("erm", "final", 0, 0.5, 0.11), line("erm", "final", 0, 2.0, 0.22)]
    scaled = [
        line("scaled", "final", 0, 0.5, 0.33, tuned_as="erm"),
        line("scaled", "final", 0, 2.0, 0.44, tuned_as="erm"),
    ]
    for number, order in enumerate(itertools.permutations([*tuned, *finals, *scaled])):
        if number % 7:
            continue
        records = read_records(write(tmp_path, order))
        assert records.best_candidates("data", "erm") == ["lr2"]
        assert {key[1]: run["score"] for key, run in records.final.items()} == {"erm": 0.22, "scaled": 0.44}
        assert tuning(records, "data")["erm", ""].is_best
    # The second tuning seed turns the choice.
    later = [line("erm", "tuning", 101, 0.5, 0.6), line("erm", "tuning", 101, 2.0, 0.2)]
    records = read_records(write(tmp_path, [*tuned, *later, *finals, *scaled]))
    assert {key[1]: run["score"] for key, run in records.final.items()} == {"erm": 0.11, "scaled": 0.33}
    # The study has not run it yet: the last line there is, marked as not the best.
    records = read_records(write(tmp_path, [*tuned, *later, finals[1]]))
    assert records.final["data", "erm", 0]["score"] == 0.22 and not tuning(records, "data")["erm", ""].is_best


def test_without_tuning_the_last_line_counts(tmp_path):
    runs = [line("erm", "final", 0, factor, factor) for factor in (0.5, 2.0)]
    for order in (runs, runs[::-1]):
        assert read_records(write(tmp_path, order)).final["data", "erm", 0]["score"] == order[-1]["score"]


def test_the_last_line_is_that_of_the_latest_run_whatever_its_file(tmp_path):
    early = {"cell": "a", "score": 1, "finished": "2026-01-01T09:00:00+00:00"}
    late = {"cell": "a", "score": 2, "finished": "2026-01-01T10:00:00+00:00"}
    for first, second in ((early, late), (late, early)):
        write(tmp_path, [first], "runs-1of2.jsonl")
        write(tmp_path, [second], "runs.jsonl")
        assert RunFile(tmp_path, key="cell").read()["a"]["score"] == 2
    write(tmp_path, [{"cell": "a", "score": 3}], "runs.jsonl")  # written before runs told when they finished
    assert RunFile(tmp_path, key="cell").read()["a"]["score"] in (1, 2)


def test_a_directory_of_another_recipe_or_none_is_refused(tmp_path):
    for content in ({"name": "another"}, [1, 2], 3):
        write(tmp_path, [content])
        with pytest.raises(
            UserError, match=r"runs\.jsonl: line 1 has no 'cell', so it is not a run of a study"
        ):
            RunFile(tmp_path, key="cell").read()
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match=r"cannot write .*give another directory as --output_dir"):
        RunFile(file).prepare()


def test_settings_are_ordered_by_their_numbers():
    assert in_order(["lr10", "lr2,tau3", "lr2,tau1", "lr1e-05", "default"])[-4:] == [
        "lr1e-05",
        "lr2,tau1",
        "lr2,tau3",
        "lr10",
    ]


def part(name, seed, score, **more):
    return line("erm", "final", seed, 1.0, score, part=name, parts=2, **more) | {
        "cell": f"data/erm/lr1/{name}/seed{seed}/final{more.get('candidate', '')}",
        "metrics": {"accuracy": score, "loss": 1 - score},
    }


def test_parts_of_a_run_count_together_once_all_are_there(tmp_path):
    whole = [part("a", 0, 0.5), part("b", 0, 0.9)]
    records = read_records(write(tmp_path, [*whole, part("a", 1, 0.1)]))
    assert list(records.final) == [("data", "erm", 0)]
    run = records.final["data", "erm", 0]
    assert run["score"] == pytest.approx(0.7) and run["metrics"]["worst_part"] == 0.5
    assert run["metrics"]["accuracy"] == pytest.approx(0.7) and run["by_part"] == {"a": 0.5, "b": 0.9}
    assert (run["metrics"]["worst_accuracy"], run["metrics"]["worst_loss"]) == (0.5, 0.5)


def test_every_part_counts_with_the_settings_that_its_own_runs_chose(tmp_path):
    def tried(name, factor, score):
        return line("erm", "tuning", 100, factor, score, part=name, parts=2) | {
            "cell": f"data/erm/lr{factor:g}/{name}/seed100/tuning"
        }

    def final(name, factor, score):
        found = part(name, 0, score, candidate=f"lr{factor:g}")
        return found | {"learning_rate_factor": factor}

    tuned = [tried("a", 0.5, 0.9), tried("a", 2.0, 0.1), tried("b", 0.5, 0.2), tried("b", 2.0, 0.3)]
    finals = [final("a", 0.5, 0.4), final("a", 2.0, 0.99), final("b", 2.0, 0.6), final("b", 0.5, 0.99)]
    for number, order in enumerate(itertools.permutations([*tuned, *finals])):
        if number % 401:
            continue
        records = read_records(write(tmp_path, order))
        run = records.final["data", "erm", 0]
        assert run["score"] == pytest.approx(0.5) and run["candidate"] == "lr0.5 for a; lr2 for b"
        found = tuning(records, "data")
        assert {part: (entry.chosen, entry.is_best) for (_, part), entry in found.items()} == {
            "a": ("lr0.5", True),
            "b": ("lr2", True),
        }
    assert settings_title(run["candidate"]) == "× 0.5 for a; × 2 for b"


def test_in_a_random_search_every_part_has_its_best_draw_by_validation(tmp_path):
    runs = [
        part(name, 0, score, candidate=f"draw{n}", draws=2, validation_score=validation)
        for name, n, score, validation in (
            ("a", 0, 0.9, 0.1),
            ("a", 1, 0.4, 0.2),
            ("b", 0, 0.8, 0.3),
            ("b", 1, 0.2, 0.1),
        )
    ]
    for order in itertools.permutations(runs):
        assert read_records(write(tmp_path, order)).final["data", "erm", 0]["score"] == pytest.approx(0.6)
    with pytest.raises(UserError, match="no final run yet"):
        read_records(write(tmp_path, runs[:3]))


def test_runs_on_different_devices_are_never_paired(tmp_path):
    runs = [
        line(m, "final", s, 1.0, 0.5, device=d)
        for m, s, d in (("erm", 0, "cpu"), ("kl", 0, "H100"), ("erm", 1, "cpu"), ("kl", 1, "cpu"))
    ]
    assert list(differences_by_seed(read_records(write(tmp_path, runs)), "data", "kl")) == [1]


def test_final_runs_of_several_settings_without_a_choice_are_not_compared(tmp_path):
    runs = [line("erm", "final", s, 1.0, 0.5) for s in (0, 1)]
    runs += [line("kl", "final", s, f, 0.6) for s, f in ((0, 1.0), (1, 2.0))]
    records = read_records(write(tmp_path, runs))
    assert records.mixed() == ["data/kl: settings that tuning chose"]
    assert differences_by_seed(records, "data", "kl") == {}
