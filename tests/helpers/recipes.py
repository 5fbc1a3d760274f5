"""How tests run the recipes: in a process of their own, or with arguments for a training of a second."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["good", "bad", *(f"word{i}" for i in range(40))]
TINY = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}


def tiny(output_dir: Path, *options: str) -> list[str]:
    """Arguments for a training of a second: 12 steps of a ViT of 8,000 parameters on 96 digits."""
    return [
        *("--dataset_name", "digits", "--max_train_samples", "96", "--max_eval_samples", "40"),
        *("--model_name_or_path", "timm/vit_tiny_patch16_224", "--from_scratch", "--image_size", "8"),
        *("--model_args", json.dumps({"crop_pct": 1.0, **TINY})),
        *("--num_train_epochs", "2", "--per_device_train_batch_size", "16"),
        *(
            "--logging_steps",
            "3",
            "--disable_tqdm",
            "true",
            "--use_cpu",
            "--output_dir",
            str(output_dir),
            *options,
        ),
    ]


def sentences(count: int, seed: int = 0) -> list[dict]:
    """Rows of `text` and `label`: 1 where the sentence says good, 0 where it says bad."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        label = number % 2
        words = draw.choices(WORDS[2:], k=draw.randint(1, 12))
        words.insert(draw.randint(0, len(words)), "good" if label else "bad")
        rows.append({"text": " ".join(words), "label": label})
    return rows


def changed(arguments: list[str], **options) -> list[str]:
    """`arguments` with options replaced, or left out where None."""
    pairs = list(arguments)
    for name, value in options.items():
        if f"--{name}" in pairs:
            position = pairs.index(f"--{name}")
            del pairs[position : position + 2]
        if value is not None:
            pairs += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    return pairs


def output_of(arguments: list[str]) -> Path:
    return Path(arguments[arguments.index("--output_dir") + 1])


def launch(
    arguments: list[str], *launcher_options: str, script: str = "glue.py"
) -> subprocess.CompletedProcess:
    """`accelerate launch recipes/<script> ...` as a user types it; several processes are `--multi_gpu` on a CPU too."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher_options]
    if "--multi_gpu" in launcher_options:
        command += ["--main_process_port", "0"]  # any free one: tests run side by side
    return subprocess.run(
        [*command, str(ROOT / "recipes" / script), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )
