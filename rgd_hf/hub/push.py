"""Pushing to the Hub from a Trainer: checked before training, nothing of the machine, one message if it fails."""

import json
import os
import shlex
import shutil
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, SaveStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from rgd_hf.hub.checks import check_base_model, check_may_write, explained
from rgd_hf.hub.errors import HubError, find_failure
from rgd_hf.trainer_base import TrainerBase

logger = logging.get_logger(__name__)

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model*.safetensors.index.json",
    "adapter_model*.safetensors",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
    "adapter_config.json",
    "adapter_model.bin",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "*.spm",
    "*.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "*.py",
)
"""What makes up a saved model, as patterns of file names: weights, configuration, what prepares its inputs, its code."""

RUN_FOLDERS = ("run-[0-9]*/*", "*/run-[0-9]*/*", "*-seed[0-9]*/*")
"""What is in the folders of single runs, as patterns: those of a hyperparameter search's trials, and those of `compare`."""

_OF_A_RUN = (
    f"{PREFIX_CHECKPOINT_DIR}-*",
    f"last-{PREFIX_CHECKPOINT_DIR}/*",
    "_push-*",
    f"_{TRAINING_ARGS_NAME}",
    TRAINING_ARGS_NAME,
    TRAINER_STATE_NAME,
    "run_settings.json",
    "runs.jsonl",
    "emissions.csv",
)

NOT_PUSHED = ("_*", *_OF_A_RUN, *(f"*/{pattern}" for pattern in _OF_A_RUN), "*tfevents*", *RUN_FOLDERS)
"""Files of an output directory that are never pushed, as patterns: what training writes besides the model, at any depth.

The Trainer's state and arguments and the settings of runs hold paths, the names and the content of TensorBoard's logs its
host name and paths, CodeCarbon's `emissions.csv` the place and the processor. That is a list of what is left out and not of
what is pushed, because what a model consists of is not known: modules, adapters and processors in sub-folders, exported
weights, figures of its card.
"""


