"""The tabular recipe end to end: models that predict a DataFrame, comparisons, two processes, user errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModel, TrainerControl, TrainerState

import tabular
from helpers.recipes import launch
from helpers.tables import SIZES, arguments, learnable, splits_of
from rgd_hf.scripts.cli import run_recipe
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.tabular.configuration import NETWORKS, NUM_EMBEDDINGS
from rgd_hf.scripts.tabular.modeling import TabularModel
from rgd_hf.scripts.tabular.options import NetworkArguments
from rgd_hf.scripts.tabular.pretraining import pretrain
from rgd_hf.scripts.tabular.trainer import KeepBest
from rgd_hf.scripts.tabular.training import make_config, train_network


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("embeddings", NUM_EMBEDDINGS)
def test_a_saved_folder_predicts_a_frame_without_the_recipe(network, embeddings, tmp_path):
    frame = learnable()
    splits = splits_of(frame)
    sizes = NetworkArguments(**{**vars(SIZES), "num_embeddings": embeddings})
    model = TabularModel(make_config(splits, network, sizes), splits.preprocessor)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert not isinstance(again, TabularModel)  # it is the saved copy of the class
    new = frame.drop(columns="y").assign(city="Atlantis", more=1)
    np.testing.assert_allclose(again.predict_proba(new), model.predict_proba(new), atol=1e-6)
    np.testing.assert_array_equal(again.predict(new, batch_size=7), model.predict(new))
    assert set(again.predict(new)) <= {"big", "small"}
    with pytest.raises(ValueError, match="lacks the column"):
        again.predict(new.drop(columns="size"))


def test_a_saved_folder_works_in_a_process_that_knows_nothing(tmp_path):
    frame = learnable(regression=True)
    splits = splits_of(frame)
    trained = train_network(splits, "mlp", SIZES, arguments(tmp_path))
    folder = tmp_path / "model"
    trained.model.save_pretrained(folder)
    frame.to_parquet(tmp_path / "t.parquet")
    code = f"""
