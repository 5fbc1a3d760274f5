"""Image classifiers for fine-tuning or training from scratch: timm's and transformers', saved so that pipelines load them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import resolve_data_config
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

from rgd_hf.hub.errors import find_failure
from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.files.hub import load_pretrained
from rgd_hf.scripts.training.class_order import reorder_outputs, tell_order
from rgd_hf.scripts.vision.augmentation import eval_transform
from rgd_hf.scripts.vision.classes import label_config, readable_names
from rgd_hf.scripts.vision.efficientnet_lite import ARCHITECTURE, PACKAGE
from rgd_hf.scripts.vision.timm_weights import (
    first_line,
    number_of_classes,
    pretrained_cfg,
    read_weights,
    with_weights,
)

TIMM = "timm/"
SAME_IMAGE = 0.01
"""Mean difference, of pixels from 0 to 1, up to which two ways to prepare an image are the same but for the resizing's rounding."""
_NEW_HEAD = "--ignore_mismatched_sizes puts a new, untrained classifier in its place"


@dataclass
class ImageModelArguments:
    """Model."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "timm/NAME, one of timm's models, e.g. timm/vit_small_patch16_224; an image classifier of the Hugging "
            "Face Hub, e.g. google/vit-base-patch16-224-in21k; or a directory with config.json and the weights."
        },
    )
    from_scratch: bool = field(
        default=False, metadata={"help": "Random weights in the architecture that is named."}
    )
    weights: str | None = field(
        default=None,
        metadata={
            "help": f"Pretrained weights for a timm model: a local file (.safetensors, .pth), or the package {PACKAGE} "
            f"(ImageNet, for timm/{ARCHITECTURE})."
        },
    )
    ignore_mismatched_sizes: bool = field(
        default=False,
        metadata={
            "help": "Replace the classifier of a pretrained model if it has a different number of classes."
        },
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": "Height and width of the images in pixels; by default that of the model."},
    )
    model_args: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Further settings as JSON: arguments of the timm model, e.g. \'{"patch_size": 4, "depth": 6}\'; for any '
            "model drop_path_rate (stochastic depth), and crop_pct (size of the central crop in evaluation relative to the "
            "resized image)."
        },
    )

    def __post_init__(self):
        if isinstance(self.model_args, str):
            try:
                self.model_args = json.loads(self.model_args)
            except ValueError as error:
                raise UserError(f"--model_args is not valid JSON: {error}") from error
        if self.model_args is not None and not isinstance(self.model_args, dict):
            raise UserError(f"--model_args must be a JSON object, not {self.model_args!r}.")
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"--image_size must be at least 1, not {self.image_size}.")
        for name, rule, fits in (
            ("drop_path_rate", "at least 0 and below 1", lambda value: 0 <= value < 1),
            ("crop_pct", "above 0 and at most 1", lambda value: 0 < value <= 1),
        ):
            value = (self.model_args or {}).get(name)
            if value is not None and not (isinstance(value, int | float) and fits(value)):
                raise UserError(f"--model_args: {name} must be a number {rule}, not {value!r}.")

    def more(self) -> tuple[dict[str, Any], float | None]:
        """The arguments of the model itself, and `crop_pct`, which is how its images are prepared."""
        found: dict[str, Any] = dict(self.model_args or {})  # type: ignore[arg-type]
        return found, found.pop("crop_pct", None)


@dataclass(frozen=True)
class ImageClassifier:
    """A model and how images are prepared for it.

    Attributes:
        model: takes `pixel_values` `[batch, 3, height, width]`, returns `logits` `[batch, classes]`.
        data_config: for `timm.data.create_transform`: input size, mean, std, interpolation, crop.
        processor: the image processor to save beside the model; None where `config.json` holds `data_config`.
    """

    model: PreTrainedModel
    data_config: dict[str, Any]
    processor: Any = None


def build_image_classifier(args: ImageModelArguments, classes: Sequence[str]) -> ImageClassifier:
    """The classifier that `args` name, with one output for each of `classes`, in their order.

    Called on every process.

    Raises:
        UserError: no such model or weights, settings that do not go together, or a pretrained classifier of another
            number of classes, or of the same in another order that cannot be changed.
    """
    name = args.model_name_or_path
    if name is None:
        raise UserError(
            "no model: give --model_name_or_path timm/NAME (e.g. timm/vit_small_patch16_224), a name on the Hub or a directory."
        )
    if args.weights and args.from_scratch:
        raise UserError("give either --weights or --from_scratch, not both.")
    if name.startswith(TIMM):
        return _timm_classifier(args, name.removeprefix(TIMM), classes)
    if args.weights:
        raise UserError(
            f"--weights goes with --model_name_or_path {TIMM}NAME; {name} brings its own weights."
        )
    classifier = _transformers_classifier(args, name, classes)
    trained = _trained_classes(args, classes)
    if trained is not None:
        noise = np.random.default_rng(0).normal(size=(1, *classifier.data_config["input_size"]))
        inputs = {"pixel_values": torch.from_numpy(noise).to(classifier.model.dtype)}
        reorder_outputs(classifier.model, name, trained, readable_names(classes), inputs)
    return classifier


def tell_order_of(args: ImageModelArguments, classes: Sequence[str]) -> None:
    """Say whether `build_image_classifier` reorders the outputs of a pretrained classifier, or gives them another meaning."""
    trained = _trained_classes(args, classes)
    if trained is not None:
        tell_order(str(args.model_name_or_path), trained, readable_names(classes))


def _trained_classes(args: ImageModelArguments, classes: Sequence[str]) -> dict[int, str] | None:
    """The names of the outputs of a pretrained classifier of transformers whose head is trained further; None elsewhere."""
    name = args.model_name_or_path
    if name is None or name.startswith(TIMM) or args.from_scratch:
        return None
    config = load_pretrained(AutoConfig.from_pretrained, name)
    return dict(config.id2label) if _has_head(config) and config.num_labels == len(classes) else None


def _has_head(config: Any) -> bool:
    return any("Classification" in architecture for architecture in config.architectures or [])


# --- timm -----------------------------------------------------------------------------------------------------------


def _timm_classifier(args: ImageModelArguments, name: str, classes: Sequence[str]) -> ImageClassifier:
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise UserError(
            f"timm {timm.__version__} has no model {name!r}; e.g. {', '.join(near) or 'vit_small_patch16_224'}."
        )
    model_args, crop_pct = args.more()
    if args.image_size is not None and pretrained_cfg(name).fixed_input_size:
        model_args["img_size"] = args.image_size
    source = _create_timm(args, name, model_args, len(classes))
    config_changes: dict[str, Any] = {"num_classes": len(classes)}
    if args.image_size is not None:
        config_changes["input_size"] = (3, args.image_size, args.image_size)
    if crop_pct is not None:
        config_changes["crop_pct"] = crop_pct
    cfg = {**source.pretrained_cfg, **config_changes}
    cfg = {key: value for key, value in cfg.items() if key not in ("state_dict", "file")}
    config = TimmWrapperConfig.from_dict(
        {"architecture": name, "model_args": model_args or None, "pretrained_cfg": cfg},
        num_labels=len(classes),
        problem_type="single_label_classification",
        **label_config(classes),
    )
    if not args.from_scratch:  # for the model card; not saved
        pretrained: Any = source.pretrained_cfg
        config.name_or_path = (
            str(Path(args.weights).resolve()) if args.weights else pretrained.get("hf_hub_id")
        )
    model = TimmWrapperForImageClassification(config)
    model.timm_model.load_state_dict(source.state_dict())  # timm's own initialization or weights
    return ImageClassifier(model, resolve_data_config(cfg))


def _create_timm(args: ImageModelArguments, name: str, model_args: dict[str, Any], num_classes: int) -> Any:
    try:
        if args.from_scratch:
            return timm.create_model(name, num_classes=num_classes, **model_args)
        if args.weights is not None:
            return _with_local_weights(args, name, model_args, num_classes)
        trained_classes = pretrained_cfg(name).num_classes
        if trained_classes:
            _check_number(name, trained_classes, num_classes, args.ignore_mismatched_sizes)
        return timm.create_model(name, pretrained=True, num_classes=num_classes, **model_args)
    except UserError:
        raise
    except Exception as error:
        failure = find_failure(error, f"timm/{name}")
        if failure is not None or isinstance(error, OSError):
            raise UserError(
                f"the weights of timm's {name} could not be loaded from the Hugging Face Hub and are not in the local "
                f"cache. {failure or first_line(error)} Without a network, give --weights FILE, or --from_scratch."
            ) from error
        if not isinstance(error, (TypeError, AssertionError, RuntimeError)):
            raise
        raise UserError(f"timm's {name} could not be built with {model_args}: {first_line(error)}") from error


def _with_local_weights(
    args: ImageModelArguments, name: str, model_args: dict[str, Any], num_classes: int
) -> Any:
    """A timm model with all of its weights from a file or the package; its classifier is replaced if need be."""
    weights = read_weights(str(args.weights), name, "--model_name_or_path", TIMM)
    trained_classes = number_of_classes(name, weights)
    if trained_classes:
        _check_number(str(args.weights), trained_classes, num_classes, args.ignore_mismatched_sizes)
    model: Any = with_weights(name, weights, **model_args)
    if trained_classes != num_classes:
        model.reset_classifier(num_classes)
    return model


def _check_number(name: str, trained: int, needed: int, replace: bool) -> None:
    if trained != needed and not replace:
        raise UserError(
            f"{name} has a classifier for {trained} classes, but the data has {needed}. {_NEW_HEAD}."
        )


# --- transformers ---------------------------------------------------------------------------------------------------


def _transformers_classifier(args: ImageModelArguments, name: str, classes: Sequence[str]) -> ImageClassifier:
    changes = {"problem_type": "single_label_classification", **label_config(classes)}
    config = load_pretrained(AutoConfig.from_pretrained, name)
    if _has_head(config) and not args.from_scratch:
        _check_number(name, config.num_labels, len(classes), args.ignore_mismatched_sizes)
    config = load_pretrained(AutoConfig.from_pretrained, name, num_labels=len(classes), **changes)
    is_timm = isinstance(config, TimmWrapperConfig)
    if args.image_size is not None and (is_timm or getattr(config, "image_size", None) != args.image_size):
        raise UserError(
            f"--image_size {args.image_size} cannot be changed in {name} (made for "
            f"{getattr(config, 'image_size', 'its own size')}): a model of timm (--model_name_or_path {TIMM}NAME) takes any size."
        )
    if is_timm:
        config.label_names = list(readable_names(classes))  # saved in the place of id2label
    changed, crop_pct = args.more()
    _set_drop_path(config, changed, name)
    if is_timm and crop_pct is not None:
        config.pretrained_cfg = {**config.pretrained_cfg, "crop_pct": crop_pct}
    if args.from_scratch:
        model = AutoModelForImageClassification.from_config(config)
    else:
        model = load_pretrained(
            AutoModelForImageClassification.from_pretrained, name, config=config, ignore_mismatched_sizes=True
        )
    if is_timm:
        return ImageClassifier(model, resolve_data_config(model.config.pretrained_cfg))
    if crop_pct is not None:
        raise UserError(
            f"--model_args: crop_pct is for {TIMM}NAME; the image processor of {name}, which is saved with it, has its own."
        )
    processor = load_pretrained(AutoImageProcessor.from_pretrained, name)
    data_config = _data_config(processor)
    _check_same_images(processor, data_config, name)
    return ImageClassifier(model, data_config, processor)


def _set_drop_path(config: Any, changed: dict[str, Any], name: str) -> None:
    others = sorted(set(changed) - {"drop_path_rate"})
    if others:
        raise UserError(
            f"--model_args: {name} takes drop_path_rate, not {listed(others)}, which is for {TIMM}NAME."
        )
    rate = changed.get("drop_path_rate")
    if rate is None:
        return
    if isinstance(config, TimmWrapperConfig):
        config.model_args = {**(config.model_args or {}), "drop_path_rate": rate}
    elif hasattr(config, "drop_path_rate"):
        config.drop_path_rate = rate
    else:
        raise UserError(
            f"{name} ({config.model_type}) has no stochastic depth: leave drop_path_rate out of --model_args."
        )


def normalization_of(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by which an image processor of transformers normalizes, one number per channel."""
    if not getattr(processor, "do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return tuple(processor.image_mean), tuple(processor.image_std)


def _data_config(processor: Any) -> dict[str, Any]:
    """What an image processor of transformers does, as timm's transforms take it."""
    size = dict(processor.size)
    squashed = "height" in size
    crop = (
        dict(getattr(processor, "crop_size", None) or {})
        if getattr(processor, "do_center_crop", False)
        else {}
    )
    shortest: int = size.get("shortest_edge") or size["height"]
    side = crop.get("height", shortest)
    crop_pct = side / shortest
    if getattr(processor, "crop_pct", None):  # of ConvNeXT, which crops small images alone
        squashed = shortest >= 384
        crop_pct = 1.0 if squashed else processor.crop_pct
    interpolation = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}[int(processor.resample or 2)]
    mean, std = normalization_of(processor)
    return {
        "input_size": (3, side, crop.get("width", size.get("width", side))),
        "mean": mean,
        "std": std,
        "interpolation": interpolation,
        "crop_pct": crop_pct,
        "crop_mode": "squash" if squashed and not crop else "center",
    }


def _check_same_images(processor: Any, data_config: dict[str, Any], name: str) -> None:
    """Raise `UserError` where the processor prepares an image in another way than timm's transforms."""
    # Waves, so that another cut, size or order of the channels is another image.
    rows, columns = np.mgrid[0:300, 0:400]
    waves = [127.5 + 127.5 * np.sin(rows / pace + columns / 40) for pace in (15, 30, 60)]
    image = Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))
    ours, theirs = (
        eval_transform(data_config)(image),
        processor(image, return_tensors="pt")["pixel_values"][0],
    )
    allowed = SAME_IMAGE * max(1 / min(data_config["std"]), 1.0)
    if ours.shape != theirs.shape or (ours - theirs).abs().mean() > allowed:
        raise UserError(
            f"{name} is saved with an image processor ({type(processor).__name__}) that prepares images in another way than "
            f"training here: take its architecture from timm (--model_name_or_path {TIMM}NAME)."
        )
