"""`--save_predictions`, `--holdout_fraction`, `--save_models`: against the saved model, the metrics and the raw data."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import glue
import imagenet
from helpers.recipes import changed, launch, output_of, sentences, tiny
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.files.holdout import hold_out
from rgd_hf.scripts.training.predictions import predictions_table
from rgd_hf.scripts.vision.data import ImageDataArguments, load_image_sets


@torch.no_grad()
def losses_of(model_dir, rows: list[dict]) -> torch.Tensor:
    """Oracle: one sample at a time through the saved model."""
    model = AutoModelForSequenceClassification.from_pretrained(model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    logits = torch.cat([model(**tokenizer(row["text"], return_tensors="pt")).logits for row in rows])
    labels = torch.tensor([row["label"] for row in rows])
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


@pytest.mark.parametrize("drop_last", ["false", "true"])  # of training batches alone
def test_text_predictions_are_those_of_the_saved_model(drop_last, tiny_run):
    options = ["--per_device_eval_batch_size", "5", "--dataloader_drop_last", drop_last]
    record = glue.main([*tiny_run, "--save_predictions", *options])
    out = output_of(tiny_run)
    table = pd.read_parquet(out / "predictions.parquet")
    rows = sentences(24, seed=1)
    assert table["label"].tolist() == [row["label"] for row in rows]
    np.testing.assert_allclose(table["loss"], losses_of(out, rows), rtol=1e-4, atol=1e-6)
    assert (table["correct"] == (table["label"] == table["prediction"])).all()
    assert table["correct"].mean() == record["eval_accuracy"]
    assert table["loss"].mean() == pytest.approx(record["eval_loss"], rel=1e-6)


def test_two_processes_write_every_sample_once(tiny_run, tmp_path):
    rows = [
        {"text": row["text"], "label": row["label"]} for row in sentences(23, seed=1)
    ]  # not a multiple of 2 x 5
    pd.DataFrame(rows).to_csv(tmp_path / "odd.csv", index=False)
    run = changed(tiny_run, validation_file=tmp_path / "odd.csv", num_train_epochs=1)
    run = [*run, "--save_predictions", "--per_device_eval_batch_size", "5"]
    done = launch(run, "--multi_gpu", "--num_processes", "2")
    assert done.returncode == 0, done.stderr
    out = output_of(run)
    table = pd.read_parquet(out / "predictions.parquet")
    assert table["label"].tolist() == [row["label"] for row in rows]
    np.testing.assert_allclose(table["loss"], losses_of(out, rows), rtol=1e-4, atol=1e-6)


def test_image_predictions_are_those_of_the_averaged_model_that_is_saved(tmp_path):
    record = imagenet.main(tiny(tmp_path, "--ema_decay", "0.8", "--save_predictions"))
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["predictions.parquet"]
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    args = ImageDataArguments(dataset_name="digits", max_train_samples=96, max_eval_samples=40)
    _, validation = load_image_sets(args)
    assert table["label"].tolist() == validation.labels.tolist()
    assert table["correct"].mean() == pytest.approx(record["eval_accuracy"])
    model = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    images = [Image.fromarray(validation.source(i)).convert("RGB") for i in range(len(validation))]
    with torch.no_grad():
        logits = model(**processor(images, return_tensors="pt")).logits
    assert table["prediction"].tolist() == logits.argmax(dim=1).tolist()
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(validation.labels), reduction="none")
    np.testing.assert_allclose(table["loss"], losses, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(table["confidence"], logits.softmax(dim=1).amax(dim=1), rtol=1e-4)


@pytest.mark.parametrize("task", ["stsb", "mnli"])
def test_values_have_no_correct_and_several_validation_sets_a_file_each(task, tiny_run, tmp_path):
    facts, folder = glue.GLUE_TASKS[task], tmp_path / "data"
    folder.mkdir()
    for split in ("train", *facts.validation):
        rows = [
            {**dict.fromkeys(facts.columns, row["text"]), "label": i % 3 if facts.labels else i / 4}
            for i, row in enumerate(sentences(12))
        ]
        pd.DataFrame(rows).to_parquet(folder / f"{split}.parquet")
    run = changed(tiny_run, train_file=None, validation_file=None, dataset_dir=folder, num_train_epochs=1)
    glue.main([*run, "--task_name", task, "--save_predictions"])
    files = {path.name: pd.read_parquet(path) for path in output_of(run).glob("*.parquet")}
    if task == "mnli":
        assert set(files) == {"predictions_matched.parquet", "predictions_mismatched.parquet"}
        assert all(len(table) == 12 and "correct" in table for table in files.values())
    else:
        (table,) = files.values()
        assert list(table.columns) == ["label", "prediction", "loss"]
        np.testing.assert_allclose(table["loss"], (table["label"] - table["prediction"]) ** 2, rtol=1e-5)


def test_several_labels_are_correct_as_a_whole_and_unreadable_images_count_for_nothing():
    labels = np.array([[1.0, 0.0], [1.0, 1.0]])
    table = predictions_table(labels, np.array([[1, 0], [0, 1]]), np.array([0.1, 0.9], dtype=np.float32))
    assert table["correct"].tolist() == [True, False] and table["label"].tolist()[1].tolist() == [1, 1]
    table = predictions_table(np.array([3, -100]), np.array([3, 3]), None)
    assert table["correct"][0] and pd.isna(table["correct"][1])


def test_held_out_rows_come_from_the_training_file_alone(tiny_run):
    run = changed(tiny_run, validation_file=None, num_train_epochs=1)
    glue.main([*run, "--holdout_fraction", "0.25", "--save_predictions"])
    table = pd.read_parquet(output_of(run) / "predictions.parquet")
    assert table["label"].value_counts().tolist() == [6, 6]  # of 48 rows in two classes of equal size
    first = table["loss"]
    other = changed(run, seed=4, learning_rate=0, output_dir=output_of(run).parent / "other")
    glue.main([*other, "--holdout_fraction", "0.25", "--save_predictions"])
    again = changed(run, seed=4, learning_rate=0, output_dir=output_of(run).parent / "again")
    glue.main([*again, "--holdout_fraction", "0.25", "--save_predictions", "--max_eval_samples", "5"])
    untrained, cut = (
        pd.read_parquet(output_of(arguments) / "predictions.parquet") for arguments in (other, again)
    )
    assert (untrained["label"] == table["label"]).all() and not np.allclose(untrained["loss"], first)
    pd.testing.assert_frame_equal(cut, untrained[:5], rtol=1e-5)


def test_hold_out_keeps_shares_and_single_rows():
    labels = np.array([0] * 40 + [1] * 20 + [2])
    kept, held_out = hold_out(61, 0.25, 0, labels)
    assert np.bincount(labels[held_out], minlength=3).tolist() == [10, 5, 0]
    assert sorted([*kept, *held_out]) == list(range(61))
    assert (np.diff(kept) > 0).all() and (np.diff(held_out) > 0).all()
    assert not np.array_equal(hold_out(61, 0.25, 1, labels)[1], held_out)
    assert len(hold_out(61, 0.25, 0)[1]) == 15


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 0.01, 0.99])
def test_fractions_that_cannot_be(fraction):
    with pytest.raises(UserError, match="--holdout_fraction"):
        hold_out(20, fraction, 0, np.arange(20) % 5)


def test_streams_cannot_hold_out():
    with pytest.raises(UserError, match="--holdout_fraction needs all labels"):
        ImageDataArguments(data_dir="x", streaming=True, holdout_fraction=0.1)


def test_without_the_model_results_and_card_stay(tiny_run):
    with_model = glue.main(tiny_run)
    lean = changed(
        tiny_run, output_dir=output_of(tiny_run).parent / "lean", save_models="false", save_strategy="no"
    )
    without = glue.main(lean)
    names = {path.name for path in output_of(lean).iterdir()}
    assert {"all_results.json", "README.md", "trainer_state.json"} <= names
    assert not any(name.endswith((".safetensors", ".bin")) or "checkpoint" in name for name in names)
    assert without["eval_loss"] == with_model["eval_loss"]
    with pytest.raises(UserError, match="--save_models"):
        glue.main([*lean, "--push_to_hub", "--overwrite_output_dir"])


def test_starting_anew_discards_old_predictions(tiny_run):
    glue.main([*tiny_run, "--save_predictions"])
    glue.main([*tiny_run, "--overwrite_output_dir"])
    assert not list(output_of(tiny_run).glob("*.parquet"))