class PushMixin(TrainerBase):
    """Adds to the Trainer's pushes: checks before training, nothing about the machine, and errors that say what to do.

    `push_to_hub` pushes what the Trainer's does, except `NOT_PUSHED`: the user's own files go along. The output directory
    keeps the pickled training arguments, which hold paths and need `rgd_hf` to be read, as `_training_args.bin`. A checkpoint that is pushed while
    training (`hub_strategy`) is the saved model alone, in the repository's root; with `"checkpoint"` and
    `"all_checkpoints"` also the folder to resume from: model, optimizer, scheduler, random states, and `trainer_state.json`
    (the log) without paths. `hub_token` is never written to a file.
    """

    if TYPE_CHECKING:
        # Of the ModelCardMixin, beside this class.
        def _bases_of_adapters(self) -> dict[str, str]: ...

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository if it is not there, and check that the token may write to its branch `hub_revision`.

        Raises:
            HubError: it cannot be created, or not be written to; or the model is an adapter that only this machine can load.
        """
        if not self.is_world_process_zero():
            return
        self._check_adapter()
        with explained(f"the repository {self._repository()} cannot be pushed to"):
            # The stock Trainer of 5.20 has no `private`.
            super().init_hf_repo(token=token, **({} if private is None else {"private": private}))
            check_may_write(str(self.hub_model_id), token or self.args.hub_token, self.args.hub_revision)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the Trainer's, but for `NOT_PUSHED`; the model is saved before the Hub is contacted.

        Raises:
            HubError: the Hub refused, or could not be reached. The model is saved nevertheless.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        token, revision = token or self.args.hub_token, revision or self.args.hub_revision
        tags = kwargs.pop("tags", None) or []
        tags = [tags] if isinstance(tags, str) else tags
        if revision != self.args.hub_revision:
            kwargs["revision"] = revision
        kwargs["tags"] = list(dict.fromkeys([*tags, *(getattr(self.model, "model_tags", None) or ())]))
        folder = str(self.args.output_dir)
        try:
            try:
                self._check_adapter()
                if self.hub_model_id is None:
                    self.init_hf_repo(token=token, private=private)
            finally:
                self.create_model_card(**kwargs)
            self._finish_current_push()
            runs = _run_folders(Path(folder))
            if runs:
                logger.warning(
                    f"Not pushed from {folder}: {', '.join(runs)}, which by their names are folders of single runs (a "
                    "hyperparameter search's, compare's)."
                )
            upload: dict[str, Any] = {
                "repo_id": self.hub_model_id,
                "folder_path": folder,
                "commit_message": commit_message,
                "token": token,
                "run_as_future": not blocking,
                "ignore_patterns": list(NOT_PUSHED),
                "revision": revision,
            }
            return HfApi().upload_folder(**upload)
        except Exception as error:
            failure = find_failure(error, writing=True)
            if failure is None:
                raise
            command = ["hf", "upload", self._repository(), folder, "."]
            command += ["--revision", revision] if revision else []
            command += ["--private"] if private or self.args.hub_private_repo else []
            command += [part for pattern in NOT_PUSHED for part in ("--exclude", pattern)]
            raise HubError(
                f"the model could not be pushed to {self._repository()}. {failure} It is kept in {folder}: push it later with "
                f"trainer.push_to_hub(), or on the command line with `{shlex.join(command)}`."
            ) from error

    def _repository(self) -> str:
        named = self.hub_model_id or self.args.hub_model_id
        return named or Path(str(self.args.output_dir)).absolute().name

    def _check_adapter(self) -> None:
        for name, base in self._bases_of_adapters().items():
            check_base_model(
                base,
                "Put that name into the adapter (as `peft.get_peft_model` returns it): "
                f'`model.peft_config["{name}"].base_model_name_or_path = "OWNER/NAME"`.',
            )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token
        folder = Path(str(self.args.output_dir if output_dir is None else output_dir))
        pickled = folder / TRAINING_ARGS_NAME
        if self.args.should_save and folder == Path(str(self.args.output_dir)) and pickled.is_file():
            # The Trainer's push leaves out files of such names.
            os.replace(pickled, folder / f"_{TRAINING_ARGS_NAME}")

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        args: Any = self.args
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        running = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if running and not args.hub_always_push:
            return
        self.push_in_progress: Any
        self.callback_handler.on_push_begin(args, self.state, self.control)
        when = f"epoch {int(self.state.epoch or 0)}"
        if args.save_strategy == SaveStrategy.STEPS:
            when = f"step {self.state.global_step}"
        # Links to its files: `save_total_limit` may delete the checkpoint while it is uploaded.
        staged = _linked(
            Path(checkpoint_folder), Path(str(args.output_dir)) / f"_push-{self.state.global_step}"
        )
        common = {
            "repo_id": self.hub_model_id,
            "folder_path": str(staged),
            "token": args.hub_token,
            "revision": args.hub_revision,
            "run_as_future": True,
        }
        api = HfApi()
        _strip_paths(staged / TRAINER_STATE_NAME)
        message = f"Training in progress, {when}"
        jobs = [api.upload_folder(commit_message=message, allow_patterns=list(MODEL_FILES), **common)]
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = args.hub_strategy == HubStrategy.CHECKPOINT
            jobs.append(
                api.upload_folder(
                    path_in_repo="last-checkpoint" if last else Path(checkpoint_folder).name,
                    commit_message=f"{message}, checkpoint",
                    # The card there is PEFT's own, and empty.
                    ignore_patterns=[f"*{TRAINING_ARGS_NAME}", "*README.md", "*tfevents*"],
                    **common,
                )
            )
        jobs[-1].add_done_callback(lambda _: shutil.rmtree(staged, ignore_errors=True))
        if running and self.push_in_progress is not None:
            self.push_in_progress.jobs.extend(jobs)
        else:
            self._forget_finished_push()
            self.push_in_progress = PushInProgress(jobs)  # type: ignore[arg-type]

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self._forget_finished_push()

    def _forget_finished_push(self) -> None:
        """Say which of the finished uploads failed: the Trainer does not look."""
        for job in getattr(getattr(self, "push_in_progress", None), "jobs", ()):
            error = job.exception()
            if error is not None:
                reason = find_failure(error, writing=True) or error
                logger.warning(f"A checkpoint was not pushed to {self.hub_model_id}: {reason}")
        self.push_in_progress = None


def model_files(folder: Path) -> list[str]:
    """The names of a folder's files that make up the model, by `MODEL_FILES`, sorted."""
    names = sorted(
        path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(("_", "."))
    )
    return list(filter_repo_objects(names, allow_patterns=list(MODEL_FILES)))


def _run_folders(folder: Path) -> list[str]:
    """The folders below `folder`, at any depth, that `RUN_FOLDERS` leaves out, sorted: paths, of nested ones the outermost."""
    inside = {
        f"{name}/file": name
        for path in folder.rglob("*")
        if path.is_dir()
        for name in [path.relative_to(folder).as_posix()]
    }
    left = {
        inside[name] for name in {*inside} - {*filter_repo_objects(inside, ignore_patterns=list(RUN_FOLDERS))}
    }
    return sorted(name for name in left if not left & {str(parent) for parent in PurePosixPath(name).parents})


def _strip_paths(state: Path) -> None:
    """Leave only the name of the best checkpoint in a Trainer's state; the file is replaced, not written into."""
    if state.is_file():
        content = json.loads(state.read_text(encoding="utf-8"))
        best = content.get("best_model_checkpoint")
        if best:
            state.unlink()  # a link to the checkpoint's
            state.write_text(
                json.dumps({**content, "best_model_checkpoint": Path(best).name}, indent=2) + "\n"
            )


def _linked(folder: Path, copy: Path) -> Path:
    """A copy of a folder that takes no room where the file system has hard links."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(folder, copy, copy_function=link))
