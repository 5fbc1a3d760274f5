"""What is raised where a method and a training do not go together."""

from pathlib import Path


class SetupError(ValueError):
    """A method cannot be used with this model, these settings, this data or this checkpoint; the message says why."""


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
