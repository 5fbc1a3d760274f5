"""What token losses of a language model cost: its head alone, and a whole training step, in several ways.

    make bench-lm
    python benchmarks/cost/lm.py --only "full logits" ours --repeats 20 --output benchmarks/results/cost/lm.json

Every way computes unreduced losses, weights them by `kl`, and runs the backward pass to hidden states and weight (to hidden
states alone where the head is frozen, as below a LoRA adapter): the full
logits, ours (`rgd_hf.lm_head.losses`), torch's `linear_cross_entropy` in chunks of 256 tokens, TRL's fused LM head, Liger and
cut-cross-entropy. What is not installed, or does not run on this device, is skipped by name with the reason. The whole step is
`ReweightedTrainer.compute_loss` and backward of a small Llama, with `fused_lm_head` on and off.

The ways alternate, so that what else the machine does hits all alike; time is the median of the ratios to the full logits of the same
round, with quartiles: CPU time of the process on a CPU, wall time on an accelerator. Memory is what a step allocates at its
peak on top of its operands, by the allocator: `torch.cuda.max_memory_allocated`, or on a CPU the largest sum of tensor memory
that torch's profiler sees.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from rgd_hf import ReweightedTrainer, rgd_weights
from rgd_hf.lm_head.losses import linear_token_losses

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
FULL = "full logits"
Losses = Callable[[Tensor, Tensor, Tensor], Tensor]


def full_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of float32 logits, as transformers' models compute it."""
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")


def by_torch() -> Losses:
    """Chunks of 256 tokens: the automatic size is slower on a CPU."""
    if not hasattr(F, "linear_cross_entropy"):
        raise ImportError(f"needs torch 2.13 or later, this is {torch.__version__}")
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=256)
    return partial(F.linear_cross_entropy, reduction="none", options=options)


def by_trl() -> Losses:
    """TRL's kernel, with what its SFTTrainer asks it for."""
    from trl.kernels import ChunkedLogProbFunction

    outputs = ("log_probs", "entropy", "is_top1")

    def losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return -ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, outputs)[0]

    return losses


def by_liger() -> Losses:
    """Liger's fused loss, which has no weight for a token: reduced to a mean, so that its gradient is right."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="mean")
    return lambda hidden, weight, targets: loss(weight, hidden, targets).reshape(1)


def by_cut_cross_entropy() -> Losses:
    """Apple's kernel, or its torch.compile version off the GPU."""
    from cut_cross_entropy import linear_cross_entropy

    return partial(linear_cross_entropy, reduction="none", impl="cce" if ON_GPU else "torch_compile")


WAYS: dict[str, Callable[[], Losses]] = {
    FULL: lambda: full_logits,
    "ours": lambda: linear_token_losses,
    "torch": by_torch,
    "TRL": by_trl,
    "Liger (mean, unweighted)": by_liger,
    "cut-cross-entropy": by_cut_cross_entropy,
}
# tokens, hidden size, vocabulary, dtype, whether the head is trained
Shape = tuple[int, int, int, str, str]
QUICK = [(256, 128, 8000, "float32", "trained"), (256, 128, 8000, "float32", "frozen")]
ON_CPU = [
    (1024, 512, 50257, "float32", "trained"),
    (512, 512, 128256, "float32", "trained"),
    (1024, 512, 50257, "float32", "frozen"),
]
LARGE = [
    (8192, 4096, 128256, "bfloat16", "trained"),
    (16384, 2048, 50257, "bfloat16", "trained"),
    (8192, 4096, 128256, "bfloat16", "frozen"),
]


def head_steps(shape: Shape, only: list[str]) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """A step of the head for every way that runs here, and why the others do not."""
    tokens, size, vocabulary, dtype, head = shape
    torch.manual_seed(0)
    kwargs: dict[str, Any] = {"device": DEVICE, "dtype": getattr(torch, dtype)}
    hidden = torch.randn(tokens, size, **kwargs).requires_grad_()
    weight = (torch.randn(vocabulary, size, **kwargs) / size**0.5).requires_grad_(head == "trained")
    targets = torch.randint(0, vocabulary, (tokens,), device=DEVICE)

    def step(losses_of: Losses) -> None:
        losses = losses_of(hidden, weight, targets).float()
        (rgd_weights(losses, "kl", 20.0) * losses).mean().backward()
        hidden.grad = weight.grad = None

    steps: dict[str, Callable[[], Any]] = {}
    skipped = {}
    for name in only:
        try:
            steps[name] = partial(step, WAYS[name]())
            steps[name]()
        except Exception as error:
            steps.pop(name, None)
            skipped[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return steps, skipped


def model_steps(quick: bool, folder: str) -> dict[str, Callable[[], Any]]:
    """A whole training step of a small Llama, with and without logits; a third of the labels is ignored."""
    vocabulary, size, rows, tokens = (8000, 64, 2, 64) if quick else (50257, 512, 8, 256)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=size,
        intermediate_size=4 * size,
        num_hidden_layers=2 if quick else 4,
        num_attention_heads=8,
        max_position_embeddings=tokens,
        use_cache=False,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model.to(DEVICE).train()
    ids = torch.randint(0, vocabulary, (rows, tokens), device=DEVICE)
    labels = ids.masked_fill(torch.rand(ids.shape, device=DEVICE) < 1 / 3, -100)
    args = TrainingArguments(folder, use_cpu=not ON_GPU, report_to=[], bf16=ON_GPU)

    def step(trainer: ReweightedTrainer) -> None:
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, {"input_ids": ids, "labels": labels})
        loss.backward()
        model.zero_grad()

    return {
        name: partial(step, ReweightedTrainer(model, args, tau=20.0, fused_lm_head=fused))
        for name, fused in ((FULL, False), ("ours", True))
    }


