"""One training on all domains but one: its record, its predictions, a kill, two processes, a comparison."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import domainbed
from helpers.domains import DIGITS, experiment, run
from helpers.recipes import ROOT, changed, launch
from rgd_hf.scripts.domains.algorithms import ALGORITHMS, AlgorithmArguments
from rgd_hf.scripts.domains.data import DomainArguments, load_data
from rgd_hf.scripts.domains.environments import split
from rgd_hf.scripts.errors import UserError

COLUMNS = ["environment", "row", "label", "prediction", "correct", "loss", "confidence"]
# What depends on the clock; and the Trainer's mean loss, which after an interruption is that of the rest.
CLOCK = (
    "seconds", "train_runtime", "train_samples_per_second", "train_steps_per_second", "settings", "files", "train_loss",
)  # fmt: skip


def main(directory, *options):
    return domainbed.main([*DIGITS, "--output_dir", str(directory), *options])


def trained(exp, one):
    return exp.train(one, None, exp.make_trainer(one.args))


def without_clock(record):
    return {name: value for name, value in record.items() if name not in CLOCK}


@torch.no_grad()
def answers(model, view, rows):
    """Oracle: one sample at a time through the model; losses, predictions and labels."""
    samples = [view.sample(int(row), None) for row in rows]
    logits = torch.cat([model.eval()(pixel_values=sample["pixel_values"][None]).logits for sample in samples])
    labels = torch.tensor([sample["labels"] for sample in samples])
    losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    return losses.numpy(), logits.argmax(dim=1).tolist(), labels.tolist()


def test_the_record_has_what_a_study_reads(tmp_path):
    record = main(tmp_path, "--algorithm", "coral", "--reweighting", "chi2")
    assert record["method"].startswith("CORAL + RGD (chi2") and record["settings"]["held_out"] == ["0"]
    names = {f"{angle}_out" for angle in (0, 15, 30, 45, 60, 75)} | {"0_in"}
    for point in record["checkpoints"]:
        assert set(point) == {"step"} | {f"{n}_{s}" for n in names for s in ("accuracy", "ece", "loss")}
    assert [point["step"] for point in record["checkpoints"]] == [2, 4]
    others = [f"{angle}_out_accuracy" for angle in (15, 30, 45, 60, 75)]
    means = [np.mean([point[name] for name in others]) for point in record["checkpoints"]]
    best = record["checkpoints"][int(np.argmax(means))]
    assert record["step"] == best["step"] and record["eval_validation_accuracy"] == pytest.approx(max(means))
    for score in ("accuracy", "ece", "loss"):
        assert record[f"test_{score}"] == best[f"0_in_{score}"]
    assert record["eval_accuracy"] == record["test_accuracy"]
    data = load_data(DomainArguments(dataset="rotated_digits"))
    trained = np.concatenate(
        [e.labels[split(len(e.labels), 42, p)[0]] for p, e in enumerate(data.environments) if p]
    )
    assert record["train_class_counts"] == np.bincount(trained).tolist()
    assert json.loads((tmp_path / "all_results.json").read_text()) == record
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [2, 4]


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_every_algorithm_can_be_repeated_and_differs_from_plain(algorithm, tmp_path):
    reweighting = {"erm": "chi2", "coral": "reverse_kl"}.get(algorithm, "kl")
    first, again, plain = (
        trained(experiment(algorithm, save_models=False), run(tmp_path, name))
        for name in (reweighting, reweighting, "none")
    )
    assert first["checkpoints"] == again["checkpoints"] != plain["checkpoints"]
    assert [point["step"] for point in first["checkpoints"]] == ([4] if algorithm == "swad" else [2, 4])


def test_accumulated_batches_hold_all_domains(tmp_path):
    record = trained(experiment("coral", save_models=False), run(tmp_path, gradient_accumulation_steps=2))
    assert record["checkpoints"][-1]["step"] == 4


@pytest.mark.parametrize(
    "algorithm,held_out", [("erm", ("grey",)), ("swad", ("grey",)), ("group_dro", ("dark", "grey"))]
)
def test_predictions_are_those_of_the_saved_model(algorithm, held_out, tmp_path):
    exp = experiment(algorithm, held_out, save_predictions=True)
    # A step so large that the first checkpoint is the best.
    found = trained(exp, run(tmp_path, max_steps=10, learning_rate=0.02, seed=3))
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    assert list(table.columns) == COLUMNS and table["environment"].unique().tolist() == list(held_out)
    model = exp.backbone.build(2)
    model.load_state_dict(type(model).from_pretrained(tmp_path).state_dict())
    for name in held_out:
        place = exp.data.names.index(name)
        of_name = table[table["environment"] == name]
        assert of_name["row"].tolist() == split(24, 3, place)[0].tolist()
        losses, predictions, labels = answers(model, exp.views[place], of_name["row"])
        np.testing.assert_allclose(of_name["loss"], losses, rtol=1e-3, atol=1e-5)
        assert of_name["prediction"].tolist() == predictions and of_name["label"].tolist() == labels
    assert table["correct"].mean() == pytest.approx(found["test_accuracy"])
    assert table["loss"].mean() == pytest.approx(found["test_loss"], rel=1e-5)


def test_the_model_is_the_checkpoint_that_the_training_domains_choose(tmp_path):
    exp = experiment(save_models=False)
    trainer = exp.make_trainer(run(tmp_path, max_steps=6).args)
    scores = iter([0.5, 0.9, 0.9])
    seen = {}

    def evaluated(accuracy):
        seen[trainer.state.global_step] = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        keep(next(scores))

    keep, trainer._keep_if_best = trainer._keep_if_best, evaluated
    trainer.train()
    assert trainer.best_step == 4  # the earliest of equals
    assert all(torch.equal(value, seen[4][name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize("algorithm", ["erm", "miro", "swad", "group_dro"])
def test_a_resumed_training_is_the_same(algorithm, tmp_path):
    settings = {"max_steps": 12, "save_strategy": "steps", "save_steps": 6}

    def build():
        exp = experiment(algorithm, save_models=False, dropout=0.2)
        return exp.make_trainer(run(tmp_path, **settings).args)

    whole = build()
    whole.train()
    resumed = build()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, msg=name)

    def metrics(trainer):
        kept = [
            {k: v for k, v in entry.items() if not k.endswith(("runtime", "per_second"))}
            for entry in trainer.state.log_history
        ]
        return [entry for entry in kept if any(name.startswith("eval_") for name in entry)]

    assert metrics(resumed) == metrics(whole) and (resumed.best_step, resumed.best_accuracy) == (
        whole.best_step, whole.best_accuracy,
    )  # fmt: skip


def test_a_killed_comparison_resumes(tmp_path):
    options = ["--compare", "--seeds", "1", "2", "--save_steps", "2", "--max_steps", "8"]
    options = [*changed(DIGITS, save_strategy="steps", max_steps=None), *options]
    whole = domainbed.main([*options, "--output_dir", str(tmp_path / "whole")])
    assert list(whole["runs"]) == ["erm-seed1", "kl-seed1", "erm-seed2", "kl-seed2"]
    assert whole["comparison"]["metric"] == "test_accuracy"
    assert whole["comparison"]["differences"]["RGD (kl, tau=1)"]["n"] == 2
    killed = tmp_path / "killed"
    command = [sys.executable, str(ROOT / "recipes" / "domainbed.py"), *options, "--output_dir", str(killed)]
    process = subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=-3, stderr=-3, cwd=ROOT
    )
    deadline = time.time() + 240
    while not (killed / "kl-seed1" / "checkpoint-4").is_dir() and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (killed / "erm-seed1" / "all_results.json").is_file()
    resumed = domainbed.main([*options, "--output_dir", str(killed)])
    for name, record in whole["runs"].items():
        assert without_clock(resumed["runs"][name]) == without_clock(record)


def test_two_processes_train_as_one_and_write_every_row_once(tmp_path):
    # 7 rows in batches of 2 on two processes: the last ones are filled up.
    options = changed(DIGITS, max_eval_samples=7)
    options += [
        "--algorithm",
        "miro",
        "--save_predictions",
        "--per_device_eval_batch_size",
        "2",
        "--seed",
        "0",
        "--output_dir",
        str(tmp_path),
    ]
    done = launch(options, "--multi_gpu", "--num_processes", "2", script="domainbed.py")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "all_results.json").read_text())
    assert record["settings"]["world_size"] == 2
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    labels = load_data(DomainArguments(dataset="rotated_digits")).environments[0].labels
    rows = split(len(labels), 0, 0)[0][:7]
    assert table["row"].tolist() == rows.tolist() and table["label"].tolist() == labels[rows].tolist()
    assert table["correct"].mean() == pytest.approx(record["test_accuracy"])
    # One process takes the same steps where each has two micro-batches.
    alone = domainbed.main(
        [*options, "--output_dir", str(tmp_path / "alone"), "--gradient_accumulation_steps", "2"]
    )
    assert alone["test_loss"] == pytest.approx(record["test_loss"], rel=1e-3)


def test_hard_examples_are_named_by_domain(tmp_path):
    main(tmp_path, "--hard_examples", "5", "--save_models", "false", "--seed", "0")
    rows = json.loads((tmp_path / "hard_examples.json").read_text())
    data = load_data(DomainArguments(dataset="rotated_digits"))
    for row in rows:
        domain, sample = row["text"].split(", sample ")
        place = data.names.index(domain)
        assert (row["domain"], row["index"]) == (domain, int(sample))
        assert domain != "0" and int(sample) in split(len(data.environments[place].labels), 0, place)[0]
        assert row["label"] == str(data.environments[place].labels[int(sample)])
    assert (tmp_path / "hard_examples.html").read_text().count("data:image/png") == 5


def test_two_held_out_domains(tmp_path):
    record = trained(experiment(held_out=("dark", "grey"), save_models=False), run(tmp_path))
    best = next(point for point in record["checkpoints"] if point["step"] == record["step"])
    assert record["test_accuracy"] == pytest.approx((best["dark_in_accuracy"] + best["grey_in_accuracy"]) / 2)
    assert record["eval_validation_accuracy"] == best["light_out_accuracy"]


@pytest.mark.parametrize(
    "options,message",
    [
        (["--held_out", "0", "360"], "no domain '360'; domains: '0', '15', '30'"),
        (["--held_out", "0", "15", "30"], "--held_out names the domain to test on.*Each in turn is for a study"),
        (["--algorithm", "irm"], "invalid choice: 'irm'"),
        (["--algorithms", "erm", "coral"], "no option of this recipe: one training has one --algorithm"),
        (["--reweightings", "none", "kl"], "give --reweighting kl, and --compare"),
        (["--n_trials", "3"], "a trial is a seed: give --compare --seeds 0 1 2"),
        (["--shard", "1/2"], "benchmarks/README.md"),
        (["--selection", "oracle"], "the report of a study has DomainBed's three rules"),
        (["--pretrained", "false"], "give --weights none"),
        (["--dataset_name", "owner/name"], "give --dataset owner/name"),
        (["--max_steps", "10", "--eval_steps", "3"], "multiple of --eval_steps 3"),
        (["--reweighting", "group_dro", "--reweighting_args", "num_groups=2"], "GroupDRO is --algorithm group_dro"),
        (["--eval_strategy", "epoch"], "--eval_strategy must be steps"),
        (["--load_best_model_at_end", "--save_strategy", "steps", "--save_steps", "2"], "the model is that of the best checkpoint"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size must be at least 1"),
        (["--per_device_eval_batch_size", "0"], "--per_device_eval_batch_size must be at least 1"),
        (["--dropout", "1"], "--dropout must be at least 0 and below 1"),
        (["--coral_weight", "-1"], "--coral_weight must be at least 0"),
        (["--swad_tolerance", "0.5"], "--swad_tolerance must be at least 1"),
    ],
)  # fmt: skip
def test_wrong_options_are_told_before_training(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        main(tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--class_weights", "1,2"], "lists 2 weights, but the model has 10 classes"),
        (["--reweighting_level", "token"], "use 'sample' or 'auto'"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_told_before_erm_is_trained(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        main(tmp_path, "--compare", *options)
    assert not list(tmp_path.rglob("all_results.json"))


def test_a_missing_held_out_domain_lists_them(tmp_path):
    options = changed(DIGITS, held_out=None)
    with pytest.raises(UserError, match="one of '0', '15', '30', '45', '60', '75', not none"):
        domainbed.main([*options, "--output_dir", str(tmp_path / "out")])


def test_options_of_other_algorithms_are_told():
    assert AlgorithmArguments(algorithm="coral", coral_weight=2.0, swad_tolerance=1.2).idle() == [
        "swad_tolerance"
    ]


def test_every_moved_option_says_where_it_went():
    assert set(domainbed.MOVED).isdisjoint(
        name for cls in domainbed.ARGUMENTS for name in cls.__dataclass_fields__
    )
    for name, sentence in domainbed.MOVED.items():
        with pytest.raises(UserError, match=f"'--{name}' is no option of this recipe"):
            domainbed.main([f"--{name}", "1"])
        for path in [
            word for word in sentence.replace(")", " ").replace(",", " ").split() if word.endswith(".md")
        ]:
            assert (ROOT / path).is_file()
        modules = [word for word in sentence.split() if word.startswith("benchmarks.")]
        assert all(Path(ROOT, *module.split(".")).is_dir() for module in modules)
