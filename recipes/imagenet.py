"""Train or fine-tune an image classifier with re-weighted losses on ImageNet-1K, or on images of your own.

    accelerate launch recipes/imagenet.py recipes/configs/deit_small_imagenet.yaml --data_dir /data/imagenet
    accelerate launch recipes/imagenet.py --data_dir photos --timm_model vit_small_patch16_224 --compare \
        --ignore_mismatched_sizes --output_dir runs/photos

Models are timm's or transformers' and are saved so that `pipeline("image-classification")` loads them. Images come from
the Hub (`--streaming` does not store them), from class folders, or from parquet files. `recipes/configs/` holds the
published settings of DeiT-S and of MAE fine-tuning. The last lines are a table of accuracies; the output directory has
`all_results.json`, `curves.png` and `weights.png`. `--dry_run` tells beforehand what a run would cost, and which share of
the losses a tau would clip: Mixup, CutMix and label smoothing put a floor under the loss, so that a small tau clips all.

Mixing comes before weighting: a sample is a mixed image, its weight comes from the cross-entropy with its soft label.
Order and augmentation depend on seed, epoch and position alone: a run that was interrupted goes on to the same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from rgd_hf import ReweightedTrainingArguments
from rgd_hf.scripts.cli import parse_args, run_recipe
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.hard_examples import TrainingSamples
from rgd_hf.scripts.results import (
    package_versions,
    print_results,
    read_results,
    say,
    settings_of,
    write_json,
)
from rgd_hf.scripts.runs import (
    RunArguments,
    RunPlan,
    last_checkpoint,
    plan_runs,
    prepare_runs,
    push_runs,
    train_runs,
)
from rgd_hf.scripts.vision.augmentation import (
    AugmentationArguments,
    eval_transform,
    make_mixup,
    train_transform,
)
from rgd_hf.scripts.vision.batches import AugmentedImages, ImageCollator, PreparedImages
from rgd_hf.scripts.vision.classes import readable_names
from rgd_hf.scripts.vision.data import (
    ImageDataArguments,
    ImageStream,
    load_image_sets,
    load_image_streams,
    with_noise,
)
from rgd_hf.scripts.vision.decoding import BadImages, check_all_images, open_image
from rgd_hf.scripts.vision.long_tail import shot_groups
from rgd_hf.scripts.vision.metrics import keep_best_classes, make_image_metrics
from rgd_hf.scripts.vision.models import ImageModelArguments, build_image_classifier
from rgd_hf.scripts.vision.plots import plot_curves, plot_weights, read_history
from rgd_hf.scripts.vision.sets import ImageSet
from rgd_hf.scripts.vision.stream import StreamedImages
from rgd_hf.scripts.vision.throughput import Throughput, measure
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

TAUS = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0)
"""For which a dry run tells the clipped fraction."""


@dataclass
class OptimizationArguments:
    """Optimization beyond the Trainer's own."""

    learning_rate_batch: int | None = field(
        default=None,
        metadata={
            "help": "--learning_rate is for so many images a step, and is scaled in proportion to the images that a step "
            "of this run has (devices x batch x accumulation). DeiT: 512, MAE: 256. Not scaled by default."
        },
    )
    layer_decay: float | None = field(
        default=None,
        metadata={"help": "Factor of the learning rate from each layer to the one below it, e.g. 0.65."},
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Average the weights over the steps (EMA), e.g. 0.9999; the average is the saved model."
        },
    )
    ema_warmup: bool = field(
        default=False, metadata={"help": "Let the decay of the average grow from 0, for short runs."}
    )


@dataclass
class MeasureArguments:
    """Cost of a run."""

    dry_run: bool = field(
        default=False,
        metadata={"help": "Train a few steps, print what the whole run would cost, save nothing."},
    )
    dry_run_steps: int = field(default=10, metadata={"help": "How many steps to measure."})
    dry_run_devices: int | None = field(
        default=None,
        metadata={"help": "Expect the hours on so many devices like this one; those of this run by default."},
    )

    def __post_init__(self):
        for name in ("dry_run_steps", "dry_run_devices"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} must be at least 1, not {value}.")


