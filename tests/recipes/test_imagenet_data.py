"""Images of the vision recipe: decoding, classes, folders, long tails, and batches that only the seed decides."""

import dataclasses
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from PIL import Image
from timm.data import ImageNetInfo
from torch.utils.data import DataLoader
from transformers import EvalPrediction

from helpers.images import in_memory, parquet
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.vision.augmentation import (
    Augmentation,
    make_mixup,
    train_transform,
)
from rgd_hf.scripts.vision.batches import (
    AugmentedImages,
    Draw,
    ImageCollator,
    PreparedImages,
    SeededDraws,
    seeded,
)
from rgd_hf.scripts.vision.classes import label_config, readable_names
from rgd_hf.scripts.vision.data import ImageDataArguments, load_image_sets, load_image_streams
from rgd_hf.scripts.vision.decoding import BadImages, check_all_images, open_image
from rgd_hf.scripts.vision.metrics import keep_best_classes, make_image_metrics
from rgd_hf.scripts.vision.sets import ImageSet, digits, read_folder

DATA_CONFIG = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}


def test_imagenet_classes_get_their_names_each_once():
    ids = ImageNetInfo().label_names()
    names = readable_names(ids)
    assert len(set(names)) == 1000 and names[0] == "tench, Tinca tinca"
    assert {"crane (n02012849)", "crane (n03126707)"} <= set(names)
    assert readable_names(["cat", "n01440764"]) == ("cat", "n01440764")
    config = label_config(ids)
    assert config["id2label"][0] == "tench, Tinca tinca" and len(config["label2id"]) == 1000


def write_folder(root: Path, classes: dict[str, int]) -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (6, 6), (number, 0, 0)).save(root / name / f"{number}.JPEG")
    return root


def test_a_folder_of_classes(tmp_path):
    images = read_folder(write_folder(tmp_path / "train", {"b": 2, "a": 1}))
    assert images.classes == ("a", "b") and images.labels.tolist() == [0, 1, 1]
    assert open_image(images.source(2)).size == (6, 6) and images.where(2).endswith("b/1.JPEG")


def test_an_empty_class_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"1 class folder\(s\) without images: 'c'"):
        read_folder(write_folder(tmp_path / "some", {"a": 1, "c": 0}))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="no folders of images"):
        read_folder(tmp_path / "nothing")


def test_folders_of_splits_are_no_classes(tmp_path):
    """As in `--data_dir photos photos`, where both names are those of the folder above."""
    for split in ("test", "val", "train"):
        write_folder(tmp_path / split, {"a": 2, "b": 2})
    with pytest.raises(UserError, match="called like splits") as refused:
        load_image_sets(ImageDataArguments(data_dir=[str(tmp_path), str(tmp_path)]))
    named = str(refused.value).split("--data_dir ")[1].rstrip(".").split()
    assert [Path(name).name for name in named] == ["train", "val"]
    train, validation = load_image_sets(ImageDataArguments(data_dir=named))
    assert train.classes == validation.classes == ("a", "b")


def test_validation_classes_follow_the_training_classes(tmp_path):
    write_folder(tmp_path / "train", {"a": 1, "b": 1, "c": 1})
    write_folder(tmp_path / "val", {"b": 1, "c": 2})
    train, validation = load_image_sets(ImageDataArguments(data_dir=str(tmp_path)))
    assert validation.classes == train.classes and validation.labels.tolist() == [1, 2, 2]
    write_folder(tmp_path / "val" / "d", {"inner": 1})
    with pytest.raises(UserError, match="classes that the training data lacks: 'd'"):
        load_image_sets(ImageDataArguments(data_dir=str(tmp_path)))


def test_classes_without_an_image_to_evaluate_on_are_named(tmp_path, capsys):
    write_folder(tmp_path / "train", {"a": 4, "b": 4, "c": 1})
    write_folder(tmp_path / "val", {"b": 4, "c": 4})
    load_image_sets(ImageDataArguments(data_dir=str(tmp_path)))
    said = (
        "warning: no image to evaluate on is of 1 of the 3 classes: {}. All scores, worst_class_accuracy too"
    )
    assert said.format("'a'") in capsys.readouterr().out
    load_image_sets(ImageDataArguments(data_dir=str(tmp_path), holdout_fraction=0.25))
    assert said.format("'c'") in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["folders", "parquet", "stream"])
def test_one_class_is_refused(kind, tmp_path):
    for split in ("train", "val"):
        if kind == "folders":
            write_folder(tmp_path / split, {"a": 3})
        else:
            parquet(tmp_path / f"{split}.parquet", [0, 0, 0])
    args = ImageDataArguments(data_dir=str(tmp_path), class_names=["a"] if kind == "stream" else None)
    load = load_image_streams if kind == "stream" else load_image_sets
    with pytest.raises(UserError, match=r"has 1 class\(es\), '(a|0)': two are needed.* folder .*--columns"):
        load(args)


