"""Pushing to the Hub: a repository that is checked before training, nothing of the machine in it, one message if it fails."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import filter_repo_objects
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from rgd_hf.hub_errors import HubError, find_failure

if TYPE_CHECKING:
    from transformers import Trainer as TrainerBase
else:
    TrainerBase = object

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


class PushMixin(TrainerBase):
    """Adds to the Trainer's pushes: a check before training, and errors that say what to do.

    What a push takes along is what the Trainer's does, but for the pickled training arguments, which hold paths of this
    machine and need `rgd_hf` to be read: the output directory keeps them as `_training_args.bin`. A checkpoint that is
    pushed while training (`hub_strategy`) is the saved model alone, in the repository's root; with `"checkpoint"` and
    `"all_checkpoints"` also the folder to resume from, without `training_args.bin`. `hub_token` is never written to a file.
    """

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository if it is not there, and check that the token may write to it.

        Raises:
            HubError: it cannot be created, or not be written to.
        """
        if not self.is_world_process_zero():
            return
        name = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
        with explained(f"the repository {name} cannot be pushed to"):
            super().init_hf_repo(token=token, private=private)
            check_may_write(str(self.hub_model_id), token or self.args.hub_token)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, which see.

        Raises:
            HubError: the Hub refused, or could not be reached. The model is saved nevertheless.
        """
        try:
            return super().push_to_hub(*args, **kwargs)
        except Exception as error:
            failure = find_failure(error, writing=True)
            if failure is None or isinstance(error, HubError):
                raise
            folder, name = self.args.output_dir, self.hub_model_id or self.args.hub_model_id
            raise HubError(
                f"the model could not be pushed to {name or 'the Hub'}. {failure} It is kept in {folder}: push it later with "
                f"trainer.push_to_hub(), or on the command line with `hf upload {name or 'OWNER/NAME'} {folder} . "
                "--exclude 'checkpoint-*' --exclude '_*'`."
            ) from error

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
        message = f"Training in progress, {when}"
        jobs = [api.upload_folder(commit_message=message, allow_patterns=list(MODEL_FILES), **common)]
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = args.hub_strategy == HubStrategy.CHECKPOINT
            jobs.append(
                api.upload_folder(
                    path_in_repo="last-checkpoint" if last else Path(checkpoint_folder).name,
                    commit_message=f"{message}, checkpoint",
                    ignore_patterns=[TRAINING_ARGS_NAME],
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


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what the Hub or the network does wrong inside into a `HubError`: `what`, why, what to do."""
    try:
        yield
    except Exception as error:
        failure = find_failure(error, writing=True)
        if failure is None or isinstance(error, HubError):
            raise
        raise HubError(f"{what}. {failure}") from error


def check_may_write(repository: str, token: str | None = None) -> None:
    """Ask the Hub whether the token may push to an existing repository: creating one that exists tells nothing.

    Raises:
        HfHubHTTPError: it may not. A server that does not answer the question is taken to allow it.
    """
    api = HfApi()
    if "write" not in signature(api.auth_check).parameters:
        return
    try:
        api.auth_check(repository, token=token, write=True)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise


def model_files(folder: Path) -> list[str]:
    """The names of a folder's files that make up the model, by `MODEL_FILES`, sorted."""
    names = sorted(
        path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(("_", "."))
    )
    return list(filter_repo_objects(names, allow_patterns=list(MODEL_FILES)))


def _linked(folder: Path, copy: Path) -> Path:
    """A copy of a folder that takes no room where the file system has hard links."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(folder, copy, copy_function=link))
