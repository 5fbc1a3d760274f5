"""`--save_predictions` of `domainbed.py`: against the checkpoints' scores, the model itself, a kill and two processes."""

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
from helpers.recipes import launch
from rgd_hf.scripts.domains.environments import split
from rgd_hf.scripts.domains.experiment import Experiment
from rgd_hf.scripts.domains.predictions import CheckpointPredictions, predictions_file
from rgd_hf.scripts.domains.sweep import Job
from rgd_hf.scripts.domains.training import DomainTrainer
from rgd_hf.scripts.run_file import RunFile
from tests.recipes.test_domainbed_algorithms import experiment
from tests.recipes.test_domainbed_sweep import OPTIONS, RECIPE, results

COLUMNS = ["step", "environment", "row", "label", "prediction", "correct", "loss"]


def files_of(directory, runs):
    """The table of every run, by its name."""
    return {run["name"]: pd.read_parquet(predictions_file(Path(directory), run["name"])) for run in runs}


def check_against_record(table, run):
    """Accuracy and loss of every checkpoint are those of its predictions; no checkpoint and no row is missing."""
    assert list(table.columns) == COLUMNS
    assert table["step"].unique().tolist() == [point["step"] for point in run["checkpoints"]]
    for point in run["checkpoints"]:
        for name in run["held_out"]:
            rows = table[(table["step"] == point["step"]) & (table["environment"] == name)]
            assert rows["correct"].mean() == pytest.approx(point[f"{name}_in_accuracy"], abs=1e-12)
            assert rows["loss"].mean() == pytest.approx(point[f"{name}_in_loss"], rel=1e-6)
            assert (rows["correct"] == (rows["label"] == rows["prediction"])).all()
            assert rows["row"].is_unique


@torch.no_grad()
def losses_of(trainer, exp, rows, environment):
    """Oracle: one sample at a time through the model."""
    model, view = trainer.model.eval(), exp.views[environment]
    samples = [view.sample(int(row), None) for row in rows]
    logits = torch.cat([model(pixel_values=sample["pixel_values"][None]).logits for sample in samples])
    labels = torch.tensor([sample["labels"] for sample in samples])
    losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    return losses.numpy(), logits.argmax(dim=1).numpy(), labels.numpy()


@pytest.mark.parametrize(
    "algorithm,held_out", [("erm", ("grey",)), ("swad", ("grey",)), ("group_dro", ("grey", "dark"))]
)
def test_predictions_are_those_of_the_model_and_explain_the_accuracies(
    algorithm, held_out, tmp_path, monkeypatch
):
    trainers = []
    build = Experiment._trainer
    monkeypatch.setattr(Experiment, "_trainer", lambda *a: trainers.append(build(*a)) or trainers[-1])
    exp, kept = experiment(tmp_path, max_steps=10), CheckpointPredictions(held_out)
    record = exp.train(Job(algorithm, "kl", 3, 0, held_out), kept)
    table = kept.table()
    check_against_record(table, record)
    last = table[table["step"] == 10]
    for name in held_out:
        place = exp.data.names.index(name)
        of_name = last[last["environment"] == name]
        assert of_name["row"].tolist() == split(24, 3, place)[0].tolist()
        losses, predictions, labels = losses_of(trainers[0], exp, of_name["row"], place)
        np.testing.assert_allclose(of_name["loss"], losses, rtol=1e-4, atol=1e-6)
        assert of_name["prediction"].tolist() == predictions.tolist()
        assert of_name["label"].tolist() == labels.tolist()
    assert "training_log" not in record


def test_predictions_of_a_model_that_is_replaced_at_the_end_are_forgotten():
    table = pd.DataFrame({"label": [0], "prediction": [1]})
    kept = CheckpointPredictions(["a"])
    kept.add(2, "a_in", table, np.array([5]))
    kept.forget()
    kept.add(4, "a_in", table, np.array([7]))
    kept.add(4, "a_out", table, np.array([6]))
    kept.add(4, "b_in", table, np.array([6]))
    assert kept.table()[["step", "row"]].to_numpy().tolist() == [[4, 7]]