@pytest.mark.parametrize("kind", ["folders", "parquet"])
@pytest.mark.parametrize("places", [1, 2])
def test_held_out_images_need_no_validation_images(kind, places, tmp_path):
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    if kind == "folders":
        write_folder(tmp_path / "train", {"a": 4, "b": 4})
    else:
        parquet(tmp_path / "train.parquet", labels)
    file = tmp_path / ("train" if kind == "folders" else "train.parquet")
    where = str(tmp_path) if places == 1 else [str(file), "missing"]
    with pytest.raises(
        UserError, match=r"no validation or .*--holdout_fraction 0\.1" if places == 1 else "no file"
    ):
        load_image_sets(ImageDataArguments(data_dir=where))
    train, held_out = load_image_sets(ImageDataArguments(data_dir=where, holdout_fraction=0.25))
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1] and held_out.labels.tolist() == [0, 1]
    file.rename(tmp_path / "images")
    message = r"no train \(.* give two: --data_dir TRAIN VALIDATION \(with --holdout_fraction the second is not read"
    with pytest.raises(UserError, match=message if places == 1 else "no file or directory"):
        load_image_sets(ImageDataArguments(data_dir=where, holdout_fraction=0.25))
    alone = str(tmp_path / "images")  # no second place is read, and none is needed
    if kind == "parquet":
        alone = str(Path(alone).rename(f"{alone}.parquet"))
    train, held_out = load_image_sets(ImageDataArguments(data_dir=alone, holdout_fraction=0.25))
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1] and held_out.labels.tolist() == [0, 1]


@pytest.mark.parametrize("labels", [[0, 1, 2, 1], ["x", "y", "z", "y"]])
def test_parquet_files(labels, tmp_path):
    parquet(tmp_path / "train.parquet", labels)
    parquet(tmp_path / "test.parquet", labels[:2])
    train, validation = load_image_sets(ImageDataArguments(data_dir=str(tmp_path)))
    assert train.labels.tolist() == [0, 1, 2, 1] and len(validation) == 2
    assert train.classes == (("x", "y", "z") if isinstance(labels[0], str) else ("0", "1", "2"))
    assert open_image(train.source(3)).getpixel((0, 0)) == (3, 3, 3)
    assert "row 3 of" in train.where(3)


def shards(folder: Path, split: str, labels: list[int], count: int) -> None:
    """A split in `count` files, as data sets of the Hub are laid out; image `i` is of grey level `i`."""
    folder.mkdir(parents=True, exist_ok=True)
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=["cat", "dog"])})
    images = [Image.new("L", (6, 6), i) for i in range(len(labels))]
    rows = Dataset.from_dict({"image": images, "label": labels}, features=features)
    for number in range(count):
        name = f"{split}-{number:05d}-of-{count:05d}.parquet"
        rows.shard(count, number, contiguous=True).to_parquet(folder / name)


@pytest.mark.parametrize("place", ["data", ".", "folders", "paths"])
def test_a_split_in_several_files_is_one(place, tmp_path):
    tmp_path = tmp_path / "shots [v2]"  # brackets are no pattern
    labels = [0, 1, 1, 0, 1]
    split_folders = place in ("folders", "paths")
    for split, count in (("train", 3), ("validation", 1)):
        shards(tmp_path / (split if split_folders else place), split, labels, count)
    args = ImageDataArguments(data_dir=str(tmp_path))
    if place == "paths":
        args = ImageDataArguments(data_dir=[str(tmp_path / split) for split in ("train", "validation")])
    train, validation = load_image_sets(args)
    assert train.labels.tolist() == validation.labels.tolist() == labels and train.classes == ("cat", "dog")
    assert [open_image(train.source(i)).getpixel((0, 0))[0] for i in range(5)] == [0, 1, 2, 3, 4]
    stream, _ = load_image_streams(dataclasses.replace(args, streaming=True))
    assert [row["label"] for row in stream.rows] == labels and stream.classes == ("cat", "dog")


