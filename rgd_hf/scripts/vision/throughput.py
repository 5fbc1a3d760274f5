"""What a training will cost, measured over a few steps on this machine: size, speed, share of data loading, memory, hours."""

import itertools
import resource
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Trainer

from rgd_hf.losses import single_label_losses
from rgd_hf.scripts.errors import UserError


@dataclass(frozen=True)
class Throughput:
    """Measurements of a few training steps on one device.

    Attributes:
        parameters: of the model.
        flops_per_image: of one forward pass, a multiplication and an addition counted as two.
        images_per_second: of whole training steps, data loading included.
        loader_images_per_second: of data loading (decoding, augmentation, mixing) alone, all workers.
        waiting_share: share of a step spent waiting for data, 0 to 1.
        memory_bytes: highest use of the device's memory, or of the process's on a CPU.
        losses: unreduced training losses of the measured steps, float32 `[images]`.
    """

    parameters: int
    flops_per_image: int
    images_per_second: float
    loader_images_per_second: float
    waiting_share: float
    memory_bytes: int
    losses: torch.Tensor

    def hours(self, images: int, devices: int) -> float:
        """Expected hours for so many images on so many devices like this one, if speed grows with their number."""
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


def measure(trainer: Trainer, steps: int) -> Throughput:
    """Train `trainer`'s model for two steps to warm up and `steps` that are measured; nothing is saved.

    Args:
        trainer: ready to train. The learning rate is 0: its model stays as it is.
        steps: measured steps, at least 1.

    Raises:
        UserError: fewer than one step.
    """
    if steps < 1:
        raise UserError(f"--dry_run_steps must be at least 1, not {steps}.")
    loader = trainer.get_train_dataloader()
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    model: Any = trainer.model
    trainer.create_optimizer_and_scheduler(num_training_steps=steps + 2)
    optimizer: Any = trainer.optimizer
    waited = trained = 0.0
    images, losses = 0, []
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # the losses are to be those of the model as it is
    model.train()
    for step in range(steps + 2):
        started = time.perf_counter()
        batch = trainer._prepare_inputs(next(batches))
        loaded = time.perf_counter()
        logits = _step(trainer, model, optimizer, batch)
        if step >= 2:
            waited += loaded - started
            trained += time.perf_counter() - loaded
            images += len(logits)
            losses.append(
                single_label_losses(logits, batch["labels"], trainer.args.label_smoothing_factor).cpu()
            )
    first_image = batch["pixel_values"][:1]
    return Throughput(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops_per_image=count_flops(model, first_image),
        images_per_second=images / (waited + trained),
        loader_images_per_second=_loader_speed(trainer, steps),
        waiting_share=waited / (waited + trained),
        memory_bytes=_memory(),
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


def _loader_speed(trainer: Trainer, batches: int) -> float:
    loader = trainer.get_train_dataloader()
    workers = max(1, trainer.args.dataloader_num_workers)
    # Workers fill their queues before the clock runs; what is timed is what they go on making.
    iterator = iter(loader)
    next(iterator)
    started, images = time.perf_counter(), 0
    for batch in itertools.islice(iterator, batches + 2 * workers):
        images += len(batch["pixel_values"])
    return images / (time.perf_counter() - started) if images else float("nan")


def _memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
