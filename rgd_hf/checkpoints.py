"""The checkpoint that an interrupted training resumes from."""

import json
from pathlib import Path


def last_checkpoint(directory: str | Path) -> str | None:
    """The newest whole checkpoint in `directory`; one that a killed process left half written is passed over.

    Returns:
        Its path, or None where there is none, as where `directory` does not exist.
    """
    steps = {}
    for path in Path(directory).glob("checkpoint-*"):
        state = path / "trainer_state.json"  # written last
        number = path.name.removeprefix("checkpoint-")
        if number.isdigit() and state.is_file() and _is_json(state):
            steps[int(number)] = str(path)
    return steps[max(steps)] if steps else None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
