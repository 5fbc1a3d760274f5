"""Which of several lines of a final run counts: the one whose learning rate tuning chose, whatever the order."""

import itertools
import json

import pytest

from benchmarks.report.learning_rates import best_factor
from benchmarks.report.lines import read_records
from benchmarks.report.summary import tuning
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.run_file import RunFile


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
        ({0.5: {1: 0.7, 2: 0.8}, 2.0: {1: 0.9, 2: 0.5}}, 0.5),
        ({0.5: {1: 0.7, 2: 0.8}, 2.0: {1: 0.9, 2: 0.7}}, 2.0),
        ({2.0: {1: 0.7, 2: 0.8}, 0.5: {1: 0.8, 2: 0.7}}, 0.5),  # between equals the smaller, in any order
        ({0.5: {1: 0.1, 2: 0.1}, 2.0: {1: 0.9}}, 0.5),  # a run of 2 failed
        ({0.5: {1: 0.1}, 2.0: {2: 0.9}}, None),
        ({}, None),
    ],
)
def test_the_best_mean_over_all_tuning_seeds_is_chosen(scores, expected):
    assert best_factor(scores, (1, 2)) == expected


def test_means_that_are_equal_but_for_the_order_of_their_sum_are_equal():
    for values in itertools.permutations((0.1, 0.2, 0.3)):
        scores = {1.0: {1: 0.1, 2: 0.2, 3: 0.3}, 0.5: dict(enumerate(values, 1))}
        assert best_factor(scores, (1, 2, 3)) == 0.5


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
        assert records.best_factor("data", "erm") == 2.0
        assert {key[1]: run["score"] for key, run in records.final.items()} == {"erm": 0.22, "scaled": 0.44}
        assert tuning(records, "data")["erm"].is_best
    # The second tuning seed turns the choice.
    later = [line("erm", "tuning", 101, 0.5, 0.6), line("erm", "tuning", 101, 2.0, 0.2)]
    records = read_records(write(tmp_path, [*tuned, *later, *finals, *scaled]))
    assert {key[1]: run["score"] for key, run in records.final.items()} == {"erm": 0.11, "scaled": 0.33}
    # The study has not run it yet: the last line there is, marked as not the best.
    records = read_records(write(tmp_path, [*tuned, *later, finals[1]]))
    assert records.final["data", "erm", 0]["score"] == 0.22 and not tuning(records, "data")["erm"].is_best


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
            UserError, match=r"runs\.jsonl: line 1 has no 'cell', so it is not a run of this recipe"
        ):
            RunFile(tmp_path, key="cell").read()
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match=r"cannot write .*give another directory as --output_dir"):
        RunFile(file).prepare()
