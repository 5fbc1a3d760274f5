"""JSON on disk where a process may be killed while it writes: lines of a file, and whole files."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[Any]:
    """The objects of a file, in order; a line that is not valid JSON (the last one of a killed process) is skipped.

    Args:
        path: a file; one that does not exist has no lines.
    """
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one object to a file; it is on disk when this returns.

    Args:
        path: the file; it and its directory are created if missing.
        record: the object; values that `json` cannot write are written as strings.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")  # the half line of a killed process must not swallow this one
        file.write(json.dumps(record, sort_keys=True, default=str).encode("utf-8") + b"\n")
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """Write JSON to a temporary file, then move it into place: a killed process leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(partial, path)