@dataclass(frozen=True)
class Images:
    """What is trained on and evaluated.

    Attributes:
        train: the training images, noise in the labels included.
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
    images, validation_images = load_image_sets(args)
    return Images(with_noise(args, images), validation_images, shot_groups(images.counts()))


def make_dataset(
    images: ImageSet | ImageStream, args: ImageDataArguments, transform: Any, bad: BadImages, seed: int | None
) -> Any:
    """Images for the Trainer; `seed` is that of training, None for evaluation."""
    if isinstance(images, ImageStream):
        columns = args.image_column, args.label_column
        return StreamedImages(images.rows, *columns, images.size, len(images.classes), transform, bad, seed)
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
        image=lambda index: open_image(train.source(index)),
    )


def scale_learning_rate(training_args: ReweightedTrainingArguments, batch: int | None) -> None:
    """Set the learning rate for the images that a step has, where it was given for `batch` of them."""
    if batch is None:
        return
    if batch < 1:
        raise UserError(f"--learning_rate_batch must be at least 1, not {batch}.")
    images = (
        training_args.per_device_train_batch_size
        * training_args.gradient_accumulation_steps
        * training_args.world_size
    )
    training_args.learning_rate *= images / batch
    say(f"Learning rate for {images} images a step: {training_args.learning_rate:.3g}")


ARGUMENTS = (
    ImageDataArguments,
    ImageModelArguments,
    AugmentationArguments,
    OptimizationArguments,
    MeasureArguments,
    RunArguments,
    ReweightedTrainingArguments,
)


def main(argv: list[str] | None = None) -> dict:
    """Run the recipe with the given command-line arguments; what `all_results.json` holds (nothing for a dry run)."""
    data_args, model_args, augmentation, optimization, measure_args, run_args, training_args = parse_args(
        ARGUMENTS,
        argv,
        description=__doc__.split("\n\n")[0],
        defaults=DEFAULTS,
    )
    if data_args.streaming and augmentation.repeated_augmentation > 1:
        raise UserError("--repeated_augmentation needs images in any order: leave out --streaming.")
    if data_args.streaming and run_args.hard_examples:
        raise UserError("--hard_examples needs images with a number of their own: leave out --streaming.")
    scale_learning_rate(training_args, optimization.learning_rate_batch)
    chosen = settings_of(data_args, model_args, augmentation, optimization)
    plan = None if measure_args.dry_run else prepare_runs(training_args, run_args, chosen)
    if plan is not None and plan.finished:
        return push_runs(plan)
    bad = BadImages(data_args.bad_images, Path(str(training_args.output_dir)) / "bad_images.txt")
    with training_args.main_process_first(desc="data preparation"):
        if PartialState().is_main_process and plan is not None and not begun(plan):
            bad.forget()  # those of an earlier training here may have been repaired
        images = load_images(data_args, training_args)
    if (
        bad.action == "stop"
        and isinstance(images.train, ImageSet)
        and isinstance(images.validation, ImageSet)
    ):
        check_all_images((images.train, images.validation), training_args.dataloader_num_workers)

    def build_trainer(args: ReweightedTrainingArguments) -> ImageTrainer:
        classifier = build_image_classifier(model_args, images.classes)
        training = train_transform(augmentation, classifier.data_config)
        evaluation = eval_transform(classifier.data_config)
        return ImageTrainer(
            model=classifier.model,
            args=args,
            train_dataset=make_dataset(images.train, data_args, training, bad, args.seed),
            eval_dataset=make_dataset(images.validation, data_args, evaluation, bad, None),
            processing_class=classifier.processor,
            data_collator=ImageCollator(make_mixup(augmentation, len(images.classes))),
            compute_metrics=make_image_metrics(images.groups),
            preprocess_logits_for_metrics=keep_best_classes,
            repeated_augmentation=augmentation.repeated_augmentation,
            layer_decay=optimization.layer_decay,
            ema_decay=optimization.ema_decay,
            ema_warmup=optimization.ema_warmup,
            record_examples=run_args.hard_examples > 0,
        )

    if plan is None:
        run = plan_runs(training_args, run_args.compare)[-1]
        trainer = build_trainer(run.args)
        cost = measure(trainer, measure_args.dry_run_steps)
        report_cost(trainer, cost, measure_args.dry_run_devices, {**chosen, **settings_of(training_args)})
        return {}
    card = {"tasks": "image-classification"}
    if data_args.dataset_name and "/" in data_args.dataset_name:
        card |= {"dataset": data_args.dataset_name, "dataset_tags": data_args.dataset_name}
    results = train_runs(plan, build_trainer, card, training_samples(images, bad))
    if PartialState().is_main_process:
        draw(plan)
    report(results, images, bad)
    push_runs(plan)
    return results


def begun(plan: RunPlan) -> bool:
    """Whether a training of the plan is there to go on with, or finished."""
    directories = [str(run.args.output_dir) for run in plan.runs]
    return any(last_checkpoint(path) or read_results(path) for path in directories)


def draw(plan: RunPlan) -> None:
    """Write the curves of all runs and the weights of the re-weighted one as PNG into the output directory."""
    histories = {run.method: read_history(str(run.args.output_dir)) for run in plan.runs}
    plot_curves(histories, plan.root / "curves.png")
    pictures = [plan.root / "curves.png"]
    run = plan.runs[-1]
    if run.args.reweighting != "none" and plot_weights(
        histories[run.method], run.method, plan.root / "weights.png"
    ):
        pictures.append(plan.root / "weights.png")
    say("", "Pictures: " + ", ".join(map(str, pictures)))


def report(results: dict, images: Images, bad: BadImages) -> None:
    """Print the table, and the unreadable images."""
    size = f"{len(images.train):,}" if isinstance(images.train, ImageSet) else "streamed"
    title = f"{len(images.classes):,} classes, {size} images to train on"
    print_results(title, results)
    names = bad.names()
    if names:
        say(f"{len(names)} unreadable image(s) were left out; {bad.record} names them.")


def report_cost(trainer: ImageTrainer, cost: Throughput, devices: int | None, settings: dict) -> None:
    """Print and write what a whole run would cost, and where the losses lie against tau."""
    args = trainer.args
    devices = devices or args.world_size
    dataset: Any = trainer.train_dataset
    images = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if args.max_steps <= 0:
        images = int(args.num_train_epochs * len(dataset))
    waiting = f"{cost.waiting_share:.0%} of a step is spent waiting for data"
    if cost.waiting_share > 0.1:
        waiting += ": give more --dataloader_num_workers, or less work an image"
    losses = torch.quantile(cost.losses, torch.tensor([0.05, 0.5, 0.95])).tolist()
    taus = sorted({*TAUS, float(args.tau)})
    clipped = {tau: (cost.losses > tau).float().mean().item() for tau in taus}
    say(
        "",
        f"Parameters           {cost.parameters / 1e6:.2f} million",
        f"FLOPs an image       {cost.flops_per_image / 1e9:.3g} billion forward, about three times that in training",
        f"Training speed       {cost.images_per_second:.1f} images/s on one {args.device.type} device",
        f"Data loading alone   {cost.loader_images_per_second:.1f} images/s decoded and augmented, "
        f"{args.dataloader_num_workers} worker(s)",
        f"Waiting for data     {waiting}",
        f"Memory               {cost.memory_bytes / 2**30:.2f} GiB",
        "Losses               5 % below {:.2f}, median {:.2f}, 5 % above {:.2f}".format(*losses),
        "Clipped fraction     "
        + ", ".join(
            f"{share:.0%} at tau={tau:g}{' (chosen)' if tau == args.tau else ''}"
            for tau, share in clipped.items()
        ),
        f"Whole run            {images:,} images: {cost.hours(images, devices):.3g} hours on {devices} device(s), "
        "evaluation left out, if speed grows with their number",
    )
    if PartialState().is_main_process:
        measured = {name: getattr(cost, name) for name in cost.__dataclass_fields__ if name != "losses"}
        measured |= {"loss_quantiles_5_50_95": losses, "clipped_fraction_by_tau": clipped, "images": images}
        measured |= {
            "devices": devices,
            "hours": cost.hours(images, devices),
            "images_measured": len(cost.losses),
        }
        path = Path(str(args.output_dir)) / "dry_run.json"
        write_json(path, {**measured, "settings": settings, "versions": package_versions()})
        say(f"Written to {path}")


if __name__ == "__main__":
    run_recipe(main)
