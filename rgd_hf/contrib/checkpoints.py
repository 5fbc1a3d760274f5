"""The folders that a Trainer writes checkpoints to, and the files of a method in them."""

import re
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rgd_hf.contrib.errors import SetupError


def is_checkpoint(output_dir: str | None, internal_call: bool) -> bool:
    """Whether `save_model` is called for a checkpoint: by the Trainer itself, with the folder of a step.

    Args:
        output_dir: argument of `save_model`.
        internal_call: its `_internal_call`.
    """
    name = "" if output_dir is None else Path(output_dir).name
    return internal_call and re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", name) is not None


def state_file(checkpoint: str, name: str, method: str) -> Path:
    """The file of a checkpoint that keeps the state of a method.

    Args:
        checkpoint: folder to resume from.
        name: name of the file.
        method: what writes it, as the user turns it on and off.

    Raises:
        SetupError: the checkpoint was written without the method.
    """
    path = Path(checkpoint) / name
    if not path.is_file():
        raise SetupError(
            f"{checkpoint} has no {name}: it was written without {method}. Resume without it, or start a new training from "
            "the model of the checkpoint."
        )
    return path
