"""Does the library hold on this device, and what does it cost there? One table and one JSON file; no network is needed.

    make check-gpu
    python benchmarks/cost/check_gpu.py --only environment tests --output runs/check_gpu/h100.json

Parts: `environment` (device, driver, versions), `tests` (those marked `gpu`: heads, cuts, precisions, compilation, FSDP2,
resume, stops, waits for the device), `overhead` (a step beside the stock Trainer's), `lm` (token losses without logits),
`images` (images/s of recipes/imagenet.py and what share of a step waits for data, on generated JPEGs). A part that cannot
run here is skipped by name, with the reason; one that fails leaves its output beside the JSON, and the rest still runs.
On an H100 all of it takes under eight minutes. Without an accelerator the same parts run smaller, on the CPU.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
if not __package__:  # called by its path: what it imports lies in the checkout
    sys.path.insert(0, str(ROOT))

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "trl", "peft", "timm", "liger-kernel", "cut-cross-entropy")  # fmt: skip
ON_GPU = torch.cuda.is_available()


@dataclass
class Part:
    """What one part found.

    Attributes:
        name: as `--only` takes it.
        status: `ok`, `failed` or `skipped`.
        summary: one line for the table.
        seconds: that it took.
        numbers: everything it measured.
    """

    name: str
    status: str
    summary: str
    seconds: float = 0.0
    numbers: dict[str, Any] = field(default_factory=dict)


class Failed(Exception):
    """A command ended with an error; the message is its last line."""


def run(command: list[str], log: Path, minutes: float) -> None:
    """Run a Python command of the repository, its output in `log`.

    Raises:
        Failed: it ended with an error, or took longer.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with log.open("w") as output:
        try:
            done = subprocess.run(
                [sys.executable, *command], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, timeout=60 * minutes, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Failed(f"not done after {minutes:g} minutes; its output is in {log}") from error
    if done.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        raise Failed(f"{lines[-1][:200]} (all of it is in {log})")


def environment(folder: Path, minutes: float) -> tuple[str, dict[str, Any]]:
    """Device, driver and versions."""
    import rgd_hf

    found: dict[str, Any] = {"python": sys.version.split()[0], "torch_cuda": torch.version.cuda}
    found["rgd-hf"] = rgd_hf.__version__  # of this checkout, which is what runs
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if ON_GPU:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "devices": torch.cuda.device_count(),
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "bf16": torch.cuda.is_bf16_supported(),
        }
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            found["driver"] = subprocess.run(
                query, capture_output=True, text=True, check=True
            ).stdout.split()[0]
        except (OSError, subprocess.CalledProcessError, IndexError):
            found["driver"] = None
    else:
        found |= {"device": f"CPU, {torch.get_num_threads()} threads", "cpu_capability": torch.backends.cpu.get_cpu_capability()}  # fmt: skip
    missing = [package for package in PACKAGES if found[package] is None]
    return f"{found['device']}; torch {found['torch']}" + (f"; not installed: {', '.join(missing)}" if missing else ""), found  # fmt: skip


