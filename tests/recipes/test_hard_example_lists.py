"""`--hard_examples`: what the list says against the saved model and the data, and whether it finds wrong labels."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from transformers import pipeline

import glue
import imagenet
from benchmarks.images import hard_versions
from helpers.pages import Page
from helpers.recipes import TINY, changed, launch, output_of, sentences, tiny
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.training.hard_examples import thumbnail
from rgd_hf.scripts.vision.data import ImageDataArguments, load_image_sets
from rgd_hf.scripts.vision.decoding import open_image


def test_sentences_are_listed_with_what_the_saved_model_predicts(tiny_run, write_rows, capsys):
    rows = sentences(48)
    rows[5]["text"] = "<b>good</b> & bad [bold]"
    rows[5]["label"] = 0
    run = changed(tiny_run, train_file=write_rows("odd.csv", rows))
    glue.main([*run, "--hard_examples", "48", "--eval_strategy", "no"])
    out = output_of(run)
    listed = json.loads((out / "hard_examples.json").read_text())
    assert sorted(row["index"] for row in listed) == list(range(48))
    assert all(row["seen"] == 2 and row["weight"] >= 1 for row in listed)
    order = [(-row["weight"], -row["loss"]) for row in listed]
    assert order == sorted(order)
    classify = pipeline("text-classification", model=str(out))
    for row in listed:
        assert row["text"] == rows[row["index"]]["text"] and row["label"] == str(rows[row["index"]]["label"])
        assert row["prediction"] == classify(row["text"])[0]["label"]
        assert row["correct"] == (row["prediction"] == row["label"])
    page = Page((out / "hard_examples.html").read_text())
    assert len(page.rows) == 49 and not page.images
    shown = next(cells for cells in page.rows if "[bold]" in cells[1])
    assert shown[1] == rows[5]["text"]
    printed = capsys.readouterr().out
    assert "Hard, or mislabelled?" in printed and listed[0]["text"].split()[0] in printed


def test_wrong_labels_of_digits_lead_the_list(tmp_path):
    """20 % of the 1,437 labels are wrong: of 50 samples drawn at random about 10 would be."""
    options = {
        **{"max_train_samples": None, "max_eval_samples": None, "label_noise": 0.2, "hard_examples": 50},
        **{"model_args": json.dumps({**TINY, "embed_dim": 32}), "augmentation": "none"},
        **{"num_train_epochs": 6, "per_device_train_batch_size": 64, "learning_rate": 3e-3},
        **{"eval_strategy": "no", "save_strategy": "no"},
    }
    hard_versions.main(changed(tiny(tmp_path), **options))
    listed = json.loads((tmp_path / "hard_examples.json").read_text())
    truth = load_digits().target
    wrong = [row["label"] != str(truth[row["index"]]) for row in listed]
    right_guess = [row["prediction"] == str(truth[row["index"]]) for row in listed]
    assert len(listed) == 50 and np.mean(wrong) > 0.9
    assert np.mean(right_guess) > 0.6
    page = Page((tmp_path / "hard_examples.html").read_text())
    assert len(page.images) == 50 and all(re.match("data:image/png;base64,", image) for image in page.images)


def test_images_are_predicted_by_the_averaged_model_that_is_saved(tmp_path):
    imagenet.main(tiny(tmp_path, "--ema_decay", "0.95", "--hard_examples", "40", "--learning_rate", "2e-2"))
    listed = json.loads((tmp_path / "hard_examples.json").read_text())
    args = ImageDataArguments(dataset_name="digits", max_train_samples=96, max_eval_samples=40)
    train, _ = load_image_sets(args)
    classify = pipeline("image-classification", model=str(tmp_path))
    answers = classify([Image.fromarray(train.images[row["index"]]) for row in listed])
    assert [row["prediction"] for row in listed] == [answer[0]["label"] for answer in answers]
    assert [row["label"] for row in listed] == [str(load_digits().target[row["index"]]) for row in listed]
    shown = Page((tmp_path / "hard_examples.html").read_text()).images
    assert shown == [thumbnail(open_image(train.images[row["index"]])) for row in listed]


def test_augmented_averaged_and_repeated_images(tmp_path, capsys):
    options = (
        "--augmentation",
        '{"repeated_augmentation": 3, "mixup": 0.8}',
        "--ema_decay",
        "0.9",
        "--compare",
        "--target_ess",
        "0.9",
    )
    imagenet.main(tiny(tmp_path, "--hard_examples", "50", *options))
    shown = capsys.readouterr().out
    for method in ("erm", "kl"):
        listed = json.loads((tmp_path / method / "hard_examples.json").read_text())
        assert sum(row["seen"] for row in listed) <= 12 * 16
        assert {row["weight"] == 1.0 for row in listed} == {method == "erm"}
        by = "loss" if method == "erm" else "weight (of equal weights"
        title = f"The {len(listed)} of 96 training samples with the largest mean {by}"
        assert title in " ".join(shown.split())
        assert title in (tmp_path / method / "hard_examples.html").read_text()


def test_real_values_and_several_labels(tiny_run, write_rows):
    for number, label in enumerate((lambda i: i / 7, lambda i: [["red"], ["blue", "red"], []][i % 3])):
        rows = [{**row, "label": label(i)} for i, row in enumerate(sentences(24))]
        files = {
            "train_file": write_rows(f"t{number}.jsonl", rows),
            "validation_file": write_rows("v.jsonl", rows),
        }
        run = changed(tiny_run, **files, output_dir=output_of(tiny_run).parent / str(number))
        glue.main([*run, "--hard_examples", "5"])
        listed = json.loads((output_of(run) / "hard_examples.json").read_text())
        assert len(listed) == 5 and ("correct" in listed[0]) == (number == 1)
        for row in listed:
            told = label(row["index"])
            expected = ", ".join(sorted(told)) or "none" if number else pytest.approx(told, abs=1e-4)
            assert row["label"] == expected


def test_two_processes_list_the_same(tiny_run):
    run = changed(tiny_run, per_device_train_batch_size=4, num_train_epochs=1)
    done = launch([*run, "--hard_examples", "48"], "--multi_gpu", "--num_processes", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Hard, or mislabelled?") == 1
    listed = json.loads((output_of(run) / "hard_examples.json").read_text())
    assert sorted(row["index"] for row in listed) == list(range(48)) and all(
        row["seen"] == 1 for row in listed
    )
    texts = [row["text"] for row in sentences(48)]
    assert all(row["text"] == texts[row["index"]] for row in listed)


def test_held_out_rows_are_never_listed_and_indices_are_of_the_file(tiny_run):
    run = changed(tiny_run, validation_file=None, num_train_epochs=1)
    glue.main([*run, "--hard_examples", "48", "--holdout_fraction", "0.25", "--save_predictions"])
    listed = json.loads((output_of(run) / "hard_examples.json").read_text())
    held_out = pd.read_parquet(output_of(run) / "predictions.parquet")
    assert len(listed) == 36 and len(held_out) == 12
    texts = [row["text"] for row in sentences(48)]
    assert all(row["text"] == texts[row["index"]] for row in listed)


def test_what_cannot_be_listed(tiny_run):
    with pytest.raises(UserError, match="--hard_examples"):
        glue.main([*tiny_run, "--hard_examples", "-1"])
    with pytest.raises(UserError, match="--streaming"):
        imagenet.main(["--data_dir", "x", "--streaming", "--hard_examples", "5"])
