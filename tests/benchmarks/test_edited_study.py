"""A study whose file was edited: what is compared is of the file as it is now, the rest is counted."""

import json
import shutil

import pytest
from studies import lines

from benchmarks.report.lines import read_records
from benchmarks.report.markdown import build_report
from benchmarks.report.planned import plan_of
from benchmarks.report.summary import differences_by_seed, tuning
from rgd_hf.scripts.errors import UserError


@pytest.fixture
def edited(whole, tmp_path):
    """A function: the finished study with lines added, and with its file changed by another function or left out."""

    def edit(change=None, more=(), keep=True):
        shutil.copytree(whole[1], tmp_path, dirs_exist_ok=True)
        content = json.loads((tmp_path / "study.json").read_text())
        if change is not None:
            change(content)
        (tmp_path / "study.json").write_text(json.dumps(content))
        if not keep:
            (tmp_path / "study.json").unlink()
        with (tmp_path / "runs.jsonl").open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in more)
        return tmp_path

    return edit


def rerun(whole, method, dataset="digits", **settings):
    """Lines of a method trained again, later, with other settings, all right or all wrong."""
    return [
        {**line, "settings": {**line["settings"], **settings}, "score": 0.125, "finished": "2999"}
        for line in lines(whole[1])
        if (line["dataset"], line["method"]) == (dataset, method)
    ]


def scores(records):
    return {key: run["score"] for key, run in [*records.final.items(), *records.tuning.items()]}


def test_a_finished_study_is_all_of_its_file(whole):
    records = read_records(whole[1])
    assert not records.left_out and len(records.final) == 4 * 2 + 2 * 3
    assert "earlier version" not in build_report(records)[0]


def test_runs_of_options_that_were_taken_back_do_not_count(whole, edited):
    records = read_records(edited(more=rerun(whole, "kl", rows=100)))
    assert scores(records) == scores(read_records(whole[1]))
    assert records.left_out == {"digits/kl: rows 100, now 200": 2 + 2 * 2}
    text = build_report(records)[0]
    assert "**6 runs of an earlier version of the study are left out:**" in text
    assert "- digits/kl: rows 100, now 200 (6 runs)\n" in text


def test_options_that_the_study_has_no_more_or_has_now_are_named(whole, edited):
    extra = rerun(whole, "kl", domain=["a"])
    bare = [{**line, "settings": {k: v for k, v in line["settings"].items() if k != "tau"}} for line in extra]
    assert read_records(edited(more=bare)).left_out == {
        "digits/kl: domain a, now not set; tau not set, now 1": 6
    }


def test_scores_of_other_tuning_seeds_are_not_averaged_in(whole, edited):
    def change(study):
        study["datasets"]["digits"]["tuning_seeds"] = [101]

    records = read_records(edited(change))
    left = {key: run["score"] for key, run in records.tuning.items() if key[:2] == ("digits", "kl")}
    assert {key[2] for key in left} == {101}
    assert tuning(records, "digits")["kl", ""].scores == {key[3]: score for key, score in left.items()}
    assert records.left_out["digits/kl: tuning seed 100, now 101"] == 2


def test_narrowed_seeds_factors_and_values_leave_the_others_out(edited):
    def change(study):
        study["datasets"]["few"] |= {"seeds": [0, 1], "learning_rate_factors": [0.5]}
        study["methods"]["kl_tuned"]["tune"] = {"tau": [1]}

    records = read_records(edited(change))
    assert records.seeds("few") == [0, 1]
    assert {run["learning_rate_factor"] for key, run in records.tuning.items() if key[0] == "few"} == {0.5}
    assert {run["settings"]["tau"] for key, run in records.tuning.items() if key[1] == "kl_tuned"} == {1}
    (place,) = [text for text in records.left_out if text.startswith("few/erm")]
    assert "learning rate factor 2, now 0.5" in place and "seed 2, now 0, 1" in place


