"""`--hard_examples` of tables: the list against the user's file, the saved model, sums by hand, and labels known to be wrong."""

import json
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModel

import tabular
from helpers.pages import Page
from helpers.recipes import launch
from helpers.tables import SIZES, arguments, learnable, splits_of
from rgd_hf.scripts.tabular import training
from rgd_hf.scripts.tabular.hard_examples import as_json, readable
from rgd_hf.scripts.tabular.sources import load_table
from rgd_hf.scripts.tabular.trainer import TabularTrainer
from rgd_hf.scripts.training.hard_examples import most_weighted

SMALL = ["--n_blocks", "1", "--d_block", "16", "--use_cpu"]


def odd_table(rows: int = 240) -> pd.DataFrame:
    """Columns of all types, one called as a key of the list, rows without a target, and an index that says nothing."""
    frame = learnable(rows).rename(columns={"noise": "weight"})
    frame["when"] = pd.Timestamp("2020-02-28") + pd.to_timedelta(np.arange(rows) % 50, unit="D")
    frame["number"] = np.arange(rows)
    frame["same"] = "constant"
    frame["<b>note</b>"] = ["a & [bold] note " + "x" * (i % 3) for i in range(rows)]
    frame["y"] = frame["y"].astype(object).where(np.arange(rows) % 7 != 0, None)
    return frame.set_index(np.random.default_rng(0).permutation(rows))