def tests(folder: Path, minutes: float) -> tuple[str, dict[str, Any]]:
    """The tests marked `gpu`, with the reasons of those that cannot run here."""
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401

    report = folder / "tests.xml"
    failure = None
    try:
        run(
            ["-m", "pytest", "tests/gpu", "-m", "gpu", f"--junitxml={report}", "-q", *_side_by_side()],
            folder / "tests.log",
            minutes,
        )
    except Failed as error:
        failure = error
    if not report.is_file():
        raise failure or Failed("pytest wrote no report")
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [
        case.get("name")
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = {
        case.get("name"): skip.get("message") for case in cases if (skip := case.find("skipped")) is not None
    }
    numbers = {"passed": len(cases) - len(failed) - len(skipped), "failed": failed, "skipped": skipped}
    if failed:
        raise Failed(
            f"{len(failed)} of {len(cases)} tests failed: {', '.join(map(str, failed[:3]))} ... ({folder / 'tests.log'})"
        )
    return f"{numbers['passed']} passed, {len(skipped)} skipped", numbers


def _side_by_side() -> list[str]:
    """The option of pytest for up to four processes, each of which holds a context and models of its own on the device."""
    room = torch.cuda.get_device_properties(0).total_memory // (10 * 2**30) if ON_GPU else 1
    workers = min(4, (os.cpu_count() or 1) // 2, room)
    return ["-n", str(workers)] if workers > 1 and importlib.util.find_spec("xdist") else []


def overhead(folder: Path, minutes: float) -> tuple[str, dict[str, Any]]:
    """A step of `kl` beside the stock Trainer's, in pairs."""
    output = folder / "overhead.json"
    size = ["--large", "--bf16", "--repeats", "40"] if ON_GPU else ["--repeats", "4", "--warmup", "1"]
    run(["benchmarks/cost/overhead.py", *size, "--output", str(output)], folder / "overhead.log", minutes)
    numbers = json.loads(output.read_text())
    ratios = [
        f"{result['workload']}: x {result['wall_time_ratio']['median']:.3f}" for result in numbers["results"]
    ]
    return "; ".join(
        [*ratios, *(f"{name}: skipped, {why}" for name, why in numbers["skipped"].items())]
    ), numbers


def lm(folder: Path, minutes: float) -> tuple[str, dict[str, Any]]:
    """Token losses without logits: memory and time of a step."""
    output = folder / "lm.json"
    run(
        ["benchmarks/cost/lm.py", *([] if ON_GPU else ["--quick"]), "--output", str(output)],
        folder / "lm.log",
        minutes,
    )
    numbers = json.loads(output.read_text())
    return "; ".join(_time_beside_full_logits(head) for head in numbers["heads"]), numbers


def _time_beside_full_logits(head: dict[str, Any]) -> str:
    tokens, _, vocabulary, _, trained = head["shape"]
    times = (
        f"{way['way']} x {way['time_ratio']['median']:.2f}" for way in head["ways"] if "time_ratio" in way
    )
    return f"{trained} head, {tokens} tokens, vocabulary {vocabulary}: {', '.join(times)}"


def draw_images(folder: Path, classes: int, drawn: int, each: int) -> None:
    """Class folders of JPEGs of 500 x 375 random blocks, which take as long to decode as photographs.

    Args:
        folder: gets `train` and `val`.
        classes: number of classes.
        drawn: different images of a class.
        each: images of a class for training; those that are not drawn are further names of the same files.
    """
    generator = np.random.default_rng(0)
    for number in range(classes):
        train, val = (folder / split / f"class_{number:02d}" for split in ("train", "val"))
        train.mkdir(parents=True)
        val.mkdir(parents=True)
        for index in range(each):
            if index < drawn:
                blocks = generator.integers(0, 255, (47, 63, 3), dtype=np.uint8)
                image = Image.fromarray(blocks).resize((500, 375), Image.Resampling.BICUBIC)
                image.save(train / f"{index}.jpg")
            else:
                os.link(train / f"{index % drawn}.jpg", train / f"{index}.jpg")
        os.link(train / "0.jpg", val / "0.jpg")


def images(folder: Path, minutes: float) -> tuple[str, dict[str, Any]]:
    """Some steps of recipes/imagenet.py with the DeiT-S settings, of an epoch that does not end in them."""
    from benchmarks.cost.image_throughput import Schedule

    workers, batch, classes, prefetch = (min(16, os.cpu_count() or 1), 256, 20, 2) if ON_GPU else (1, 4, 4, 2)
    steps = workers
    needed = batch * Schedule.of(steps, workers, prefetch).batches
    draw_images(folder / "images", classes, drawn=10 if ON_GPU else 2, each=-(-needed // classes))
    output = folder / "throughput"
    run(
        [
            "benchmarks/cost/image_throughput.py", "recipes/configs/deit_small_imagenet.yaml",
            "--data_dir", str(folder / "images"), "--output_dir", str(output), "--bf16", "true" if ON_GPU else "false",
            "--dataloader_num_workers", str(workers), "--dataloader_prefetch_factor", str(prefetch),
            "--per_device_train_batch_size", str(batch), "--steps", str(steps),
        ],
        folder / "images.log", minutes,
    )  # fmt: skip
    numbers = json.loads((output / "throughput.json").read_text())
    speed, waiting = numbers["images_per_second"], numbers["waiting_share"]
    alone = numbers["loader_images_per_second"]
    return (
        f"{speed:.0f} images/s, {waiting:.0%} of a step waits for data; {workers} worker(s) load {alone:.0f} images/s",
        numbers,
    )


PARTS: dict[str, Callable[[Path, float], tuple[str, dict[str, Any]]]] = {
    part.__name__: part for part in (environment, tests, overhead, lm, images)
}


def check(name: str, folder: Path, minutes: float) -> Part:
    """Run one part; what goes wrong in it becomes its status."""
    started = time.perf_counter()
    try:
        summary, numbers = PARTS[name](folder, minutes)
        part = Part(name, "ok", summary, numbers=numbers)
    except Failed as error:
        part = Part(name, "failed", str(error))
    except ImportError as error:
        part = Part(name, "skipped", f"{error.name or error} is not installed")
    part.seconds = round(time.perf_counter() - started, 1)
    return part


def main() -> int:
    """Run the parts, print the table, write the JSON; 1 where a part failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to run (default: all)"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/check_gpu/check_gpu.json"), help="JSON file for the results (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="time limit of one part in minutes (default: %(default)s)"
    )
    options = parser.parse_args()
    console = Console()
    console.print(
        "Needs: torch, the recipes' packages and pytest (make venv); no network, about 10 GB of device memory (40 where there are)."
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="parts-", dir=options.output.parent)).resolve()
    found: list[Part] = []
    for name in options.only:
        with console.status(f"{name} ..."):
            found.append(check(name, folder, options.minutes))
        part = found[-1]
        console.print(f"{part.name}: {part.status} in {part.seconds:.0f} s; {part.summary}", highlight=False)
        # After each part, so that an interrupted check keeps what it found.
        options.output.write_text(json.dumps([asdict(part) for part in found], indent=2))
    table = Table(title="rgd-hf on this device")
    for column in ("part", "status", "seconds", "found"):
        table.add_column(column)
    for part in found:
        table.add_row(part.name, part.status, f"{part.seconds:.0f}", part.summary)
    console.print(table)
    console.print(f"Written to {options.output}; the parts' output is in {folder}")
    return int(any(part.status == "failed" for part in found))


if __name__ == "__main__":
    sys.exit(main())