def test_an_algorithm_that_returns_another_model_has_the_predictions_of_that_one(tmp_path, monkeypatch):
    def finish(trainer):
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.zero_()
        return True

    monkeypatch.setattr(DomainTrainer, "finish", finish)
    kept = CheckpointPredictions(["grey"])
    record = experiment(tmp_path).train(Job("erm", "kl", 0, 0, ("grey",)), kept)
    check_against_record(kept.table(), record)
    np.testing.assert_allclose(kept.table()["loss"], np.log(2), rtol=1e-6)


def test_names_of_domains_may_hold_anything(tmp_path):
    path = predictions_file(tmp_path, "erm-none-trial0-draw0-a/b: c?-0123456789")
    assert path == tmp_path / "predictions" / "erm-none-trial0-draw0-a_b__c_-0123456789.parquet"


def test_a_sweep_killed_and_resumed_has_the_file_of_every_run(tmp_path):
    sweep = [*OPTIONS, "--held_out", "0", "--n_trials", "2", "--save_predictions"]
    whole = domainbed.main([*sweep, "--output_dir", str(tmp_path / "whole")])
    expected = files_of(tmp_path / "whole", whole)
    for run in whole:
        check_against_record(expected[run["name"]], run)
        assert len(expected[run["name"]]) == 2 * 8
    killed = tmp_path / "killed"
    command = [sys.executable, str(RECIPE), *sweep, "--output_dir", str(killed)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 240
    while not (killed / "predictions").is_dir() and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # The worst moment to be killed: between the line of a run and its file.
    (first, *_) = RunFile(killed).read()
    predictions_file(killed, first).unlink(missing_ok=True)
    resumed = domainbed.main([*sweep, "--output_dir", str(killed)])
    assert results(resumed) == results(whole)
    found = files_of(killed, resumed)
    for name, table in expected.items():
        pd.testing.assert_frame_equal(found[name], table)


def test_the_option_trains_again_what_has_no_file_and_nothing_else(tmp_path, capsys):
    run = [*OPTIONS, "--held_out", "0", "--reweightings", "none", "--output_dir", str(tmp_path)]
    (plain,) = domainbed.main(run)
    assert not (tmp_path / "predictions").exists()
    (saved,) = domainbed.main([*run, "--save_predictions"])
    assert results([saved]) == results([plain]) and len(files_of(tmp_path, [saved])) == 1
    capsys.readouterr()
    for options in (["--save_predictions"], []):
        domainbed.main([*run, *options])
        assert "1 of 1 runs are finished already" in capsys.readouterr().out
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2


def test_two_processes_write_every_row_once(tmp_path):
    # 7 rows in batches of 2 on two processes: the last ones are filled up.
    run = [
        *OPTIONS,
        "--held_out",
        "0",
        "--reweightings",
        "kl",
        "--save_predictions",
        "--max_eval_samples",
        "7",
    ]
    run += ["--per_device_eval_batch_size", "2", "--output_dir", str(tmp_path)]
    done = launch(run, "--multi_gpu", "--num_processes", "2", script="domainbed.py")
    assert done.returncode == 0, done.stderr
    (record,) = RunFile(tmp_path).read().values()
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 1
    assert record["settings"]["world_size"] == 2
    table = files_of(tmp_path, [record])[record["name"]]
    check_against_record(table, record)
    data = domainbed.load_data(domainbed.DataArguments(dataset="rotated_digits"))
    labels = data.environments[0].labels
    rows = split(len(labels), 0, 0)[0][:7]
    for _, checkpoint in table.groupby("step"):
        assert checkpoint["row"].tolist() == rows.tolist()
        assert checkpoint["label"].tolist() == labels[rows].tolist()
    assert [path.suffix for path in (tmp_path / "predictions").iterdir()] == [".parquet"]
