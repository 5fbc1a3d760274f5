"""What a push of a recipe leaves in a repository of the server."""

from pathlib import Path

import yaml

from tests.helpers.hub_server import HOST, TOKEN, USER
from tests.helpers.worker import ROOT

TINY = [
    "--model_name_or_path",
    "google/bert-tiny",
    "--max_seq_length",
    "16",
    "--use_cpu",
    "--report_to",
    "none",
]
TINY += [
    "--disable_tqdm",
    "true",
    "--num_train_epochs",
    "1",
    "--per_device_train_batch_size",
    "8",
    "--logging_steps",
    "1",
]


def glue_args(output_dir: Path, *options: str) -> list[str]:
    return ["--task_name", "mrpc", *TINY, "--output_dir", str(output_dir), *options]


def repository(hub, name: str):
    return hub.repositories["models", f"{USER}/{name}"]


def card_of(hub, name: str) -> tuple[dict, str]:
    _, front, text = repository(hub, name).files["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(front), text


def secrets_in(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


MACHINE = {"home": str(Path.home()), "project": str(ROOT), "host": HOST, "token": TOKEN}
MODEL_FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
PUSHED = MODEL_FILES | {".gitattributes", "all_results.json"}


def leaks(repository, *folders: Path) -> list[str]:
    """The files of all commits whose name or content tells of this machine, or of these folders."""
    hidden = [text.encode() for text in (*MACHINE.values(), *map(str, folders))]
    return [
        name
        for name, content in repository.content.items()
        if any(text in content or text in name.encode() for text in hidden)
    ]
