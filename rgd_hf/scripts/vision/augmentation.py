"""Training and evaluation transforms of images, and mixing: timm's, by a preset and changes to it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.auto_augment import NAME_TO_OP, posterize

from rgd_hf.scripts.errors import UserError, listed


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    # At its highest strength timm keeps 0 bits, a black image, which Pillow 12.1 and later refuse in the middle of training.
    return posterize(image, max(1, bits), **options)


NAME_TO_OP.update(dict.fromkeys(("Posterize", "PosterizeOriginal", "PosterizeIncreasing"), _posterize))


@dataclass(frozen=True)
class Augmentation:
    """What happens to training images.

    Attributes:
        crop_scale: random crops cover at least this share of the image; 1 crops nothing away.
        hflip: probability of a horizontal flip.
        color_jitter: strength of colour jitter; unused where there is an `auto_augment`.
        auto_augment: policy of timm, e.g. `rand-m9-mstd0.5-inc1` (RandAugment, strength 9).
        random_erasing: probability of erasing a rectangle.
        mixup: alpha of Mixup; 0 is off.
        cutmix: alpha of CutMix; 0 is off.
        mixup_prob: share of the batches that are mixed.
        mixup_switch_prob: share of CutMix among the mixed batches where both are on.
        repeated_augmentation: looks at an image in the same epoch, which keeps its length.

    Raises:
        UserError: a value is of another kind, or not possible.
    """

    crop_scale: float = 0.08
    hflip: float = 0.5
    color_jitter: float = 0.0
    auto_augment: str | None = None
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    repeated_augmentation: int = 1

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "auto_augment":
                fits, kind = value is None or isinstance(value, str), "a policy of timm or null"
            else:
                fits, kind = isinstance(value, int | float) and not isinstance(value, bool), "a number"
            if not fits:
                raise UserError(f"--augmentation: {field.name} must be {kind}, not {value!r}.")
        for name in ("hflip", "random_erasing", "mixup_prob", "mixup_switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"--augmentation: {name} is a probability, from 0 to 1, not {getattr(self, name):g}."
                )
        if not 0 < self.crop_scale <= 1:
            raise UserError(
                f"--augmentation: crop_scale must be above 0 and at most 1, not {self.crop_scale:g}."
            )
        if min(self.mixup, self.cutmix, self.color_jitter) < 0:
            raise UserError("--augmentation: mixup, cutmix and color_jitter must not be negative.")
        if self.repeated_augmentation < 1 or self.repeated_augmentation != int(self.repeated_augmentation):
            raise UserError(
                "--augmentation: repeated_augmentation must be an integer of at least 1, not "
                f"{self.repeated_augmentation:g}."
            )


PRESETS = {
    "light": Augmentation(),
    # Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021, Table 9.
    "deit": Augmentation(
        auto_augment="rand-m9-mstd0.5-inc1",
        random_erasing=0.25,
        mixup=0.8,
        cutmix=1.0,
        repeated_augmentation=3,
    ),
    "none": Augmentation(crop_scale=1.0, hflip=0.0),
}
HELP = (
    "Of training images: `light` (random crops and flips), `deit` (also RandAugment, random erasing, Mixup, CutMix, three looks "
    "at an image), or `none`; or JSON that changes one, `light` by default: "
    '\'{"preset": "deit", "mixup": 0.2}\'. Settings: crop_scale (random crops cover at least this share of the image, above 0 to '
    "1), hflip (probability of a flip, 0 to 1), color_jitter (strength, from 0; not with auto_augment), auto_augment (policy of "
    "timm, or null), random_erasing (probability of erasing a rectangle, 0 to 1), mixup and cutmix (alpha, from 0, which is off), "
    "mixup_prob (share of the batches that are mixed, 0 to 1), mixup_switch_prob (share of CutMix among the mixed batches where "
    "both are on, 0 to 1), repeated_augmentation (looks at an image in the same epoch, from 1)."
)


def read_augmentation(value: str | Mapping[str, Any]) -> Augmentation:
    """The augmentation that `--augmentation` asks for.

    Args:
        value: a preset's name, or settings (a mapping, or JSON of one) that change `preset`, `light` by default.

    Raises:
        UserError: it names no preset, or a setting that there is not or that is not possible.
    """
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        value = {"preset": value}
    try:
        settings = json.loads(value) if isinstance(value, str) else dict(value)
    except ValueError as error:
        raise UserError(f"--augmentation is not valid JSON: {error}") from error
    preset = settings.pop("preset", "light")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise UserError(
            f"--augmentation: there is no preset {preset!r}: choose among {listed(PRESETS)}, or give JSON."
        )
    known = [field.name for field in fields(Augmentation)]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise UserError(
            f"--augmentation: unknown {listed(unknown)}: choose among {listed(['preset', *known])}."
        )
    return replace(PRESETS[preset], **settings)


def train_transform(augmentation: Augmentation, data_config: dict[str, Any]) -> Callable:
    """From an RGB image to an augmented, normalized tensor `[3, height, width]`.

    Args:
        augmentation: which.
        data_config: data configuration of timm: `input_size`, `mean`, `std`, `interpolation`.

    Raises:
        UserError: `auto_augment` is no policy of timm.
    """
    try:
        return create_transform(
            input_size=data_config["input_size"],
            mean=data_config["mean"],
            std=data_config["std"],
            interpolation=data_config["interpolation"],
            is_training=True,
            scale=(augmentation.crop_scale, 1.0),
            hflip=augmentation.hflip,
            color_jitter=augmentation.color_jitter or None,  # type: ignore[arg-type]
            auto_augment=augmentation.auto_augment,
            re_prob=augmentation.random_erasing,
            re_mode="pixel",
        )
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"--augmentation: auto_augment {augmentation.auto_augment!r} is no policy of timm ({error or type(error).__name__}): try "
            "rand-m9-mstd0.5-inc1."
        ) from error


def eval_transform(data_config: dict[str, Any]) -> Callable:
    """From an RGB image to a normalized tensor `[3, height, width]`, as the saved model's image processor makes it."""
    return create_transform(**data_config, is_training=False)


def make_mixup(augmentation: Augmentation, num_classes: int) -> Mixup | None:
    """Mixup and CutMix of timm, one choice a batch, without label smoothing; None where both are off."""
    if augmentation.mixup == 0 and augmentation.cutmix == 0:
        return None
    return Mixup(
        mixup_alpha=augmentation.mixup,
        cutmix_alpha=augmentation.cutmix,
        prob=augmentation.mixup_prob,
        switch_prob=augmentation.mixup_switch_prob,
        label_smoothing=0.0,
        num_classes=num_classes,
    )
