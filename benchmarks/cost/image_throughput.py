"""What a training with `recipes/imagenet.py` will cost: a few steps are trained, nothing is saved.

    python benchmarks/cost/image_throughput.py recipes/configs/deit_small_imagenet.yaml --data_dir /data/imagenet

Every option of the recipe works as there. It tells size, speed, share of data loading, memory and hours, and which share of the
losses a tau would clip: Mixup, CutMix and label smoothing put a floor under the loss, so that a small tau clips all.
`throughput.json` in the output directory has the numbers.
"""

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Trainer

if not __package__:  # called by its path: what it imports lies in the checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.study.scripts import load_module
from rgd_hf.json_lines import write_json
from rgd_hf.losses import single_label_losses
from rgd_hf.scripts.cli import parse_args, run_recipe
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.messages import say
from rgd_hf.scripts.training.results import package_versions, settings_of
from rgd_hf.scripts.vision.decoding import BadImages

imagenet = load_module("recipes/imagenet.py")
TAUS = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0)
"""Values of tau for which the clipped fraction is reported."""


@dataclass
class MeasureArguments:
    """Measurement."""

    steps: int = field(
        default=10,
        metadata={
            "help": "Number of steps to measure, rounded up to a multiple of --dataloader_num_workers, whose batches arrive "
            "together."
        },
    )
    devices: int | None = field(
        default=None,
        metadata={
            "help": "Number of devices for which to estimate the hours of the whole run; by default those of this run."
        },
    )

    def __post_init__(self):
        for name in ("steps", "devices"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} must be at least 1, not {value}.")


ARGUMENTS = (MeasureArguments, *imagenet.ARGUMENTS)


def main(argv: list[str] | None = None) -> dict:
    """Measure what the command line asks for; what `throughput.json` holds."""
    measured, data_args, model_args, image_args, _, training_args = parse_args(
        ARGUMENTS,
        argv,
        description=(__doc__ or "").split("\n\n")[0],
        defaults=imagenet.DEFAULTS,
        moved=imagenet.MOVED,
    )
    imagenet.scale_learning_rate(training_args, image_args.learning_rate_batch)
    bad = BadImages("skip", Path(str(training_args.output_dir)) / "bad_images.txt")
    with training_args.main_process_first(desc="data preparation"):
        images = imagenet.load_images(data_args, training_args)
    trainer = imagenet.trainer_builder(images, data_args, model_args, image_args, bad)(training_args)
    cost = measure(trainer, measured.steps)
    settings = settings_of(measured, data_args, model_args, image_args, training_args)
    return report(trainer, cost, measured.devices or training_args.world_size, settings)


@dataclass(frozen=True)
class Throughput:
    """Measurements of a few training steps on one device.

    Attributes:
        parameters: number of parameters of the model.
        flops_per_image: floating-point operations of one forward pass, a multiplication and an addition counted as two.
        images_per_second: throughput of whole training steps, data loading included.
        loader_images_per_second: throughput of data loading (decoding, augmentation, mixing) alone, all workers.
        waiting_share: share of a step spent waiting for data, 0 to 1.
        memory_bytes: highest use of the device's memory, or of the process's on a CPU.
        epochs: how many epochs of the data were begun; with more than one, what beginning the others took is in the speeds.
        losses: unreduced training losses of the measured steps, float32 `[images]`.
    """

    parameters: int
    flops_per_image: int
    images_per_second: float
    loader_images_per_second: float
    waiting_share: float
    memory_bytes: int
    epochs: int
    losses: torch.Tensor

    def hours(self, images: int, devices: int) -> float:
        """Expected hours for a number of images on a number of devices like this one, if speed scales with them."""
        return images / (self.images_per_second * devices) / 3600


def count_flops(model: nn.Module, image: torch.Tensor) -> int:
    """FLOPs of one forward pass of `image` `[1, 3, height, width]`, counted by torch."""
    training = model.training
    model.eval()
    # The mathematical form of attention is the one that torch counts on every device.
    attention = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with torch.no_grad(), attention, FlopCounterMode(display=False) as counter:
        model(pixel_values=image)
    model.train(training)
    return counter.get_total_flops()


@dataclass(frozen=True)
class Schedule:
    """How many batches each part of a measurement takes, one part after the other.

    Nothing that was loaded while no clock ran may be counted, so what the workers hold ready is dropped before loading
    alone is measured. Training is measured when it has taken the first batches that it had to wait for.

    Attributes:
        warm_up: trained; allocations, choice of kernels.
        drop: held ready by the workers.
        load: loaded, and measured.
        settle: trained.
        train: trained, and measured.
    """

    warm_up: int
    drop: int
    load: int
    settle: int
    train: int

    @classmethod
    def of(cls, steps: int, workers: int, prefetch_factor: int | None) -> "Schedule":
        """The schedule for at least so many measured steps, and so many workers of the data loader."""
        measured = -(-steps // workers) * workers if workers else steps
        return cls(2, workers * (prefetch_factor or 2), measured, workers, measured)

    @property
    def batches(self) -> int:
        """Batches that an epoch should have: those of all parts, and one that the loader reads ahead to know the last."""
        return self.warm_up + self.drop + self.load + self.settle + self.train + 1


class Batches:
    """The batches of one epoch after the other, without an end.

    Args:
        loader: what an epoch is made of.

    Attributes:
        epochs: how many were begun.
    """

    def __init__(self, loader: Iterable[Any]):
        self.epochs = 0
        self._batches = self._chain(loader)

    def _chain(self, loader: Iterable[Any]) -> Iterator[Any]:
        while True:
            self.epochs += 1
            yield from loader

    def take(self, number: int) -> Iterator[Any]:
        """The next so many."""
        return (next(self._batches) for _ in range(number))


def measure(trainer: Trainer, steps: int) -> Throughput:
    """Load and train some batches, as `Schedule` says; nothing is saved.

    Args:
        trainer: ready to train. The learning rate is 0: its model stays as it is.
        steps: measured steps, at least 1, rounded up to a multiple of the data loader's workers.
    """
    args = trainer.args
    schedule = Schedule.of(steps, args.dataloader_num_workers, args.dataloader_prefetch_factor)
    batches = Batches(trainer.get_train_dataloader())
    model: Any = trainer.model
    trainer.create_optimizer_and_scheduler(num_training_steps=schedule.batches)
    optimizer: Any = trainer.optimizer
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # the losses are to be those of the model as it is
    model.train()
    for batch in batches.take(schedule.warm_up):
        _step(trainer, model, optimizer, trainer._prepare_inputs(batch))
    for _ in batches.take(schedule.drop):
        pass
    started = time.perf_counter()
    loaded = sum(len(batch["pixel_values"]) for batch in batches.take(schedule.load))
    loader_speed = loaded / (time.perf_counter() - started)
    for batch in batches.take(schedule.settle):
        _step(trainer, model, optimizer, trainer._prepare_inputs(batch))
    waited = trained = 0.0
    images, losses = 0, []
    for _ in range(schedule.train):
        started = time.perf_counter()
        (batch,) = (trainer._prepare_inputs(batch) for batch in batches.take(1))
        ready = time.perf_counter()
        logits = _step(trainer, model, optimizer, batch)
        waited += ready - started
        trained += time.perf_counter() - ready
        images += len(logits)
        losses.append(single_label_losses(logits, batch["labels"], args.label_smoothing_factor).cpu())
    return Throughput(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops_per_image=count_flops(model, batch["pixel_values"][:1]),
        images_per_second=images / (waited + trained),
        loader_images_per_second=loader_speed,
        waiting_share=waited / (waited + trained),
        memory_bytes=_memory(),
        epochs=batches.epochs,
        losses=torch.cat(losses),
    )


def _step(trainer: Trainer, model: Any, optimizer: Any, batch: Any) -> torch.Tensor:
    """One step as the Trainer makes it (autocast, re-weighted loss); returns the detached logits."""
    with trainer.compute_loss_context_manager():
        loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    trainer.accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return outputs["logits"].detach()


def _memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def report(trainer: Any, cost: Throughput, devices: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Print and write what a whole run would cost, and where the losses lie against tau."""
    args = trainer.args
    images = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if args.max_steps <= 0:
        images = int(args.num_train_epochs * len(trainer.train_dataset))
    waiting = f"{cost.waiting_share:.0%} of a step is spent waiting for data"
    if cost.waiting_share > 0.1:
        waiting += ": give more --dataloader_num_workers, or less work an image"
    losses = torch.quantile(cost.losses, torch.tensor([0.05, 0.5, 0.95])).tolist()
    taus = sorted({*TAUS, float(args.tau)})
    clipped = {tau: (cost.losses > tau).float().mean().item() for tau in taus}
    hours = cost.hours(images, devices)
    restarts = []
    if args.dataloader_num_workers and cost.epochs > 1:
        needed = Schedule.of(1, args.dataloader_num_workers, args.dataloader_prefetch_factor).batches
        restarts = [
            f"Short epochs         {cost.epochs} epochs were begun in this measurement, so the speeds and the waiting have "
            f"the start of the workers in them, in a share that may differ from a training's; {args.dataloader_num_workers} "
            f"workers need an epoch of {needed} batches or more to be measured without"
        ]
    say(
        "",
        f"Parameters           {cost.parameters / 1e6:.2f} million",
        f"FLOPs an image       {cost.flops_per_image / 1e9:.3g} billion forward, about three times that in training",
        f"Training speed       {cost.images_per_second:.1f} images/s on one {args.device.type} device",
        f"Data loading alone   {cost.loader_images_per_second:.1f} images/s decoded and augmented, "
        f"{args.dataloader_num_workers} worker(s)",
        f"Waiting for data     {waiting}",
        *restarts,
        f"Memory               {cost.memory_bytes / 2**30:.2f} GiB",
        "Losses               5 % below {:.2f}, median {:.2f}, 5 % above {:.2f}".format(*losses),
        "Clipped fraction     "
        + ", ".join(
            f"{share:.0%} at tau={tau:g}{' (chosen)' if tau == args.tau else ''}"
            for tau, share in clipped.items()
        ),
        f"Whole run            {images:,} images: {hours:.3g} hours on {devices} device(s), evaluation left out, if speed "
        "grows with their number",
    )
    found = {each.name: getattr(cost, each.name) for each in fields(cost) if each.name != "losses"}
    found |= {"loss_quantiles_5_50_95": losses, "clipped_fraction_by_tau": clipped, "images": images}
    found |= {"devices": devices, "hours": hours, "images_measured": len(cost.losses)}
    found |= {"settings": settings, "versions": package_versions()}
    if PartialState().is_main_process:
        path = Path(str(args.output_dir)) / "throughput.json"
        write_json(path, found)
        say(f"Written to {path}")
    return found


if __name__ == "__main__":
    run_recipe(main)
