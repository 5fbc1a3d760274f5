"""`glue.py` in this process: what it trains, writes, refuses and goes on with."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

import glue
from helpers.recipes import changed, output_of, sentences
from rgd_hf.comparison.formats import signed
from rgd_hf.comparison.statistics import mean_interval
from rgd_hf.scripts.errors import UserError


def test_a_run_leaves_a_model_results_and_a_card(tiny_run, capsys):
    record = glue.main([*tiny_run, "--reweighting", "chi2", "--tau", "2"])
    out = output_of(tiny_run)
    assert record["method"] == "RGD (chi2, tau=2)"
    assert json.loads((out / "all_results.json").read_text()) == record
    assert record["settings"]["learning_rate"] == 1e-3 and record["settings"]["seed"] == 3
    assert {"torch", "transformers", "rgd-hf"} <= set(record["versions"])
    assert record["train_class_counts"] == [24, 24]
    assert record["seconds"] > 0 and 0 <= record["eval_accuracy"] <= 1
    classify = pipeline("text-classification", model=str(out))
    assert {classify(row["text"])[0]["label"] for row in sentences(20)} <= {"0", "1"}
    assert "chi-squared" in (out / "README.md").read_text()
    shown = capsys.readouterr().out
    assert f"{record['eval_accuracy']:.4f}" in shown and "RGD (chi2, tau=2)" in shown


def test_the_reported_accuracy_is_that_of_the_saved_model(tiny_run, write_rows):
    record = glue.main(tiny_run)
    classify = pipeline("text-classification", model=str(output_of(tiny_run)))
    right = [classify(row["text"])[0]["label"] == str(row["label"]) for row in sentences(24, seed=1)]
    assert record["eval_accuracy"] == pytest.approx(sum(right) / len(right))


def test_compare_trains_both_from_the_same_seed(tiny_run, capsys):
    plain, reweighted = glue.main([*tiny_run, "--compare"])["runs"].values()
    out = output_of(tiny_run)
    assert [plain["method"], reweighted["method"]] == ["ERM", "RGD (kl, tau=1)"]
    assert json.loads((out / "all_results.json").read_text())["runs"] == {"erm": plain, "kl": reweighted}
    shown = capsys.readouterr().out
    difference = reweighted["eval_loss"] - plain["eval_loss"]
    assert "difference" in shown and signed(difference) in shown
    assert plain["eval_loss"] != reweighted["eval_loss"]

    alone = glue.main(changed([*tiny_run, "--reweighting", "none"], output_dir=out.parent / "alone"))
    assert alone["eval_loss"] == plain["eval_loss"]
    states = [
        AutoModelForSequenceClassification.from_pretrained(d).state_dict()
        for d in (out / "erm", out.parent / "alone")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_several_seeds_have_an_interval_and_more_of_them_train_alone(tiny_run, capsys):
    short = changed([*tiny_run, "--compare"], num_train_epochs=None, max_steps=2)
    first = glue.main([*short, "--seeds", "0", "1"])
    assert list(first["runs"]) == ["erm-seed0", "kl-seed0", "erm-seed1", "kl-seed1"]
    assert [run["settings"]["seed"] for run in first["runs"].values()] == [0, 0, 1, 1]
    written = {path: path.stat().st_mtime_ns for path in output_of(short).glob("*/all_results.json")}
    capsys.readouterr()
    second = glue.main([*short, "--seeds", "0", "1", "2"])
    assert list(second["runs"]) == [*first["runs"], "erm-seed2", "kl-seed2"]
    assert all(path.stat().st_mtime_ns == time for path, time in written.items()), "finished runs are kept"
    assert json.loads((output_of(short) / "all_results.json").read_text()) == second
    scores = [run["eval_accuracy"] for run in second["runs"].values()]
    differences = [scores[2 * n + 1] - scores[2 * n] for n in range(3)]
    expected = mean_interval(differences)
    shown = capsys.readouterr().out
    interval = f"{signed(expected.low)} to {signed(expected.high)}"
    assert (interval if any(differences) else "their scores do not differ") in " ".join(shown.split())
    found = second["comparison"]["differences"]["RGD (kl, tau=1)"]
    assert found["n"] == 3 and found["verdict"] in " ".join(shown.split())
    with pytest.raises(UserError, match="holds a run with other settings"):
        glue.main([*short, "--seeds", "0", "1", "2", "--tau", "2"])


@pytest.mark.parametrize("task", sorted(glue.GLUE_TASKS))
def test_every_task_of_glue_trains_from_local_files(task, tiny_run, write_rows, tmp_path):
    facts = glue.GLUE_TASKS[task]
    rows = [
        {
            **{column: row["text"] for column in facts.columns},
            "label": number % len(facts.labels) if facts.labels else number % 6 * 1.0,
            "idx": number,
        }
        for number, row in enumerate(sentences(18))
    ]
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", *facts.validation):
        write_rows(f"data/{split}.parquet", rows)
    arguments = changed(tiny_run, train_file=None, validation_file=None, dataset_dir=folder, task_name=task)
    record = glue.main(changed(arguments, num_train_epochs=None, max_steps=2))
    metrics = set(re.findall(r"eval_(?:matched_|mismatched_)?(\w+)", " ".join(record)))
    official = {
        "cola": {"matthews_correlation"},
        "stsb": {"pearson", "spearmanr"},
        "mrpc": {"accuracy", "f1"},
        "qqp": {"accuracy", "f1"},
    }
    assert official.get(task, {"accuracy"}) <= metrics
    assert ("eval_mismatched_accuracy" in record and "eval_matched_accuracy" in record) == (task == "mnli")
    config = AutoConfig.from_pretrained(output_of(tiny_run))
    assert tuple(config.id2label[i] for i in range(config.num_labels)) == (facts.labels or ("LABEL_0",))
    assert config.problem_type == ("single_label_classification" if facts.labels else "regression")
    if task == "mnli":  # of two files there is one validation set
        files = {"train_file": folder / "train.parquet", "validation_file": folder / "train.parquet"}
        of_files = changed(tiny_run, **files, task_name=task, num_train_epochs=None, max_steps=1)
        assert "eval_accuracy" in glue.main(changed(of_files, output_dir=tmp_path / "of_files"))


@pytest.mark.parametrize(
    "label, problem_type, metric",
    [
        (lambda n: ["ham", "spam"][n % 2], "single_label_classification", "eval_f1_macro"),
        (lambda n: n % 5 / 2, "regression", "eval_spearmanr"),
        (lambda n: [["a"], ["b"], ["a", "b"]][n % 3], "multi_label_classification", "eval_f1_micro"),
    ],
)
def test_own_files_of_every_kind_of_label(label, problem_type, metric, tiny_run, write_rows):
    rows = [{"text": row["text"], "label": label(n)} for n, row in enumerate(sentences(18))]
    files = {"train_file": write_rows("t.jsonl", rows), "validation_file": write_rows("v.jsonl", rows)}
    record = glue.main(changed(tiny_run, **files, num_train_epochs=None, max_steps=2))
    assert metric in record
    assert AutoConfig.from_pretrained(output_of(tiny_run)).problem_type == problem_type


def test_settings_from_a_file(tiny_run, tmp_path):
    path = tmp_path / "settings.yaml"
    settings = {"tau": 3.0, "reweighting": "reverse_kl", "max_train_samples": 8, "max_steps": 1}
    path.write_text(json.dumps(settings))
    record = glue.main([str(path), *tiny_run, "--tau", "4"])
    assert record["method"] == "RGD (reverse_kl, tau=4)" and record["settings"]["max_train_samples"] == 8


def test_a_finished_run_is_left_alone_unless_told_otherwise(tiny_run):
    short = changed(tiny_run, num_train_epochs=None, max_steps=1)
    glue.main(short)
    before = (output_of(short) / "all_results.json").read_text()
    with pytest.raises(UserError, match=r"finished run.*--overwrite_output_dir"):
        glue.main(short)
    with pytest.raises(UserError, match="finished run"):
        glue.main([*short, "--compare"])
    assert (output_of(short) / "all_results.json").read_text() == before
    record = glue.main([*short, "--overwrite_output_dir", "--tau", "5"])
    assert (
        json.loads((output_of(short) / "all_results.json").read_text())["settings"]["tau"]
        == 5
        == record["settings"]["tau"]
    )


def test_an_unfinished_run_does_not_go_on_with_other_settings(tiny_run):
    glue.main(tiny_run)
    (output_of(tiny_run) / "all_results.json").unlink()  # as if killed before the last line
    with pytest.raises(UserError, match=r"run with other settings \(tau: 1.0, now 2.0\).*Give the same"):
        glue.main([*tiny_run, "--tau", "2"])
    glue.main([*tiny_run, "--logging_steps", "1"])


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tiny_run, tiny_model_dir, tmp_path):
    # One step at this rate makes the weights overflow: the checkpoint after it is the last good one.
    arguments = changed(tiny_run, learning_rate=1e38, warmup_steps=0, save_strategy="steps", save_steps=1)
    arguments = changed(arguments, optim="sgd", max_grad_norm=0, eval_strategy="no", logging_steps=1)
    with pytest.raises(FloatingPointError, match=r"step \d"):
        glue.main(arguments)
    out = output_of(arguments)
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-1"]
    assert not (out / "all_results.json").exists()


BAD_INPUT = [
    ({"task_name": "imdb"}, "unknown --task_name 'imdb': choose one of 'cola', 'sst2'"),
    (
        {"holdout_fraction": "0.2", "validation_file": "no.csv"},
        "no.csv is not a file, and --holdout_fraction",
    ),
    ({"train_file": None}, "both --train_file and --validation_file"),
    ({"train_file": None, "validation_file": None}, "no data: give --task_name.*--dataset_dir"),
    ({"dataset_dir": "."}, "either --dataset_dir or --train_file"),
    ({"task_name": "mrpc"}, r"lacks the column\(s\) 'sentence1', 'sentence2'; found: 'text', 'label'"),
    (
        {"task_name": "cola", "text_columns": "text", "label_column": "score"},
        r"'score'; found: 'text', 'label'",
    ),
    ({"model_name_or_path": "/no/such/model"}, "the model '/no/such/model' could not be loaded"),
    (
        {"model_name_or_path": "nobody/nothing"},
        "'nobody/nothing' could not be loaded.*works without a network",
    ),
    (
        {"train_file": None, "validation_file": None, "task_name": "rte"},
        "rte.*HF_HUB_OFFLINE.*--dataset_dir DIR",
    ),
    ({"train_file": "."}, "'.' is a directory, not a file: give .* as --dataset_dir"),
    ({"validation_file": "."}, "'.' is a directory, not a file: give .* as --dataset_dir"),
    ({"reweighting": "none", "compare": "true"}, "choose one with --reweighting"),
    ({"seeds": ["0", "1"]}, "--seeds goes with --compare"),
    ({"seeds": ["1", "1"], "compare": "true"}, "--seeds must differ"),
    ({"max_eval_samples": "0"}, "--max_eval_samples must be at least 1"),
]


@pytest.mark.parametrize("options, complaint", BAD_INPUT)
def test_bad_input_is_explained_before_training(options, complaint, tiny_run):
    with pytest.raises(UserError, match=complaint):
        glue.main(changed(tiny_run, **options))
    assert not output_of(tiny_run).exists()


SETTINGS_THAT_DO_NOT_FIT = [
    (["--class_weights", "1,2,3"], "lists 3 weights, but the model has 2 classes"),
    (["--reweighting_level", "token"], "needs a loss for every token"),
    (
        ["--reweighting", "cvar", "--per_device_train_batch_size", "1"],
        "only one: raise per_device_train_batch_size",
    ),
    (["--reweighting", "group_dro"], "needs a column .* choose one of 'kl'"),
    (
        ["--reweighting", "group_dro", "--reweighting_args", "num_groups=2"],
        "needs a column .* choose one of 'kl'.*script of your own",
    ),
]


@pytest.mark.parametrize("compare", [[], ["--compare"]])
@pytest.mark.parametrize("options, complaint", SETTINGS_THAT_DO_NOT_FIT)
def test_settings_that_do_not_fit_are_explained_before_anything_is_trained(
    options, complaint, compare, tiny_run, monkeypatch
):
    monkeypatch.setattr(glue.LengthGroupedTrainer, "train", lambda *_, **__: pytest.fail("it trains"))
    with pytest.raises(UserError, match=complaint):
        glue.main([*tiny_run, *options, *compare])


@pytest.mark.parametrize("option", [["--class_weights", "balanced"], ["--label_smoothing_factor", "0.1"]])
@pytest.mark.parametrize(
    "label", [lambda row: row["label"] + 0.5, lambda row: ["a", "b"][: row["label"] + 1]]
)
def test_what_needs_exclusive_classes_is_refused_before_training(option, label, tiny_run, write_rows):
    file = write_rows("rows.jsonl", [{**row, "label": label(row)} for row in sentences(24)])
    with pytest.raises(UserError, match=f"{option[0][2:]} needs mutually exclusive classes"):
        glue.main([*changed(tiny_run, train_file=file, validation_file=file), *option])
    assert not [*output_of(tiny_run).glob("*")]


def test_a_classifier_for_other_classes_is_replaced_where_asked(tiny_run, tiny_model_dir, tmp_path):
    trained = tmp_path / "three"
    AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=3).save_pretrained(trained)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(trained)
    short = changed(tiny_run, model_name_or_path=trained, num_train_epochs=None, max_steps=1)
    with pytest.raises(
        UserError, match=r"has a classifier for 3 classes, but the data has 2. --ignore_mismatched_sizes"
    ):
        glue.main(short)
    glue.main([*short, "--ignore_mismatched_sizes"])
    assert AutoConfig.from_pretrained(output_of(short)).num_labels == 2


@pytest.mark.parametrize("left", [0, 9, 3000])
def test_a_model_that_was_not_copied_to_its_end_is_told(left, tiny_run, tiny_model_dir, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(tiny_model_dir, cut)
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[:left])
    with pytest.raises(UserError, match=r"could not be loaded .*the directory holds: .*model.safetensors"):
        glue.main(changed(tiny_run, model_name_or_path=cut))


def test_what_was_inferred_is_said_and_recorded(tiny_run, write_rows, capsys):
    rows = [{"title": "word1", **row} for row in sentences(16)]
    files = {"train_file": write_rows("t.csv", rows), "validation_file": write_rows("v.csv", rows[::2])}
    record = glue.main(changed(tiny_run, **files, num_train_epochs=None, max_steps=1))
    assert record["text_columns"] == ["text"]
    shown = " ".join(capsys.readouterr().out.split())
    assert "Text column(s): 'text'; not used: 'title'." in shown
    assert "warning: the validation split has no sample of 1 of 2 classes: '1'." in shown


def test_faults_of_other_libraries_keep_their_traceback(tiny_run, monkeypatch):
    monkeypatch.setattr(glue, "make_compute_metrics", lambda *_: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        glue.main(tiny_run)


def test_a_comparison_takes_settings_of_the_rule(tiny_run):
    short = changed(tiny_run, num_train_epochs=None, max_steps=2)
    found = glue.main(
        [*short, "--compare", "--reweighting", "relative_kl", "--reweighting_args", "decay=0.8"]
    )
    plain, reweighted = (found["runs"][name]["settings"] for name in ("erm", "relative_kl"))
    assert "reweighting_args" not in plain and reweighted["reweighting_args"] == "decay=0.8"


def test_labels_out_of_range_and_empty_splits(tiny_run, write_rows):
    strange = write_rows("strange.csv", [{"text": "a", "label": 7}])
    with pytest.raises(
        UserError, match=r"validation split has labels that are no classes of .*: '7'; its classes: '0', '1'"
    ):
        glue.main(changed(tiny_run, validation_file=strange))
    empty = Path(strange).with_name("empty.csv")
    empty.write_text("text,label\n")
    with pytest.raises(UserError, match="has no rows, and at least one is needed"):
        glue.main(changed(tiny_run, validation_file=empty))
    with pytest.raises(UserError, match="no classes of the training data"):
        glue.main(changed(tiny_run, task_name="sst2", text_columns="text", validation_file=strange))


def test_three_text_columns_are_refused_with_a_task_too(tiny_run, write_rows):
    rows = [
        {"sentence1": row["text"], "sentence2": row["text"], "more": "good", **row} for row in sentences(8)
    ]
    path = write_rows("three.csv", rows)
    columns = ["sentence1", "sentence2", "more"]
    with pytest.raises(UserError, match="--text_columns"):
        glue.main(
            changed(tiny_run, task_name="mrpc", train_file=path, validation_file=path, text_columns=columns)
        )