import pandas as pd, transformers
model = transformers.AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True)
print(model.predict(pd.read_parquet({str(tmp_path / "t.parquet")!r}).head(3)).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = trained.model.predict(frame.head(3))
    np.testing.assert_allclose(json.loads(done.stdout.strip().splitlines()[-1]), expected, rtol=1e-5)


def test_training_learns_and_predicts_as_the_saved_model_does(tmp_path):
    frame = learnable()
    splits = splits_of(frame)
    trained = train_network(splits, "resnet", SIZES, arguments(tmp_path))
    assert np.mean(trained.test.argmax(axis=1) == splits.test.y) > 0.75
    weights = [entry for entry in trained.trainer.state.log_history if "weight_mean" in entry]
    assert weights and weights[0]["weight_mean"] > 1


def test_regressions_are_in_the_targets_units(tmp_path):
    frame = learnable(regression=True)
    frame["y"] = 1000 + 50 * frame["y"]
    numbers = splits_of(frame)
    args = arguments(tmp_path, num_train_epochs=25, reweighting="none")
    trained = train_network(numbers, "mlp", SIZES, args)
    assert np.corrcoef(trained.test, numbers.test.y)[0, 1] > 0.8
    assert abs(trained.test.mean() - numbers.test.y.mean()) < 30


def test_pretraining_changes_the_encoder_before_the_target_is_seen(tmp_path):
    splits = splits_of(learnable())
    finals = []
    for epochs in (0, 4):
        sizes = NetworkArguments(**{**vars(SIZES), "pretrain_epochs": epochs, "reweight_pretraining": True})
        torch.manual_seed(0)
        model = TabularModel(make_config(splits, "mlp", sizes), splits.preprocessor)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        if epochs:
            first = pretrain(model, splits, sizes, arguments(tmp_path, num_train_epochs=1))
            more = NetworkArguments(**{**vars(sizes), "pretrain_epochs": 12})
            assert pretrain(model, splits, more, arguments(tmp_path)) < first
        changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
        finals.append({name.split(".")[0] for name in changed})
    assert finals == [set(), {"encoder"}]


def test_the_best_weights_come_back_and_training_stops():
    model = torch.nn.Linear(1, 1)
    keep, control, state = KeepBest("accuracy", patience=2), TrainerControl(), TrainerState()
    for epoch, (accuracy, loss) in enumerate([(0.5, 1.0), (0.7, 0.9), (0.7, 0.8), (0.6, 0.1), (0.7, 0.8)]):
        assert not control.should_training_stop
        torch.nn.init.constant_(model.weight, epoch)
        state.epoch = epoch
        keep.on_evaluate(
            None, state, control, model=model, metrics={"eval_accuracy": accuracy, "eval_loss": loss}
        )
    assert control.should_training_stop and keep.best_epoch == 2 and keep.best == (0.7, -0.8)
    keep.on_train_end(None, state, control, model=model)
    assert model.weight.item() == 2


@pytest.fixture
def tiny_run(tmp_path: Path) -> list[str]:
    learnable().to_csv(tmp_path / "mine.csv", index=False)
    return [
        *("--data", str(tmp_path / "mine.csv"), "--target", "y", "--output_dir", str(tmp_path / "out")),
        *("--n_blocks", "1", "--d_block", "16", "--num_train_epochs", "2", "--use_cpu"),
    ]


def test_a_run_leaves_a_model_that_predicts_a_frame_and_one_record(tiny_run, tmp_path, capsys):
    record = tabular.main([*tiny_run, "--save_predictions", "--seed", "1"])
    out = tmp_path / "out"
    assert json.loads((out / "all_results.json").read_text()) == record
    assert record["method"] == "RGD (kl, tau=1)" and record["settings"]["d_block"] == 16
    assert f"{record['test_accuracy']:.4f}" in capsys.readouterr().out
    model = AutoModel.from_pretrained(out, trust_remote_code=True)
    frame = learnable()
    assert len(model.predict(frame.drop(columns="y"))) == len(frame)
    assert "trust_remote_code" in (out / "README.md").read_text()
    found = pd.read_parquet(out / "predictions.parquet")
    assert found["correct"].mean() == pytest.approx(record["test_accuracy"], abs=1e-6)
    assert found["loss"].mean() == pytest.approx(record["test_log_loss"], abs=1e-5)
    assert (found["correct"] == (found["label"] == found["prediction"])).all()
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert any("effective_sample_size" in entry for entry in log)
    assert sum(record["train_class_counts"]) == 153  # of 240 rows 48 are for the test, 39 for validation
    assert {"predictions.parquet", "trainer_state.json", "model.safetensors"} <= set(record["files"])
    with pytest.raises(UserError, match="finished run"):
        tabular.main(tiny_run)


def test_a_comparison_has_the_runs_that_each_would_be_alone(tiny_run, tmp_path):
    found = tabular.main([*tiny_run, "--compare", "--seeds", "0", "1", "--tau", "2"])
    assert list(found["runs"]) == ["erm-seed0", "kl-seed0", "erm-seed1", "kl-seed1"]
    assert found["comparison"]["metric"] == "test_accuracy"
    for name, options in {"kl-seed1": ["--tau", "2"], "erm-seed1": ["--reweighting", "none"]}.items():
        alone = tabular.main([*tiny_run, *options, "--seed", "1", "--output_dir", str(tmp_path / name)])
        scores = [name for name in alone if name.startswith(("test_", "eval_"))]
        assert {name: alone[name] for name in scores} == {n: found["runs"][name][n] for n in scores}


def test_the_librarys_weights_reach_the_network(tiny_run, tmp_path):
    def logged(name, *options):
        tabular.main([*tiny_run, "--output_dir", str(tmp_path / name), *options])
        log = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        return [entry for entry in log if "effective_sample_size" in entry]

    solved = logged("ess", "--target_ess", "0.8")
    assert all(entry["effective_sample_size"] == pytest.approx(0.8, abs=0.05) for entry in solved)
    late = logged("late", "--reweighting_warmup_ratio", "0.5")
    assert late[0]["weight_mean"] == 1 and late[-1]["weight_mean"] > 1.05
    for reweighting in ("focal", "cvar", "tilted", "reverse_kl"):
        assert logged(reweighting, "--reweighting", reweighting)
    splits = splits_of(learnable())
    args = arguments(tmp_path, num_train_epochs=1, class_weights="balanced")
    columns = train_network(splits, "mlp", SIZES, args).trainer.train_dataset.columns
    masses = [columns["sample_weight"][columns["labels"] == c].sum().item() for c in (0, 1)]
    assert masses[0] == pytest.approx(masses[1], rel=1e-4)
    balanced, plain = (
        tabular.main([*tiny_run, "--reweighting", "none", "--output_dir", str(tmp_path / name), *options])
        for name, options in (("balanced", ["--class_weights", "balanced"]), ("plain", []))
    )
    assert balanced["test_log_loss"] != plain["test_log_loss"]


def test_two_processes_leave_one_record(tiny_run, tmp_path):
    done = launch(tiny_run, "--multi_gpu", "--num_processes", "2", script="tabular.py")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert record["settings"]["world_size"] == 2 and 0.4 < record["test_accuracy"] <= 1


def test_errors_are_one_line(tiny_run, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run_recipe(lambda: tabular.main([*tiny_run, "--target", "price"]))
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip()
    assert "no column 'price'" in error and "'size', 'city'" in error and "\n" not in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no data"),
        (["--data", "digits", "--push_to_hub"], "push_to_hub"),
        (["--data", "digits", "--eval_strategy", "no"], "eval_strategy"),
        (["--data", "digits", "--save_strategy", "epoch"], "save_strategy"),
        (["--data", "digits", "--test_size", "1.5"], "--test_size must lie between"),
        (["--data", "digits", "--network_args", '{"k": 0}'], "--k must be at least 1"),
        (["--data", "digits", "--network_args", '{"kk": 1}'], "JSON object of k, num_embeddings"),
        (["--data", "digits", "--network_args", "{"], "not valid JSON"),
        (["--data", "digits", "--network_args", '{"k": "4"}'], "--k is '4': Input should be a valid integer"),
        (
            ["--data", "digits", "--network_args", '{"k": true}'],
            "--k is True: Input should be a valid integer",
        ),
        (["--data", "digits", "--network_args", '{"k": 2.5}'], "--k is 2.5: Input should be a valid integer"),
        (
            ["--data", "digits", "--network_args", '{"mask_rate": "0.3"}'],
            "--mask_rate is '0.3': .* valid number",
        ),
        (
            ["--data", "digits", "--network_args", '{"num_embeddings": "foo"}'],
            "must be one of 'auto', .*not 'foo'",
        ),
        (
            ["--data", "digits", "--network_args", '{"reweight_pretraining": "false"}'],
            "--reweight_pretraining is 'false': .* valid boolean",
        ),
        (["--data", "digits", "--dropout", "3"], "--dropout must be"),
        (["--data", "digits", "--network", "ft_transformer", "--d_block", "20"], "FT-Transformer's 8"),
        (
            ["--data", "diabetes", "--label_smoothing_factor", "0.1"],
            "smooths classes, but this is a regression",
        ),
        (["--data", "digits", "--max_rows", "3"], "at least 10"),
        (
            ["--data", "wine", "--max_steps", "4", "--eval_delay", "50", "--use_cpu"],
            "before its first evaluation",
        ),
        (
            ["--data", "wine", "--class_weights", "1,2", "--use_cpu"],
            "lists 2 weights, but the model has 3 classes",
        ),
        (
            ["--data", "wine", "--compare", "--reweighting", "cvar", "--per_device_train_batch_size", "1"],
            "--per_device_train_batch_size must be at least 2",
        ),
        (
            [
                "--data",
                "wine",
                "--compare",
                "--reweighting",
                "group_dro",
                "--reweighting_args",
                "num_groups=2",
            ],
            "needs a column .* script of your own",
        ),
        (["--data", "digits", "--hard_examples", "-1"], "--hard_examples must be at least 0"),
        (
            ["--data", "digits", "--networks", "all"],
            "no option of this recipe.*a study trains several",
        ),
        (["--data", "digits", "--rivals", "all"], "methods of a study"),
        (["--data", "digits", "--num_embeddings", "none"], 'give --network_args .*"num_embeddings"'),
    ],
)
def test_what_cannot_be_trained_is_explained(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        tabular.main([*options, "--output_dir", str(tmp_path / "out")])
