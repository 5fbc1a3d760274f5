"""What `--augmentation` takes, says and refuses."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.vision.augmentation import (
    HELP,
    PRESETS,
    Augmentation,
    read_augmentation,
    train_transform,
)
from rgd_hf.scripts.vision.batches import seeded

DATA_CONFIG = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}


def test_help_says_what_each_setting_means():
    for setting in dataclasses.fields(Augmentation):
        assert f"{setting.name} (" in HELP.replace("mixup and cutmix (", "mixup (cutmix (")


def test_an_augmentation_is_a_preset_and_changes_to_it():
    assert read_augmentation("light") == read_augmentation({}) == Augmentation()
    changed = read_augmentation('{"preset": "deit", "mixup": 0.2, "auto_augment": null}')
    assert changed == dataclasses.replace(PRESETS["deit"], mixup=0.2, auto_augment=None)
    assert read_augmentation({"hflip": 0}).hflip == 0 and read_augmentation({"hflip": 0}).crop_scale == 0.08


def test_no_augmentation_leaves_an_image_as_it_is():
    """Of the size that the model takes: seen as it is, whatever is drawn."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    transform = train_transform(read_augmentation("none"), DATA_CONFIG)
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    for seed in range(5):
        with seeded(seed):
            assert torch.allclose(transform(image), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"auto_augment": "rand-x9"}, "no policy of timm"),
        ({"auto_augment": "none"}, "no policy of timm"),
        ({"auto_augment": 9}, "a policy of timm or null, not 9"),
        ({"hflip": 2.0}, "probability"),
        ({"hflip": "often"}, "hflip must be a number, not 'often'"),
        ({"crop_scale": 0.0}, "crop_scale"),
        ({"mixup": -1.0}, "negative"),
        ({"repeated_augmentation": 0}, "at least 1"),
        ({"repeated_augmentation": 1.5}, "integer"),
        ({"mixupp": 0.8}, "unknown 'mixupp': choose among 'preset', 'crop_scale'"),
        ("diet", "no preset 'diet': choose among 'light', 'deit', 'none'"),
        ({"preset": 3}, "no preset 3"),
        ('{"mixup": }', "not valid JSON"),
    ],
)
def test_augmentations_that_are_not_possible(asked, message):
    with pytest.raises(UserError, match=message):
        train_transform(read_augmentation(asked), DATA_CONFIG)
