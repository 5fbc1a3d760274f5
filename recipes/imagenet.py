"""Train or fine-tune an image classifier with re-weighted losses on ImageNet-1K, or on your own images.

    accelerate launch recipes/imagenet.py recipes/configs/deit_small_imagenet.yaml --data_dir /data/imagenet
    accelerate launch recipes/imagenet.py --data_dir photos --model_name_or_path timm/vit_small_patch16_224 --compare \
        --augmentation deit --ignore_mismatched_sizes --output_dir runs/photos

Models are timm's or transformers' and are saved so that `pipeline("image-classification")` loads them. Images come from
the Hub (`--streaming` does not store them), from class folders, or from parquet files. `recipes/configs/` holds the
published settings of DeiT-S and of MAE fine-tuning. The run ends with a table of accuracies; the output directory has
`all_results.json`, `curves.png` and `weights.png`.

Mixing comes before weighting: a sample is a mixed image, its weight comes from the cross-entropy with its soft label. Mixup,
CutMix and label smoothing put a floor under the loss, so that a small tau clips all: see `clipped_fraction` in the logs.
Order and augmentation depend only on seed, epoch and position: a resumed run gives the same numbers.
"""

import os

# Idle OpenMP threads shall sleep: spinning, their default, makes small steps many times slower beside another process on these cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from rgd_hf import ReweightedTrainingArguments
from rgd_hf.checkpoints import last_checkpoint
from rgd_hf.scripts.cli import parse_args, run_recipe
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.messages import say
from rgd_hf.scripts.ranges import OF_CLASSIFICATION, ORDER, check_usable
from rgd_hf.scripts.training.best_metric import check_metric
from rgd_hf.scripts.training.hard_examples import TrainingSamples
from rgd_hf.scripts.training.plans import RunArguments, RunPlan, prepare_runs
from rgd_hf.scripts.training.results import print_results, read_results, settings_of
from rgd_hf.scripts.training.runs import push_runs, train_runs
from rgd_hf.scripts.vision.augmentation import HELP as AUGMENTATION_HELP
from rgd_hf.scripts.vision.augmentation import (
    Augmentation,
    eval_transform,
    make_mixup,
    read_augmentation,
    train_transform,
)
from rgd_hf.scripts.vision.batches import AugmentedImages, ImageCollator, PreparedImages
from rgd_hf.scripts.vision.classes import readable_names
from rgd_hf.scripts.vision.data import (
    ImageDataArguments,
    ImageStream,
    load_image_sets,
    load_image_streams,
)
from rgd_hf.scripts.vision.decoding import BadImages, check_all_images, open_image
from rgd_hf.scripts.vision.metrics import (
    image_metric_names,
    keep_best_classes,
    make_image_metrics,
    shot_groups,
)
from rgd_hf.scripts.vision.models import ImageModelArguments, build_image_classifier, tell_order_of
from rgd_hf.scripts.vision.plots import plot_curves, plot_weights, read_history
from rgd_hf.scripts.vision.sets import ImageSet
from rgd_hf.scripts.vision.stream import StreamedImages
from rgd_hf.scripts.vision.trainer import ImageTrainer

DEFAULTS = {
    "output_dir": "runs/imagenet",
    "learning_rate": 1e-3,
    "num_train_epochs": 10.0,
    "per_device_train_batch_size": 128,
    "per_device_eval_batch_size": 256,
    "weight_decay": 0.05,
    "warmup_steps": 0.05,
    "lr_scheduler_type": "cosine",
    "tau": 3.0,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "logging_steps": 50,
    "remove_unused_columns": False,
    "dataloader_pin_memory": torch.accelerator.is_available(),
}

STUDIES = "benchmarks/images/hard_versions.py takes it, with all options of this recipe."
MOVED = {
    "timm_model": "give --model_name_or_path timm/NAME.",
    "train_path": "give --data_dir TRAIN VALIDATION.",
    "validation_path": "give --data_dir TRAIN VALIDATION.",
    "image_column": "give --columns IMAGE LABEL.",
    "label_column": "give --columns IMAGE LABEL.",
    "drop_path": 'give --model_args \'{"drop_path_rate": ...}\'.',
    "crop_pct": 'give --model_args \'{"crop_pct": ...}\'.',
    **{field.name: f'give --augmentation \'{{"{field.name}": ...}}\'.' for field in fields(Augmentation)},
    **dict.fromkeys(("imbalance_factor", "label_noise", "subset_seed"), STUDIES),
    **{
        name: f"run benchmarks/cost/image_throughput.py with the options of this recipe{option}."
        for name, option in (("dry_run", ""), ("dry_run_steps", " and --steps"), ("dry_run_devices", " and --devices"))
    },
}  # fmt: skip