def test_a_split_that_lacks_a_file_is_refused(tmp_path):
    for split in ("train", "validation"):
        shards(tmp_path / "data", split, [0, 1, 0, 1], 4)
    (tmp_path / "data" / "train-00002-of-00004.parquet").unlink()
    with pytest.raises(
        UserError, match=r"3 parquet file\(s\) of a split that was written in 4 \('train-00000"
    ):
        load_image_sets(ImageDataArguments(data_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 1], {"columns": ["image", "fine_label"]}, r"lacks the column\(s\) 'fine_label'"),
        ([0, -1], {}, "from -1 to 0"),
        (
            [0, 2],
            {},
            "no image of 1 of its 3 classes: '1'. Class numbers count from 0 .* as texts in place of numbers;",
        ),
        ([0, 2], {"class_names": ["a", "b", "c"]}, "of its 3 classes: 'b'. .* and leave out --class_names;"),
        ([0.5, 1.5], {}, "class numbers .from 0. or class names"),
        ([0, 3], {"class_names": ["a", "b"]}, "from 0 to 3, but there are 2 classes"),
        ([0, 1], {"columns": ["label", "label"]}, "not images"),
        ([0, 1, 0, 1], {"max_train_samples": 1}, "at least the number of classes"),
    ],
)
def test_wrong_labels_are_refused_before_training(labels, options, message, tmp_path):
    for split in ("train", "validation"):
        parquet(tmp_path / f"{split}.parquet", labels)
    with pytest.raises(UserError, match=message):
        load_image_sets(ImageDataArguments(data_dir=str(tmp_path), **options))


def test_numbers_with_gaps_train_as_texts(tmp_path):
    """What the message about them advises."""
    for split in ("train", "validation"):
        parquet(tmp_path / f"{split}.parquet", ["3", "1", "1"])
    train, _ = load_image_sets(ImageDataArguments(data_dir=str(tmp_path)))
    assert train.classes == ("1", "3") and train.labels.tolist() == [1, 0, 0]


@pytest.mark.parametrize("streaming", [False, True])
def test_class_names_are_each_given_once(streaming, tmp_path):
    names = ["crane", "bird", "crane", "crane"]
    with pytest.raises(UserError, match=r"'crane' 3 times, for the classes '0', '2', '3'.*'crane \(0\)'"):
        ImageDataArguments(data_dir=str(tmp_path), class_names=names, streaming=streaming)
    for split in ("train", "validation"):
        parquet(tmp_path / f"{split}.parquet", [0, 1, 2, 3])
    names = ["crane (0)", "bird", "crane (2)", "crane (3)"]
    _, validation = load_image_sets(ImageDataArguments(data_dir=str(tmp_path), class_names=names))
    assert validation.labels.tolist() == [0, 1, 2, 3] and validation.classes == tuple(names)


def test_folders_have_names_of_their_own_and_do_not_mix_with_files(tmp_path):
    for split in ("train", "val"):
        write_folder(tmp_path / split, {"a": 1, "b": 1})
    file = parquet(tmp_path / "file.parquet", [0, 1])
    with pytest.raises(UserError, match="the names of the folders are those of the classes"):
        load_image_sets(ImageDataArguments(data_dir=str(tmp_path), class_names=["x", "y"]))
    with pytest.raises(UserError, match="for both splits"):
        load_image_sets(ImageDataArguments(data_dir=[str(tmp_path / "train"), file]))


def test_no_readable_image_is_no_accuracy():
    nothing = EvalPrediction(predictions=(np.zeros((3, 5), int), np.ones(3)), label_ids=np.full(3, -100))
    assert np.isnan(make_image_metrics({})(nothing)["accuracy"])


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="no file or directory"):
        load_image_sets(ImageDataArguments(data_dir=str(tmp_path / "none")))
    with pytest.raises(UserError, match="it holds none"):
        load_image_sets(ImageDataArguments(data_dir=str(tmp_path)))
    for held_out in (None, 0.5):
        with pytest.raises(UserError, match=r"is a file, not a directory\. Give two paths"):
            load_image_sets(ImageDataArguments(data_dir=__file__, holdout_fraction=held_out))
    with pytest.raises(UserError, match="either --dataset_name or --data_dir"):
        ImageDataArguments(dataset_name="digits", data_dir="a")
    with pytest.raises(UserError, match="one directory, or two places"):
        ImageDataArguments(data_dir=["a", "b", "c"])
    with pytest.raises(UserError, match="--columns takes two names"):
        ImageDataArguments(data_dir="a", columns=["label"])
    with pytest.raises(UserError, match="holdout_fraction needs all labels"):
        ImageDataArguments(data_dir="a", streaming=True, holdout_fraction=0.1)


def test_metrics_by_hand():
    logits = torch.eye(6)[[0, 1, 2, 0, 0]] + 0.01 * torch.arange(6, 0, -1)
    labels = torch.tensor([0, 1, 1, 5, -100])
    scores = make_image_metrics({"few": np.array([1, 5]), "many": np.array([0])})(
        EvalPrediction(tuple(kept.numpy() for kept in keep_best_classes(logits, labels)), labels.numpy())
    )
    assert scores == {
        "accuracy": 0.5,
        "top5_accuracy": 0.75,
        "worst_class_accuracy": 0.0,
        "few_shot_accuracy": 0.25,
        "many_shot_accuracy": 1.0,
    }