def lists(directory) -> dict[str, list[dict]]:
    found = sorted(directory.rglob("hard_examples.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in found}


@pytest.mark.parametrize("network", ["mlp", "tabm"])
def test_rows_are_those_of_the_users_file_and_predicted_by_the_saved_model(network, tmp_path, capsys):
    frame = odd_table()
    frame.to_parquet(tmp_path / "mine.parquet", index=False)
    options = ["--target", "y", "--drop_columns", "number", "--max_rows", "150", "--num_train_epochs", "3"]
    options += ["--data", str(tmp_path / "mine.parquet"), "--compare", "--hard_examples", "1000", *SMALL]
    tabular.main([*options, "--network", network, "--output_dir", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    found = lists(tmp_path / "out")
    assert set(found) == {"erm", "kl"}
    for name, rows in found.items():
        folder = tmp_path / "out" / name
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        assert len(rows) == 96  # 150 * 0.8 * 0.8
        in_file = frame.iloc[[row["index"] for row in rows]]
        assert [row["values"]["number"] for row in rows] == [row["index"] for row in rows]
        assert [row["label"] for row in rows] == in_file["y"].tolist()
        assert [row["prediction"] for row in rows] == model.predict(in_file).tolist()
        assert [row["correct"] for row in rows] == [row["label"] == row["prediction"] for row in rows]
        for row, (_, given) in zip(rows, in_file.iterrows()):
            assert list(row["values"]) == [c for c in frame.columns if c not in ("y", "same")]
            assert row["values"]["size"] == (None if np.isnan(given["size"]) else given["size"])
            assert row["values"]["flag"] is bool(given["flag"])
            assert row["values"]["when"] == str(given["when"])
        order = [(-row["weight"], -row["loss"]) for row in rows]
        assert order == sorted(order)
        assert {row["weight"] == 1 for row in rows} == {name == "erm"}
        head, first, *rest = Page((folder / "hard_examples.html").read_text()).rows
        assert len(rest) == 95 and head[-1].strip() == "<b>note</b>" and "label before noise" not in head
        assert first[head.index("row")] == str(rows[0]["index"])
        assert first[head.index("city")] == rows[0]["values"]["city"]
        # A long text leaves the other columns of the short table their width.
        assert all(f"{row['index']} │  {row['weight']:.3f} │" in printed for row in rows[:10])


@pytest.mark.parametrize(
    ("network", "reweighting", "regression"),
    [("mlp", "kl", False), ("tabm", "kl", False), ("tabm", "kl", True), ("mlp", "focal", False),
     ("mlp", "none", False), ("mlp", "cvar", False), ("ft_transformer", "chi2", True)],
)  # fmt: skip
def test_means_are_those_of_every_visit(network, reweighting, regression, tmp_path, monkeypatch):
    visits = defaultdict(list)

    class Watched(TabularTrainer):
        def weigh(self, items, inputs):
            weights = super().weigh(items, inputs)
            assert items.losses.shape == inputs["labels"].shape
            for key, *seen in zip(inputs["x_num"].tolist(), weights.tolist(), items.losses.tolist()):
                visits[tuple(key)].append(seen)
            return weights

    monkeypatch.setattr(training, "TabularTrainer", Watched)
    splits = splits_of(learnable(regression=regression))
    args = arguments(tmp_path, num_train_epochs=3, reweighting=reweighting)
    trained = training.train_network(splits, network, SIZES, args, record_examples=True)
    by_hand = [np.mean(visits[tuple(row)], axis=0) for row in splits.train.x_num.tolist()]
    assert len(visits) == len(splits.train)
    found = most_weighted(trained.trainer, 1000)
    assert len(found) == len(splits.train)
    assert all(len(visits[tuple(splits.train.x_num[e.index].tolist())]) == e.seen for e in found)
    means = np.array([[e.weight, e.loss] for e in sorted(found, key=lambda e: e.index)])
    np.testing.assert_allclose(means, by_hand, rtol=1e-5, atol=1e-7)


def test_recording_changes_no_result_and_is_off_by_default(tmp_path):
    pretraining = '{"pretrain_epochs": 1, "reweight_pretraining": true}'
    options = ["--data", "wine", *SMALL, "--num_train_epochs", "2", "--network_args", pretraining]
    records = []
    plain = '{"pretrain_epochs": 1}'  # of a rule with settings of its own, which ERM has not
    rule = ["--reweighting", "relative_kl", "--reweighting_args", "decay=0.9", "--network_args", plain]
    tabular.main([*options[:-2], *rule, "--output_dir", str(tmp_path / "plain")])
    for name, more in (("off", []), ("on", ["--hard_examples", "4"])):
        record = tabular.main([*options, *more, "--output_dir", str(tmp_path / name)])
        records.append({name: value for name, value in record.items() if name.startswith(("test_", "eval_"))})
    assert records[0] == records[1] and not lists(tmp_path / "off")
    (rows,) = lists(tmp_path / "on").values()
    assert len(rows) == 4 and all(row["seen"] <= 2 for row in rows), "pretraining is not counted"
    splits = splits_of(learnable())
    trained = training.train_network(splits, "mlp", SIZES, arguments(tmp_path, num_train_epochs=1))
    assert "sample_index" not in trained.trainer.train_dataset.columns


def test_replaced_labels_lead_the_list(tmp_path):
    """20 % of the 1,149 labels are wrong: of 50 rows drawn at random about 10 would be."""
    options = ["--data", "digits", "--label_noise", "0.2", "--hard_examples", "50"]
    options += ["--d_block", "64", "--num_train_epochs", "12", "--network_args", '{"num_embeddings": "none"}']
    tabular.main([*options, "--use_cpu", "--output_dir", str(tmp_path)])
    (rows,) = lists(tmp_path).values()
    table = load_table("digits", None)
    truth = table.frame[table.target].tolist()
    assert [row["label_in_table"] for row in rows] == [truth[row["index"]] for row in rows]
    assert all(row["replaced"] == (row["label"] != truth[row["index"]]) for row in rows)
    assert np.mean([row["replaced"] for row in rows]) > 0.9
    assert np.mean([row["prediction"] == row["label_in_table"] for row in rows]) > 0.6
    text = (tmp_path / "hard_examples.html").read_text()
    listed = sum(row["replaced"] for row in rows)
    assert f"replaced 230 of the training labels by wrong ones; {listed} of those are listed" in text
    page = Page(text)
    # 64 columns are too many to stand side by side.
    head, first = page.rows[0], page.rows[1]
    assert head[2:4] == ["label", "label before noise"] and head[-1].strip() == "values" and len(head) == 9
    assert first[3] == (str(truth[rows[0]["index"]]) if rows[0]["replaced"] else "")
    assert first[-1].startswith("pixel_0_1=") and ", pixel_0_2=" in first[-1]


def test_a_regression_is_in_the_targets_units(tmp_path):
    options = ["--data", "diabetes", *SMALL, "--num_train_epochs", "3", "--hard_examples", "20", "--compare"]
    tabular.main([*options, "--output_dir", str(tmp_path)])
    found = lists(tmp_path)
    assert set(found) == {"erm", "kl"}
    table = load_table("diabetes", None)
    for name, rows in found.items():
        model = AutoModel.from_pretrained(tmp_path / name, trust_remote_code=True)
        given = table.frame.iloc[[row["index"] for row in rows]]
        np.testing.assert_array_equal([row["label"] for row in rows], given[table.target])
        np.testing.assert_allclose([row["prediction"] for row in rows], model.predict(given), rtol=1e-5)
        assert "correct" not in rows[0] and "replaced" not in rows[0]
        text = (tmp_path / name / "hard_examples.html").read_text()
        assert "squared error of the standardized target" in text and "another label" not in text


def test_two_processes_list_every_row_once(tmp_path):
    options = ["--data", "wine", *SMALL, "--num_train_epochs", "4"]
    done = launch(
        [*options, "--hard_examples", "500", "--output_dir", str(tmp_path), "--label_noise", "0.2"],
        *("--multi_gpu", "--num_processes", "2"),
        script="tabular.py",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Hard, or mislabelled?") == 1
    (rows,) = lists(tmp_path).values()
    assert len({row["index"] for row in rows}) == len(rows) == 113  # 178 * 0.8 * 0.8
    # The two processes share out 112 of the 113 rows in every epoch.
    assert sum(row["seen"] for row in rows) == 4 * 112
    assert sum(row["replaced"] for row in rows) == round(0.2 * 113)


def test_values_as_json_and_to_be_read():
    given = [1, 2.5, True, "a", None, np.nan, pd.NaT, pd.NA, np.inf, pd.Timestamp("2020-01-02"), [1, 2]]
    expected = [1, 2.5, True, "a", None, None, None, None, "inf", "2020-01-02 00:00:00", "[1, 2]"]
    assert [as_json(value) for value in given] == expected
    json.dumps([as_json(value) for value in given], allow_nan=False)
    assert [readable(v) for v in (None, 3.0, 1.23456789, 1234567.8, 2**60, "x" * 300, False)] == [
        "<missing>", "3", "1.23457", "1234568", str(2**60), "x" * 199 + "…", "False",
    ]  # fmt: skip


def test_every_batch_of_the_loader_carries_its_rows(tmp_path):
    splits = splits_of(learnable())
    trained = training.train_network(
        splits, "mlp", SIZES, arguments(tmp_path, num_train_epochs=1), record_examples=True
    )
    batches = list(trained.trainer.get_train_dataloader())
    numbers = torch.cat([batch["sample_index"] for batch in batches])
    assert sorted(numbers.tolist()) == list(range(len(splits.train)))
    for batch in batches:
        np.testing.assert_array_equal(batch["labels"], splits.train.y[batch["sample_index"]])