@dataclass
class ImageTrainingArguments:
    """Augmentation, and optimization beyond the Trainer's own."""

    augmentation: str = field(default="light", metadata={"help": AUGMENTATION_HELP})
    learning_rate_batch: int | None = field(
        default=None,
        metadata={
            "help": "Number of images per step that --learning_rate is meant for: it is scaled linearly to the number of "
            "images per step of this run (devices x batch x accumulation). DeiT: 512, MAE: 256. Not scaled by default."
        },
    )
    layer_decay: float | None = field(
        default=None,
        metadata={
            "help": "Layer-wise learning rate decay: factor from each layer to the one below it, e.g. 0.65."
        },
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Decay of an exponential moving average (EMA) of the weights, e.g. 0.9999; the average is evaluated and "
            "saved. No average by default."
        },
    )
    ema_warmup: bool = field(
        default=False, metadata={"help": "Let the decay of the EMA grow from 0, for short runs."}
    )

    def __post_init__(self):
        self.augment = read_augmentation(self.augmentation)
        if self.learning_rate_batch is not None and self.learning_rate_batch < 1:
            raise UserError(f"--learning_rate_batch must be at least 1, not {self.learning_rate_batch}.")


@dataclass(frozen=True)
class Images:
    """What is trained on and evaluated.

    Attributes:
        train: the training images.
        validation: the validation images.
        groups: class numbers of the many-, medium- and few-shot groups.
    """

    train: ImageSet | ImageStream
    validation: ImageSet | ImageStream
    groups: dict[str, np.ndarray]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes


def load_images(args: ImageDataArguments, training_args: ReweightedTrainingArguments) -> Images:
    """Read what can be read without decoding images, and check it."""
    if args.streaming:
        train, validation = load_image_streams(args)
        if train.size is None and training_args.max_steps <= 0:
            raise UserError("the length of this stream is not known: give --max_steps.")
        if train.classes != validation.classes:
            raise UserError("the training and the validation stream name different classes.")
        return Images(train, validation, {})
    train_images, validation_images = load_image_sets(args)
    return Images(train_images, validation_images, shot_groups(train_images.counts()))


def make_dataset(
    images: ImageSet | ImageStream, args: ImageDataArguments, transform: Any, bad: BadImages, seed: int | None
) -> Any:
    """Images for the Trainer; `seed` is that of training, None for evaluation."""
    if isinstance(images, ImageStream):
        size, classes = images.size, len(images.classes)
        image, label = args.columns
        return StreamedImages(images.rows, image, label, size, classes, transform, bad, seed)
    return (PreparedImages if seed is None else AugmentedImages)(images, transform, bad)


def training_samples(images: Images, bad: BadImages) -> TrainingSamples | None:
    """The training images as a list of hard examples shows them; None for streams."""
    train = images.train
    if isinstance(train, ImageStream):
        return None

    def prepared(trainer: Any, indices: Sequence[int]) -> PreparedImages:
        return PreparedImages(train.select(np.array(indices)), trainer.eval_dataset.transform, bad)

    return TrainingSamples(
        select=prepared,
        text=train.where,
        classes=readable_names(images.classes),
        row=lambda index: {"index": int(train.rows[index])},
        image=lambda index: open_image(train.source(index)),
    )


def scale_learning_rate(training_args: ReweightedTrainingArguments, batch: int | None) -> None:
    """Set the learning rate for the images that a step has, where it was given for `batch` of them."""
    if batch is None:
        return
    images = (
        training_args.per_device_train_batch_size
        * training_args.gradient_accumulation_steps
        * training_args.world_size
    )
    training_args.learning_rate *= images / batch
    say(f"Learning rate for {images} images per step: {training_args.learning_rate:.3g}")


def trainer_builder(
    images: Images,
    data_args: ImageDataArguments,
    model_args: ImageModelArguments,
    image_args: ImageTrainingArguments,
    bad: BadImages,
) -> Callable[[ReweightedTrainingArguments], ImageTrainer]:
    """What makes a new model and its Trainer for training arguments."""

    def build_trainer(args: ReweightedTrainingArguments) -> ImageTrainer:
        classifier = build_image_classifier(model_args, images.classes)
        training = train_transform(image_args.augment, classifier.data_config)
        evaluation = eval_transform(classifier.data_config)
        return ImageTrainer(
            model=classifier.model,
            args=args,
            train_dataset=make_dataset(images.train, data_args, training, bad, args.seed),
            eval_dataset=make_dataset(images.validation, data_args, evaluation, bad, None),
            processing_class=classifier.processor,
            data_collator=ImageCollator(make_mixup(image_args.augment, len(images.classes))),
            compute_metrics=make_image_metrics(images.groups),
            preprocess_logits_for_metrics=keep_best_classes,
            repeated_augmentation=image_args.augment.repeated_augmentation,
            layer_decay=image_args.layer_decay,
            ema_decay=image_args.ema_decay,
            ema_warmup=image_args.ema_warmup,
        )

    return build_trainer


