"""Long tails and wrong labels of images, as studies have them."""

from functools import partial

import numpy as np
import pytest

from benchmarks.images.hard_versions import (
    HardVersionArguments,
    load_images,
    main,
    with_imbalance,
    with_label_noise,
)
from helpers.recipes import tiny
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.vision.data import ImageDataArguments, load_image_sets
from rgd_hf.scripts.vision.metrics import shot_groups
from rgd_hf.scripts.vision.sets import ImageSet


def in_memory(count: int, classes: int) -> ImageSet:
    """Images whose pixels nobody looks at."""
    labels = np.arange(count) % classes
    return ImageSet([None] * count, np.arange(count), labels, tuple("abcdefgh"[:classes]), "memory")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"imbalance_factor": 0.5}, "imbalance_factor must be"), ({"label_noise": 1.0}, "label_noise must be")],
)
def test_hard_versions_that_are_not_possible(options, message):
    with pytest.raises(UserError, match=message):
        HardVersionArguments(**options)


def test_an_exponential_long_tail():
    images = in_memory(4000, classes=4)
    tail = with_imbalance(images, 100, seed=0)
    assert tail.counts().tolist() == [1000, 215, 46, 10]
    assert np.array_equal(tail.rows, with_imbalance(images, 100, seed=0).rows)
    assert not np.array_equal(tail.rows, with_imbalance(images, 100, seed=1).rows)
    assert np.array_equal(images.labels[tail.rows], tail.labels)
    groups = shot_groups(tail.counts())
    assert {name: classes.tolist() for name, classes in groups.items()} == {
        "many": [0, 1],
        "medium": [2],
        "few": [3],
    }
    assert shot_groups(images.counts()) == {}


def test_symmetric_label_noise():
    images = in_memory(4000, classes=4)
    noisy = with_label_noise(images, 0.2, seed=0)
    wrong = noisy.labels != images.labels
    assert wrong.sum() == 800
    shift = np.bincount((noisy.labels - images.labels)[wrong] % 4, minlength=4)
    assert shift[0] == 0 and shift[1:].min() > 220  # 800 / 3, each other class alike
    assert np.array_equal(noisy.labels, with_label_noise(images, 0.2, seed=0).labels)


def test_held_out_images_are_clean_imbalanced_and_never_trained_on():
    options = {"dataset_name": "digits", "max_train_samples": 600}
    thin = partial(with_imbalance, factor=5, seed=0)
    whole, validation = load_image_sets(ImageDataArguments(**options), thin=thin)
    args = ImageDataArguments(**options, holdout_fraction=0.2)
    train, held_out = load_image_sets(args, thin=thin)
    assert sorted([*train.rows, *held_out.rows]) == sorted(whole.rows)
    assert len(held_out) == round(0.2 * len(whole)) and not set(held_out.rows) & set(validation.rows)
    assert np.abs(held_out.counts() - 0.2 * whole.counts()).max() < 1
    images = load_images(HardVersionArguments(imbalance_factor=5, label_noise=0.5), args, None)
    truth = dict(zip(whole.rows, whole.labels))
    assert all(truth[row] == label for row, label in zip(images.validation.rows, images.validation.labels))
    wrong = np.mean([truth[row] != label for row, label in zip(images.train.rows, images.train.labels)])
    assert wrong == pytest.approx(0.5, abs=0.01)


def test_a_hard_version_is_trained_and_recorded(tmp_path):
    record = main(tiny(tmp_path, "--imbalance_factor", "4", "--label_noise", "0.2", "--subset_seed", "1"))
    assert record["settings"]["imbalance_factor"] == 4 and record["settings"]["label_noise"] == 0.2
    hard = HardVersionArguments(imbalance_factor=4, label_noise=0.2, subset_seed=1)
    args = ImageDataArguments(dataset_name="digits", max_train_samples=96, max_eval_samples=40)
    assert record["train_class_counts"] == load_images(hard, args, None).train.counts().tolist()
    assert "many_shot_accuracy" not in record and "eval_accuracy" in record
    with pytest.raises(UserError, match=r"label_noise: 0\.2, now 0\.4"):
        (tmp_path / "all_results.json").unlink()
        main(tiny(tmp_path, "--imbalance_factor", "4", "--label_noise", "0.4", "--subset_seed", "1"))
    with pytest.raises(UserError, match="leave out --streaming"):
        load_images(hard, ImageDataArguments(data_dir="a", streaming=True), None)