def peak_bytes(step: Callable[[], Any]) -> int:
    """The most memory that a step has allocated at any moment, on top of what was there."""
    gc.collect()
    if ON_GPU:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def seconds_of(step: Callable[[], Any]) -> float:
    """CPU time of a step on a CPU, wall time on an accelerator."""
    if not ON_GPU:
        started = time.process_time()
        step()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(
    steps: dict[str, Callable[[], Any]], repeats: int, advance: Callable[[], Any]
) -> list[dict[str, Any]]:
    """Time and memory of each step, beside those of the full logits where they are among them."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for round_number in range(repeats):
        names = list(steps)
        for name in names if round_number % 2 else reversed(names):
            seconds[name].append(seconds_of(steps[name]))
        advance()
    memory = {name: peak_bytes(step) for name, step in steps.items()}
    rows = []
    for name in steps:
        row = {"way": name, "seconds": statistics.median(seconds[name]), "peak_bytes": memory[name]}
        if FULL in steps:
            ratios = [own / full for own, full in zip(seconds[name], seconds[FULL], strict=True)]
            low, median, high = statistics.quantiles(ratios, n=4)
            row["time_ratio"] = {"median": median, "quartiles": [low, high]}
            row["memory_ratio"] = memory[name] / memory[FULL]
        rows.append(row)
    return rows


def table_of(title: str, result: dict[str, Any]) -> Table:
    """One row a way."""
    table = Table(title=title, title_justify="left")
    for head in ("", "seconds", "ratio [quartiles]", "peak MiB", "ratio"):
        table.add_column(head, justify="right" if head else "left")
    for row in result["ways"]:
        time_ratio, memory_ratio = row.get("time_ratio"), row.get("memory_ratio")
        spread = "[{:.3f}, {:.3f}]".format(*time_ratio["quartiles"]) if time_ratio else ""
        table.add_row(
            row["way"],
            f"{row['seconds']:.4f}",
            f"{time_ratio['median']:.3f} {spread}" if time_ratio else "",
            f"{row['peak_bytes'] / 2**20:.1f}",
            f"{memory_ratio:.3f}" if memory_ratio else "",
        )
    for name, reason in result["skipped"].items():
        table.add_row(name, "skipped", reason, "", "")
    return table


def main() -> None:
    """Measure, print tables, write a JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, help="measured rounds per implementation (default 10; with --quick 3)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="use a small head and model, to check that everything runs"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(WAYS),
        default=list(WAYS),
        help="implementations to measure (default: all)",
    )
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's choice)")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/lm.json"), help="JSON file for the results"
    )
    options = parser.parse_args()
    repeats = options.repeats or (3 if options.quick else 10)
    if repeats < 2:
        parser.error(f"--repeats must be at least 2 to estimate the spread, not {repeats}")
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console()
    shapes = QUICK if options.quick else LARGE if ON_GPU else ON_CPU
    device = torch.cuda.get_device_name() if ON_GPU else f"CPU, {torch.get_num_threads()} threads"
    report: dict[str, Any] = {
        "device": device,
        "torch": torch.__version__,
        "repeats": repeats,
        "heads": [],
        "step": None,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with Progress(console=console) as progress, tempfile.TemporaryDirectory() as folder:
        for shape in shapes:
            tokens, size, vocabulary, dtype, head = shape
            title = f"{head} head: {tokens} tokens, hidden size {size}, vocabulary {vocabulary}, {dtype}"
            task = progress.add_task(title, total=repeats)
            steps, skipped = head_steps(shape, options.only)
            ways = measure(steps, repeats, partial(progress.advance, task))
            report["heads"].append({"shape": shape, "ways": ways, "skipped": skipped})
            options.output.write_text(json.dumps(report, indent=2))
            console.print(table_of(title, report["heads"][-1]))
        title = "a whole training step of a small Llama"
        task = progress.add_task(title, total=repeats)
        ways = measure(model_steps(options.quick, folder), repeats, partial(progress.advance, task))
        report["step"] = {"ways": ways, "skipped": {}}
        options.output.write_text(json.dumps(report, indent=2))
        console.print(table_of(title, report["step"]))
    console.print(f"{device}; written to {options.output}")


if __name__ == "__main__":
    main()
