"""Metrics beside the score in a report: those that no run has are named, not passed over."""

import pytest
from study_lines import study

from benchmarks.report.lines import Records, candidate_of
from benchmarks.report.markdown import build_report


def text_of(lines, questions=()):
    final = {(r["dataset"], r["method"], r["seed"]): r for r in lines if r["stage"] == "final"}
    tried = {
        (r["dataset"], r["method"], r["seed"], candidate_of(r), ""): r
        for r in lines
        if r["stage"] == "tuning"
    }
    return build_report(Records(final, tried, study={"questions": list(questions)}))[0]


@pytest.fixture
def lines():
    found = study({"few": "tabular", "many": "tabular"}, {"erm": 0.0, "kl_tau1": 1.0}, seeds=3, rows=8)
    for line in found:
        if line["stage"] == "final":
            line["metrics"] = {"macro_f1": line["score"]} if line["dataset"] == "many" else {"mae": 0.5}
            line["looked_at"] = ["macro_f1", "macro_f2"]
    return found


def question(metric):
    return {"ask": "Gain?", "compare": ["kl_tau1", "erm"], "datasets": [], "metric": metric}


def test_a_metric_that_no_run_has_is_named_at_its_data_set(lines):
    text = text_of(lines)
    few, many = (text.split(f"\n## {name}\n")[1].split("\n## ")[0] for name in ("few", "many"))
    assert "No run on few has `macro_f1` or `macro_f2`; they have: `mae`." in few
    assert "beside the score" not in few and "| beside the score, − ERM | macro_f1 |" in many
    assert "No run on many has `macro_f2`; they have: `macro_f1`." in many


def test_a_question_about_it_is_not_answered_by_a_lack_of_runs(lines):
    answer = text_of(lines, [question("macro_f2")]).split("### Gain?")[1].split("\n## ")[0]
    assert "runs of both methods" not in answer
    assert "No run on few has `macro_f2`; they have: `mae`. No run on many has `macro_f2`" in answer
    answer = text_of(lines, [question("macro_f1")]).split("### Gain?")[1].split("\n## ")[0]
    assert "| many | 3 |" in answer and "No run on few has `macro_f1`; they have: `mae`." in answer


def test_a_metric_that_erm_alone_lacks_has_no_difference(lines):
    for line in lines:
        if line["dataset"] == "many" and line["method"] == "erm" and line["stage"] == "final":
            line["metrics"] = {}
    text = text_of(lines, [question("macro_f1")]).split("\n## many\n")[1]
    assert "| ERM | – |\n| KL, τ = 1 | – |" in text


def test_runs_that_make_no_pair_are_told_from_none(lines):
    for line in lines:
        line["device"] = line["method"]
    assert "No two runs of both methods make a pair yet." in text_of(lines, [question("score")])


@pytest.mark.parametrize(
    ("metric", "score", "header", "cell"),
    [
        ("eval_rmse", -59.3748, "tuning score (eval_rmse, smaller is better) by learning rate", "59.3748"),
        (
            "eval_perplexity",
            -12.5,
            "tuning score (eval_perplexity, smaller is better) by learning rate",
            "12.5000",
        ),
        ("eval_calibration_error", -0.031, "(eval_calibration_error, smaller is better, × 100) by", "3.10"),
        ("eval_r2", 0.4321, "tuning score (eval_r2, × 100) by learning rate", "43.21"),
    ],
)
def test_scores_of_tuning_are_in_the_unit_of_their_metric(lines, metric, score, header, cell):
    for line in lines:
        if line["stage"] == "tuning":
            line |= {"score": score, "score_name": metric}
        else:
            line["history"] = [{"step": step, "eval_score": abs(score)} for step in (1, 2)]
    text = text_of(lines)
    assert header in text and f"| ERM | {cell} | {cell} | {cell} |" in text
    curve = text.split("validation score (" + header.split("(")[1].split(")")[0] + ") at step")[1]
    assert f"| ERM | {cell} | {cell} |" in curve


