"""The tabular recipe end to end: models that predict a DataFrame, resumed studies, two processes, user errors."""

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
from rgd_hf import ReweightedTrainingArguments
from rgd_hf.scripts.cli import run_recipe
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.tabular.columns import ColumnArguments, choose_columns, find_target
from rgd_hf.scripts.tabular.configuration import NETWORKS, NUM_EMBEDDINGS
from rgd_hf.scripts.tabular.modeling import TabularModel
from rgd_hf.scripts.tabular.objectives import Objective
from rgd_hf.scripts.tabular.options import NetworkArguments
from rgd_hf.scripts.tabular.pretraining import pretrain
from rgd_hf.scripts.tabular.splits import PreparedTable, Splits
from rgd_hf.scripts.tabular.trainer import KeepBest
from rgd_hf.scripts.tabular.training import make_config, train_network


def learnable(rows: int = 240, regression: bool = False) -> pd.DataFrame:
    """A small table of all types whose target follows from two columns."""
    draw = np.random.default_rng(0)
    size, city = draw.normal(size=rows), draw.choice(["Oslo", "Rome", "Lima"], rows)
    score = 2 * size + (city == "Oslo")
    size[::11] = np.nan
    return pd.DataFrame(
        {
            "size": size,
            "city": city,
            "noise": draw.normal(size=rows),
            "flag": draw.random(rows) < 0.5,
            "y": score if regression else np.where(score > 0.3, "big", "small"),
        }
    )


def splits_of(frame: pd.DataFrame) -> Splits:
    columns = choose_columns(frame, "y", ColumnArguments(), print)
    frame, target = find_target(frame, "y", ColumnArguments(), print)
    return PreparedTable("t", frame, target.encode(frame["y"]), target, columns).split(0)


def arguments(tmp_path: Path, **options) -> ReweightedTrainingArguments:
    defaults = {
        **tabular.DEFAULTS,
        "output_dir": str(tmp_path / "out"),
        "num_train_epochs": 6,
        "learning_rate": 1e-2,
        "use_cpu": True,
    }
    return ReweightedTrainingArguments(**{**defaults, **options})


SIZES = NetworkArguments(n_blocks=1, d_block=16, k=3, n_bins=4, d_embedding=4)


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
    trained = train_network(splits, "mlp", Objective("kl"), SIZES, arguments(tmp_path))
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
    trained = train_network(splits, "resnet", Objective("kl"), SIZES, arguments(tmp_path))
    assert np.mean(trained.test.argmax(axis=1) == splits.test.y) > 0.75
    weights = [entry for entry in trained.trainer.state.log_history if "weight_mean" in entry]
    assert weights and weights[0]["weight_mean"] > 1


def test_class_weights_reach_the_loss_and_regressions_are_in_the_targets_units(tmp_path):
    splits = splits_of(learnable())
    columns = train_network(
        splits, "mlp", Objective("class_weights"), SIZES, arguments(tmp_path, num_train_epochs=1)
    ).trainer.train_dataset.columns
    masses = [columns["sample_weight"][columns["labels"] == c].sum().item() for c in (0, 1)]
    assert masses[0] == pytest.approx(masses[1], rel=1e-4)
    frame = learnable(regression=True)
    frame["y"] = 1000 + 50 * frame["y"]
    numbers = splits_of(frame)
    trained = train_network(numbers, "mlp", Objective("erm"), SIZES, arguments(tmp_path, num_train_epochs=25))
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
def tiny_study(tmp_path: Path) -> list[str]:
    learnable().to_csv(tmp_path / "mine.csv", index=False)
    return [
        *("--data", str(tmp_path / "mine.csv"), "--target", "y", "--output_dir", str(tmp_path / "out")),
        *("--n_blocks", "1", "--d_block", "16", "--num_train_epochs", "2", "--use_cpu"),
        *("--rivals", "linear", "hist_gradient_boosting"),
    ]


