"""Pushing a finished run to the Hub: a fixed list of files, and nothing else."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi

from rgd_hf import ReweightedTrainingArguments
from rgd_hf.hub.checks import check_base_model, check_may_write, explained
from rgd_hf.hub.model_card import name_repository
from rgd_hf.hub.push import model_files
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.messages import say
from rgd_hf.scripts.training.hard_examples import HARD_EXAMPLES
from rgd_hf.scripts.training.predictions import PREDICTIONS
from rgd_hf.scripts.training.results import RESULTS_NAME

ADAPTER_CONFIG = "adapter_config.json"
CARD_NAME = "README.md"
DATA_REPORTS = (f"{HARD_EXAMPLES}.html", f"{HARD_EXAMPLES}.json", f"{PREDICTIONS}*.parquet")
"""What a run writes about single samples of the user's data."""


@dataclass(frozen=True)
class Push:
    """Where a run is pushed to, and which files.

    Attributes:
        folder: the folder of the run.
        args: its training arguments, with `hub_model_id`, `hub_token`, `hub_private_repo` and `hub_revision`.
        results: content of `all_results.json`.
        data_reports: whether reports on single samples (`DATA_REPORTS`) are pushed too.
    """

    folder: Path
    args: ReweightedTrainingArguments
    results: Mapping[str, Any]
    data_reports: bool = False

    @property
    def repository(self) -> str:
        """As the user named it: `owner/name`, or a name of the account that the token belongs to."""
        return self.args.hub_model_id or self.folder.absolute().name


def check_repository(args: ReweightedTrainingArguments) -> None:
    """Create the repository if it is not there, and check that it may be pushed to, before anything is trained.

    Raises:
        HubError: the Hub does not allow it, or cannot be reached.
    """
    name = args.hub_model_id or Path(str(args.output_dir)).absolute().name
    with explained(f"--push_to_hub: the repository {name} cannot be pushed to"):
        api = HfApi()
        url = api.create_repo(name, token=args.hub_token, private=args.hub_private_repo, exist_ok=True)
        check_may_write(url.repo_id, args.hub_token, args.hub_revision)


def files_to_push(folder: Path, data_reports: bool) -> list[str]:
    """The names of a run's files that are pushed, but for `all_results.json`, sorted.

    Raises:
        UserError: no model was saved there.
    """
    names = model_files(folder)
    if not any(name.endswith((".safetensors", ".bin")) for name in names):
        raise UserError(
            f"--push_to_hub: {folder} holds a finished run without its model (--save_models false?). "
            "--overwrite_output_dir trains it again."
        )
    reports = [path.name for pattern in DATA_REPORTS for path in folder.glob(pattern)] if data_reports else []
    card = [CARD_NAME] if (folder / CARD_NAME).is_file() else []
    return sorted([*card, *names, *reports])


def push(run: Push) -> str:
    """Push a finished run as one commit, its card under the repository's name. Only the main process may call it.

    Returns:
        The commit's address.

    Raises:
        HubError: it failed, or the model is an adapter whose base model is a folder here. All of the run is kept, and the
            same command pushes it without training.
        UserError: no model was saved.
    """
    names = files_to_push(run.folder, run.data_reports)
    base_model = _base_of_adapter(run.folder / ADAPTER_CONFIG)
    kept = sorted({path.name for path in run.folder.iterdir() if path.is_file()} - {*names, RESULTS_NAME})
    say(
        "",
        f"Pushing {', '.join([*names, RESULTS_NAME])} to {run.repository}.",
        f"Not pushed: {', '.join(kept) or 'nothing'}; checkpoints.",
    )
    what = (
        f"the model was not pushed to {run.repository}; it is safe in {run.folder}, with all results, and the same command "
        "pushes it without training again"
    )
    args, api = run.args, HfApi()
    with explained(what):
        url = api.create_repo(
            run.repository, token=args.hub_token, private=args.hub_private_repo, exist_ok=True
        )
        if (run.folder / CARD_NAME).is_file():
            name_repository(run.folder / CARD_NAME, url.repo_id, base_model, args.hub_revision)
        results = json.dumps(without_paths(run.results), indent=2, default=str) + "\n"
        operations = [CommitOperationAdd(name, str(run.folder / name)) for name in names]
        commit = api.create_commit(
            url.repo_id,
            [*operations, CommitOperationAdd(RESULTS_NAME, results.encode())],
            commit_message="End of training",
            token=args.hub_token,
            revision=args.hub_revision,
        )
    say(f"Pushed: {commit.commit_url}")
    return commit.commit_url


def _base_of_adapter(config: Path) -> str | None:
    """The base model on the Hub of the adapter in a run's folder, if it holds one."""
    if not config.is_file():
        return None
    name = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if name:
        check_base_model(
            name,
            f"Write that name into {config}, as base_model_name_or_path; then the same command pushes it without training.",
        )
    return name or None


def without_paths(value: Any) -> Any:
    """`value` (JSON) in which paths of this machine are file names: absolute ones, and those that are here."""
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if isinstance(value, str) and _is_path(value):
        return Path(value).name
    return value


def _is_path(text: str) -> bool:
    if text.startswith(("/", "~", "./", "../")) or Path(text).is_absolute():
        return True
    try:
        return len(Path(text).parts) > 1 and Path(text).exists()
    except OSError:  # too long for a name
        return False
