"""Training and evaluation transforms of images, and mixing: timm's, chosen by options."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.auto_augment import NAME_TO_OP, posterize

from rgd_hf.scripts.errors import UserError


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    # At its highest strength timm keeps 0 bits, a black image, which Pillow 12.1 and later refuse in the middle of training.
    return posterize(image, max(1, bits), **options)


NAME_TO_OP.update(dict.fromkeys(("Posterize", "PosterizeOriginal", "PosterizeIncreasing"), _posterize))


@dataclass
class AugmentationArguments:
    """Augmentation of training images (timm's)."""

    crop_scale: float = field(
        default=0.08,
        metadata={"help": "Random crops cover at least this share of the image; 1 crops nothing away."},
    )
    hflip: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    color_jitter: float = field(
        default=0.0, metadata={"help": "Strength of colour jitter; unused where --auto_augment is given."}
    )
    auto_augment: str | None = field(
        default=None,
        metadata={"help": "Policy of timm, e.g. rand-m9-mstd0.5-inc1 (RandAugment, strength 9)."},
    )
    random_erasing: float = field(default=0.0, metadata={"help": "Probability of erasing a rectangle."})
    mixup: float = field(default=0.0, metadata={"help": "Alpha of Mixup; 0 is off."})
    cutmix: float = field(default=0.0, metadata={"help": "Alpha of CutMix; 0 is off."})
    mixup_prob: float = field(default=1.0, metadata={"help": "Share of the batches that are mixed."})
    mixup_switch_prob: float = field(
        default=0.5, metadata={"help": "Share of CutMix among the mixed batches where both are on."}
    )
    repeated_augmentation: int = field(
        default=1,
        metadata={"help": "Looks at an image in the same epoch; the epoch keeps its length (DeiT: 3)."},
    )

    def __post_init__(self):
        for name in ("hflip", "random_erasing", "mixup_prob", "mixup_switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} is a probability, from 0 to 1, not {getattr(self, name):g}.")
        if not 0 < self.crop_scale <= 1:
            raise UserError(f"--crop_scale must be above 0 and at most 1, not {self.crop_scale:g}.")
        if min(self.mixup, self.cutmix) < 0:
            raise UserError("--mixup and --cutmix must not be negative.")
        if self.repeated_augmentation < 1:
            raise UserError(f"--repeated_augmentation must be at least 1, not {self.repeated_augmentation}.")


def train_transform(args: AugmentationArguments, data_config: dict[str, Any]) -> Callable:
    """From an RGB image to an augmented, normalized tensor `[3, height, width]`.

    Args:
        args: the augmentations.
        data_config: of timm: `input_size`, `mean`, `std`, `interpolation`.

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
            scale=(args.crop_scale, 1.0),
            hflip=args.hflip,
            color_jitter=args.color_jitter or None,  # type: ignore[arg-type]
            auto_augment=args.auto_augment,
            re_prob=args.random_erasing,
            re_mode="pixel",
        )
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"--auto_augment {args.auto_augment!r} is no policy of timm ({error or type(error).__name__}): try "
            "rand-m9-mstd0.5-inc1."
        ) from error


def eval_transform(data_config: dict[str, Any]) -> Callable:
    """From an RGB image to a normalized tensor `[3, height, width]`, as the saved model's image processor makes it."""
    return create_transform(**data_config, is_training=False)


def make_mixup(args: AugmentationArguments, num_classes: int) -> Mixup | None:
    """Mixup and CutMix of timm, one choice a batch, without label smoothing; None where both are off."""
    if args.mixup == 0 and args.cutmix == 0:
        return None
    return Mixup(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        label_smoothing=0.0,
        num_classes=num_classes,
    )