def test_a_study_is_reported_and_goes_on_where_it_stopped(tiny_study, tmp_path, capsys):
    records = tabular.main([*tiny_study, "--seeds", "2"])
    assert {r["method"] for r in records} == {
        "linear", "hist_gradient_boosting", "mlp/erm", "mlp/kl", "mlp/focal", "mlp/class_weights",
    }  # fmt: skip
    assert len(records) == 12
    out = capsys.readouterr().out
    for piece in ("mine: test scores", "Paired differences", "balanced_accuracy"):
        assert piece in out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert len(summary["scores"]) == 6 and "--seeds 2" in summary["commands"][0]
    assert (tmp_path / "out" / "scores.png").stat().st_size > 5000
    runs = tmp_path / "out" / "runs.jsonl"
    lines = runs.read_text().splitlines()
    runs.write_text("\n".join(lines[:-2]) + "\n" + lines[-2][:20])  # killed while writing
    again = tabular.main([*tiny_study, "--seeds", "2"])
    assert [(r["method"], r["seed"], r["accuracy"]) for r in again] == [
        (r["method"], r["seed"], r["accuracy"]) for r in records
    ]
    assert runs.read_text().splitlines()[:-2] == lines[:-2]
    with pytest.raises(UserError, match=r"other settings.*learning_rate"):
        tabular.main([*tiny_study, "--learning_rate", "0.1"])
    model = AutoModel.from_pretrained(tmp_path / "out" / "mine" / "mlp_kl", trust_remote_code=True)
    frame = learnable().drop(columns="y")
    assert len(model.predict(frame)) == len(frame)
    assert "trust_remote_code" in (tmp_path / "out" / "mine" / "mlp_kl" / "README.md").read_text()


def test_tuning_never_sees_the_test_rows(tiny_study, monkeypatch):
    from rgd_hf.scripts.tabular import study

    looked_at: list[str] = []
    original = study.Study._fit_rival

    def spy(self, method, splits, settings, on="test"):
        looked_at.append(on)
        return original(self, method, splits, settings, on)

    monkeypatch.setattr(study.Study, "_fit_rival", spy)
    arguments = [*tiny_study[:-2], "linear", "--networks", "mlp", "--objectives", "erm", "kl", "--tune", "2"]
    records = tabular.main(arguments)
    assert looked_at == ["validation", "validation", "test"]
    assert all("tuned" in record for record in records)


def test_two_processes_give_one_line_a_run(tiny_study, tmp_path):
    options = "--multi_gpu", "--num_processes", "2"
    done = launch([*tiny_study, "--objectives", "erm", "kl"], *options, script="tabular.py")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert [r["method"] for r in records] == ["linear", "hist_gradient_boosting", "mlp/erm", "mlp/kl"]
    assert all(0.4 < r["accuracy"] <= 1 for r in records)


def test_runs_of_another_target_are_not_taken_for_those_of_this_one(tiny_study):
    quick = ["--objectives", "erm", "--rivals", "linear"]
    tabular.main([*tiny_study, *quick])
    other = [*tiny_study, *quick, "--target", "city"]
    with pytest.raises(UserError, match="a table 'mine' with the target 'y', not 'city'"):
        tabular.main(other)
    records = tabular.main([*other, "--overwrite_output_dir"])
    assert [record["target"] for record in records] == ["city", "city"]


def test_errors_are_one_line(tiny_study, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run_recipe(lambda: tabular.main([*tiny_study, "--target", "price"]))
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip()
    assert "no column 'price'" in error and "'size', 'city'" in error and "\n" not in error
    for arguments, message in (
        ([], "no data"),
        (["--data", "digits", "wine", "iris", "--target", "a", "b"], "3 tables and 2 targets"),
        (["--data", "digits", "--push_to_hub"], "push_to_hub"),
        (["--data", "digits", "--eval_strategy", "no"], "eval_strategy"),
        (["--data", "digits", "--seeds", "0"], "--seeds must be at least 1"),
        (["--data", "digits", "--tune", "-1"], "--tune must be at least 0"),
        (["--data", "digits", "--test_size", "1.5"], "--test_size must lie between"),
        (["--data", "digits", "--k", "0"], "--k must be at least 1"),
        (["--data", "digits", "--dropout", "3"], "--dropout must be"),
        (["--data", "digits", "--mask_rate", "2"], "--mask_rate must lie"),
        (["--data", "digits", "--networks", "all", "--d_block", "20"], "multiple of the FT-Transformer's 8"),
        (["--data", "digits", "digits"], "several tables have the same name"),
        (
            ["--data", "diabetes", "--label_smoothing_factor", "0.1", "--output_dir", str(tmp_path)],
            "smooths classes, but this is a regression",
        ),
        (["--data", "digits", "--max_rows", "3"], "at least 10"),
        (["--data", "digits", "--num_embedings", "none"], "did you mean 'num_embeddings'"),
    ):
        with pytest.raises(UserError, match=message):
            tabular.main(arguments)