def test_methods_and_data_sets_that_were_taken_out_are_not_reported(edited):
    def change(study):
        del study["datasets"]["few"]
        study["datasets"]["digits"]["methods"] = ["erm", "kl"]

    records = read_records(edited(change))
    assert records.datasets == ["digits"] and records.methods("digits") == {"erm", "kl"}
    assert "few/kl: data set few, now not in the study" in records.left_out
    assert "digits/scaled: method scaled, now not in the study" in records.left_out


def test_another_learning_rate_pairs_no_new_run_with_an_old_one(whole, edited):
    def change(study):
        study["datasets"]["few"]["options"]["learning_rate"] = 0.004

    again = [
        {
            **line,
            "settings": {**line["settings"], "learning_rate": 2 * line["settings"]["learning_rate"]},
            "finished": "2999",
        }
        for line in rerun(whole, "erm", "few")
    ]
    records = read_records(edited(change, again))
    assert len(records.runs("few", "erm")) == 3 and not records.runs("few", "kl")
    assert any(text.startswith("few/kl: learning_rate ") for text in records.left_out)
    # Lines alone do not tell which one is meant.
    records = read_records(edited(change, again, keep=False))
    assert "few/kl: learning_rate" in records.mixed()
    assert differences_by_seed(records, "few", "kl") == {} and differences_by_seed(records, "digits", "kl")
    assert "no comparison is made of them" in build_report(records)[0]


def test_what_is_looked_at_and_compared_is_as_the_file_says_now(edited):
    def change(study):
        study["methods"]["kl_tuned"]["compared_with"] = "scaled"
        study["datasets"]["digits"]["metrics"] = ["mean_loss"]

    records = read_records(edited(change))
    assert records.compared_with("kl_tuned") == "scaled" and not records.left_out
    assert records.runs("digits", "erm")[0]["looked_at"] == ["mean_loss"]


def test_parts_and_draws_are_counted_by_the_file():
    data = {
        "recipe": "r.py",
        **{"score": "accuracy", "methods": ["erm"], "seeds": [0], "tuning_seeds": [100]},
        **{
            "learning_rate_factors": [1.0],
            "options": {"learning_rate": 0.5},
            "parts": {"held_out": ["a", "b"]},
        },
        "random_search": {"draws": 3, "space": {"learning_rate": {"uniform": [0, 1]}}},
    }
    plan = plan_of({"datasets": {"d": data}, "methods": {"erm": {}}})
    run = {
        **{"dataset": "d", "method": "erm", "stage": "final", "seed": 0, "candidate": "draw2", "draws": 9},
        **{"part": "b", "parts": 4, "learning_rate_factor": 1.0},
        "settings": {"recipe": "r.py", "learning_rate": 0.1, "held_out": ["b"], "seed": 0},
    }
    assert plan.edits(run) == {}
    assert (plan.as_now(run)["parts"], plan.as_now(run)["draws"]) == (2, 3)
    assert plan.edits({**run, "candidate": "draw3"}) == {"draw": ("draw3", "3 draws")}
    assert plan.edits({**run, "part": "c"}) == {"part": ("c", "a, b")}
    assert plan.edits({**run, "stage": "pair", "part": "a+b"}) == {"pair": ("a+b", "not in the study")}
    assert plan.edits({**run, "draws": None})["random search"] == ("none", "of some draws")
    assert plan.edits({**run, "score_name": "loss"}) == {"score": ("loss", "accuracy")}


def test_where_nothing_fits_the_reason_is_told(edited):
    def change(study):
        study["datasets"] = {"other": study["datasets"]["few"]}

    with pytest.raises(UserError, match=r"no final run yet .* of an earlier version of its study\.json"):
        read_records(edited(change))


def test_a_rate_scaled_by_a_weight_that_another_run_had_is_of_an_earlier_version(whole, edited):
    heavier = [
        {**line, "metrics": {**line["metrics"], "weight_mean": 3.0}, "finished": "2999"}
        for line in lines(whole[1])
        if (line["dataset"], line["method"], line["stage"]) == ("digits", "kl", "final")
    ]
    records = read_records(edited(more=heavier))
    assert records.left_out == {"digits/scaled: learning rate × mean weight 1.1, now 3": 2}
    assert not records.runs("digits", "scaled")