def test_an_epoch_looks_at_every_image_once_or_at_a_third_three_times():
    once = [draw.image for draw in SeededDraws(30, 1, 0, lambda: 0)]
    thrice = [draw.image for draw in SeededDraws(30, 3, 0, lambda: 0)]
    assert sorted(once) == list(range(30)) and once != sorted(once)
    assert len(thrice) == 30 and len(set(thrice)) == 10
    assert all(thrice[i] == thrice[i + 1] == thrice[i + 2] for i in range(0, 30, 3))
    draws = {
        (seed, epoch): list(SeededDraws(30, 3, seed, lambda epoch=epoch: epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert draws[0, 0] == list(SeededDraws(30, 3, 0, lambda: 0))
    assert len({tuple(order) for order in draws.values()}) == 4
    assert len({draw.seed for draw in draws[0, 0]}) == 30


def batches_of(workers: int, images: ImageSet, tmp_path: Path) -> list[dict]:
    args = Augmentation(auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5, mixup=0.8, cutmix=1.0)
    dataset = AugmentedImages(
        images, train_transform(args, DATA_CONFIG), BadImages("skip", tmp_path / "bad.txt")
    )
    draws = SeededDraws(len(images), 1, 7, lambda: 0)
    collate = ImageCollator(make_mixup(args, len(images.classes)))
    return list(DataLoader(dataset, batch_size=7, sampler=draws, num_workers=workers, collate_fn=collate))


def test_batches_do_not_depend_on_workers_or_on_what_was_drawn_before(tmp_path):
    images = in_memory(24)
    first = batches_of(0, images, tmp_path)
    torch.rand(5), np.random.rand(3)
    for other in (batches_of(0, images, tmp_path), batches_of(2, images, tmp_path)):
        for left, right in zip(first, other, strict=True):
            assert torch.equal(left["pixel_values"], right["pixel_values"])
            assert torch.equal(left["labels"], right["labels"])
            assert right["pixel_values"].is_contiguous(memory_format=torch.channels_last)
    assert first[0]["pixel_values"].shape == (7, 3, 8, 8)  # odd: timm mixes even batches only
    sums = torch.cat([batch["labels"] for batch in first])
    assert sums.shape == (24, 4) and torch.allclose(sums.sum(dim=1), torch.ones(24), atol=1e-5)


def test_seeded_draws_leave_the_random_states_alone():
    torch.manual_seed(0), np.random.seed(0)
    expected = torch.rand(2), np.random.rand(2)
    torch.manual_seed(0), np.random.seed(0)
    with seeded(5):
        inside = torch.rand(1)
    with seeded(5):
        assert torch.equal(inside, torch.rand(1))
    assert torch.equal(torch.rand(2), expected[0]) and np.array_equal(np.random.rand(2), expected[1])


def test_randaugment_at_its_highest_strength_survives_every_draw(tmp_path):
    transform = train_transform(Augmentation(auto_augment="rand-m10-n9-inc1"), DATA_CONFIG)
    image = open_image(in_memory(1).images[0])
    for seed in range(60):
        with seeded(seed):
            assert torch.isfinite(transform(image)).all()


def test_unreadable_images_are_replaced_in_training_and_left_out_of_evaluation(tmp_path):
    good = in_memory(4)
    images = ImageSet([{"bytes": b"junk"}, *good.images[1:]], good.rows, good.labels, good.classes, "memory")
    transform = train_transform(Augmentation(), DATA_CONFIG)
    bad = BadImages("skip", tmp_path / "bad.txt")
    with pytest.warns(UserWarning, match="row 0 of memory"):
        example = AugmentedImages(images, transform, bad)[Draw(0, 1)]
    assert example["labels"] == 1
    assert PreparedImages(images, transform, bad)[0]["labels"] == -100
    assert bad.names() == ["row 0 of memory"]
    with pytest.raises(UserError, match="row 0 of memory"):
        PreparedImages(images, transform, BadImages("stop", tmp_path / "no.txt"))[0]
    with pytest.raises(UserError, match=r"1 unreadable image\(s\): row 0 of memory"):
        check_all_images((good, images), workers=0)
    check_all_images((good,), workers=0)
    nothing = ImageSet([{"bytes": b""}] * 4, good.rows, good.labels, good.classes, "memory")
    with pytest.raises(UserError, match="4 unreadable images in a row"), pytest.warns(UserWarning):
        AugmentedImages(nothing, transform, BadImages("skip", tmp_path / "all.txt"))[Draw(2, 1)]


def test_digits_are_split_by_class():
    train, validation = digits()
    assert (len(train), len(validation)) == (1437, 360) and train.counts().min() > 130
    assert not set(train.rows) & set(validation.rows)
    assert pd.Series(validation.counts()).between(33, 38).all()