ARGUMENTS = (
    ImageDataArguments,
    ImageModelArguments,
    ImageTrainingArguments,
    RunArguments,
    ReweightedTrainingArguments,
)


def main(argv: list[str] | None = None) -> dict:
    """Run the recipe with the given command-line arguments; what `all_results.json` holds."""
    description = (__doc__ or "").split("\n\n")[0]
    return train(*parse_args(ARGUMENTS, argv, description=description, defaults=DEFAULTS, moved=MOVED))


def train(
    data_args: ImageDataArguments,
    model_args: ImageModelArguments,
    image_args: ImageTrainingArguments,
    run_args: RunArguments,
    training_args: ReweightedTrainingArguments,
    load: Callable[[ImageDataArguments, ReweightedTrainingArguments], Images] = load_images,
    settings: Mapping[str, Any] | None = None,
) -> dict:
    """Train what the arguments say; a study has other images (`load`), and records its own settings with the results."""
    check_usable(training_args, OF_CLASSIFICATION | ORDER)
    if data_args.streaming and image_args.augment.repeated_augmentation > 1:
        raise UserError(
            "--augmentation: repeated_augmentation needs images in any order: set it to 1, or leave out --streaming."
        )
    if data_args.streaming and run_args.hard_examples:
        raise UserError("--hard_examples needs images with a number of their own: leave out --streaming.")
    scale_learning_rate(training_args, image_args.learning_rate_batch)
    chosen = {**settings_of(data_args, model_args, image_args), **(settings or {})}
    plan = prepare_runs(training_args, run_args, chosen)
    if plan.finished:
        return push_runs(plan)
    bad = BadImages(data_args.bad_images, Path(str(training_args.output_dir)) / "bad_images.txt")
    with training_args.main_process_first(desc="data preparation"):
        images = load(data_args, training_args)
        tell_order_of(model_args, images.classes)
    check_metric(training_args, [*image_metric_names(len(images.classes), images.groups), "loss"])
    facts = {}
    if isinstance(images.train, ImageSet) and isinstance(images.validation, ImageSet):
        facts["train_class_counts"] = images.train.counts().tolist()
        if bad.action == "stop":
            check_all_images((images.train, images.validation), training_args.dataloader_num_workers)
    build_trainer = trainer_builder(images, data_args, model_args, image_args, bad)
    card = {"tasks": "image-classification"}
    if data_args.dataset_name and "/" in data_args.dataset_name:
        card |= {"dataset": data_args.dataset_name, "dataset_tags": data_args.dataset_name}
    if PartialState().is_main_process and (run_args.overwrite_output_dir or not begun(plan)):
        bad.forget()  # those of an earlier training here may have been repaired
    results = train_runs(plan, build_trainer, card, training_samples(images, bad), facts)
    if PartialState().is_main_process:
        draw(plan, results)
    report(results, images, bad)
    push_runs(plan)
    return results


def begun(plan: RunPlan) -> bool:
    """Whether a run of the plan has a checkpoint to resume from, or is finished."""
    directories = [str(run.args.output_dir) for run in plan.runs]
    return any(last_checkpoint(path) or read_results(path) for path in directories)


def draw(plan: RunPlan, results: Mapping[str, Any]) -> None:
    """Write the curves of all runs and the weights of the plan's last re-weighted one as PNG into the output directory."""
    histories: dict[str, list[list[dict[str, Any]]]] = {}
    for name, record in results.get("runs", {"": results}).items():
        histories.setdefault(record["method"], []).append(read_history(plan.root / name))
    pictures = [plan.root / "curves.png"]
    plot_curves(histories, pictures[0])
    run = plan.runs[-1]
    title = run.method if len(plan.runs) <= 2 else f"{run.method}, seed {run.args.seed}"
    weights = plan.root / "weights.png"
    if run.args.reweighting != "none" and plot_weights(
        read_history(str(run.args.output_dir)), title, weights
    ):
        pictures.append(weights)
    say("", "Pictures: " + ", ".join(map(str, pictures)))


def report(results: dict, images: Images, bad: BadImages) -> None:
    """Print the table, and the unreadable images."""
    size = f"{len(images.train):,}" if isinstance(images.train, ImageSet) else "streamed"
    title = f"{len(images.classes):,} classes, {size} training images"
    print_results(title, results)
    names = bad.names()
    if names:
        say(f"{len(names)} unreadable image(s) were skipped; {bad.record} lists them.")


if __name__ == "__main__":
    run_recipe(main)