def test_a_loss_is_told_in_four_decimals_and_its_intervals_are_counted(lines):
    """With two, an interval of [0.0009, 0.0202] would be printed as one that ends at 0, and be a tie."""
    added = {0: 0.007, 1: 0.0105, 2: 0.014}
    for line in lines:
        if line["stage"] == "final":
            more = added[line["seed"]] if line["method"] == "kl_tau1" else 0.0
            line["metrics"], line["looked_at"] = {"mean_loss": 0.05 + more}, ["mean_loss"]
    text = text_of(lines, [question("mean_loss")])
    few = text.split("\n## few\n")[1].split("\n## ")[0]
    assert "| ERM | 0.0500 |\n| KL, τ = 1 | ▼ +0.0105 [+0.0018, +0.0192] |" in few
    assert (
        "1 interval of these 1 excludes 0, not corrected for their number; about 0.1 would by chance" in few
    )
    answer = text.split("### Gain?")[1].split("\n## ")[0]
    assert "▼ +0.0105 [+0.0018, +0.0192] | ± 0.0" in answer and "2 losses" in answer


def test_another_metric_of_tuning_than_the_score_is_told(lines):
    for line in lines:
        line["score_name"] = "eval_accuracy" if line["stage"] == "tuning" else "test_balanced_accuracy"
    assert "score: test_balanced_accuracy, but tuned by eval_accuracy" in text_of(lines)
    for line in lines:
        line["score_name"] = "eval_validation_accuracy" if line["stage"] == "tuning" else "test_accuracy"
    assert "tuned by" not in text_of(lines)


def test_the_scores_over_a_training_go_to_the_end_of_the_longest(lines):
    for line in lines:
        if line["stage"] == "final":
            steps = (1, 2) if line["method"] == "erm" else (1, 2, 3, 4)
            line["history"] = [{"step": step, "eval_score": step / 8} for step in steps]
            line["metrics"] = {"best_epoch": 2.0 + line["seed"]}
    text = text_of(lines)
    assert "Best epochs of ERM, seed by seed: 2, 3, 4." in text
    assert "at step | 1 | 2 | 3 | 4 |" in text
    assert "| ERM | 12.50 | 25.00 | – | – |" in text
    assert "| KL, τ = 1 | 12.50 | 25.00 | 37.50 | 50.00 |" in text


def test_an_interim_metric_is_told_at_its_own_cell(lines):
    """A metric may be of fewer pairs than the score."""
    for line in lines:
        if line["stage"] == "final":
            line["metrics"], line["looked_at"] = {"macro_f1": line["score"], "mae": 0.5}, ["macro_f1", "mae"]
            if line["seed"] == 0 and line["method"] == "kl_tau1":
                del line["metrics"]["mae"]
    final = {(r["dataset"], r["method"], r["seed"]): r for r in lines if r["stage"] == "final"}
    planned = {"methods": ["erm", "kl_tau1"], "seeds": [0, 1, 2], "score": "accuracy"}
    methods = {"erm": {"options": {}}, "kl_tau1": {"options": {}}}
    study_file = {"datasets": dict.fromkeys(("few", "many"), planned), "methods": methods}
    text = build_report(Records(final, {}, study=study_file))[0].split("\n## few\n")[1]
    row = next(
        row
        for row in text.splitlines()
        if row.startswith("| KL, τ = 1 | ") and row.endswith(" (interim, 2 of 3) |")
    )
    assert row.count("interim") == 1


@pytest.mark.parametrize(("classes", "same", "shown"), [(2, True, False), (2, False, True), (3, True, True)])
def test_of_two_classes_the_worst_and_the_rarest_count_once(lines, classes, same, shown):
    names = ["worst_class_accuracy", "rarest_class_recall"]
    for line in lines:
        if line["stage"] == "final":
            score = line["score"]
            line["metrics"] = dict(zip(names, (score, score if same else score / 2)))
            line |= {"looked_at": names, "train_class_counts": [9, 5, 7][:classes]}
    few = text_of(lines).split("\n## few\n")[1].split("\n## ")[0]
    header = next(row for row in few.splitlines() if row.startswith("| beside the score"))
    assert ("worst_class_accuracy" in header) == shown and "rarest_class_recall" in header
    assert ("of these 2 " in few) == shown and ("is rarest_class_recall in 6 of 6 runs" in few) != shown
