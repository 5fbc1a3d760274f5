"""The checkpoint that an interrupted training resumes from."""

import json
import re
from itertools import takewhile
from pathlib import Path

# As the Trainer names the optimizer's state: of one process, XLA or SageMaker; of FSDP, a file or a folder of shards; of
# FSDP on XLA. DeepSpeed keeps optimizer and schedule in a folder of its own.
_OPTIMIZERS = ("optimizer.pt*", "optimizer*.bin", "optimizer_*", "rank*-of-*-optimizer.pt")
_SCHEDULER = "scheduler.pt"
_DEEPSPEED = "global_step*"


def last_checkpoint(directory: str | Path) -> str | None:
    """The newest whole checkpoint in `directory`, from which a training continues as if it had not been interrupted.

    One that a killed process left half written is passed over, and so is one without the states of optimizer and schedule
    (`save_only_model`): the Trainer would begin both again without a word.

    Returns:
        Its path, or None where there is none, as where `directory` does not exist.
    """
    return next((str(path) for path in _newest_first(directory) if _is_whole(path)), None)


def passed_over(directory: str | Path) -> str | None:
    """A sentence on the checkpoints that `last_checkpoint` passes over, to be printed; None where there are none.

    Those older than the whole one that it finds do not count.
    """
    found = _newest_first(directory)
    left = [*takewhile(lambda path: not _is_whole(path), found)]
    if not left:
        return None
    older = len(left) < len(found)
    return (
        f"note: {', '.join(path.name for path in reversed(left))} in {directory}: no training can resume from there, without a state of "
        f"optimizer and schedule (save_only_model) or only half written; {'an older one is whole' if older else 'it begins anew'}. "
        "Move them elsewhere before the next start: save_total_limit counts them, and they look newer than what is written now."
    )


def step_of(path: Path) -> int | None:
    """The step of a checkpoint of the Trainer's, by its name; None of another name."""
    found = re.fullmatch(r"checkpoint-(\d+)", path.name)
    return int(found[1]) if found else None


def _newest_first(directory: str | Path) -> list[Path]:
    steps = {step_of(path): path for path in Path(directory).glob("checkpoint-*")}
    return [steps[step] for step in sorted((step for step in steps if step is not None), reverse=True)]


def _is_whole(path: Path) -> bool:
    state = path / "trainer_state.json"  # written last
    if not (state.is_file() and _is_json(state)):
        return False
    if any(path.glob(_DEEPSPEED)):
        return True
    return (path / _SCHEDULER).is_file() and any(any(path.glob(name)) for name in _OPTIMIZERS)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
