"""The file of finished runs from which a killed study resumes; shards, and how times are written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rgd_hf.json_lines import append_line
from rgd_hf.scripts.errors import UserError


def parse_shard(text: str) -> tuple[int, int]:
    """`"i/n"` with 1 <= i <= n as `(i, n)`.

    Raises:
        UserError: it is none.
    """
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise UserError(
            f"--shard must be i/n with i from 1 to n, e.g. 1/4 to 4/4 for four machines, not {text!r}."
        )
    return int(number), int(count)


class RunFile:
    """Finished runs in `runs*.jsonl` of a directory: one JSON object per line, one file per shard.

    Args:
        directory: folder of the study; shards on several machines may share it, or have their files copied together.
        shard: `(i, n)`; its file is the only one that is written.
        key: the entry of a run that tells it from all others.
    """

    def __init__(self, directory: Path, shard: tuple[int, int] = (1, 1), key: str = "name"):
        self.directory, self.key = directory, key
        number, count = shard
        self.path = directory / ("runs.jsonl" if count == 1 else f"runs-{number}of{count}.jsonl")

    def read(self) -> dict[str, dict[str, Any]]:
        """All finished runs by `key`, the last of equals in `lines`.

        Raises:
            UserError: a whole line is no run, or one without `key`.
        """
        return {run[self.key]: run for run in self.lines()}

    def lines(self) -> list[dict[str, Any]]:
        """All finished runs, also equal ones; a line that a killed process left half written is passed over.

        They are in the order of `finished` (a time), where runs tell it: shards may have been cut anew.

        Raises:
            UserError: a whole line is no run, or one without `key`.
        """
        runs = []
        for path in sorted(self.directory.glob("runs*.jsonl")):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                try:
                    run = json.loads(line)
                except ValueError:
                    continue
                if not isinstance(run, dict) or self.key not in run:
                    raise UserError(
                        f"{path}: line {number} has no {self.key!r}, so it is not a run of a study. Give another directory."
                    )
                runs.append(run)
        return sorted(runs, key=lambda run: run.get("finished", ""))

    def prepare(self) -> None:
        """Make the directory and the file, if they are not there, before anything is spent on what goes into them.

        Raises:
            UserError: they cannot be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.path.open("ab").close()
        except OSError as error:
            raise UserError(
                f"cannot write {str(self.path)!r} ({error.strerror}): give another directory as --output_dir."
            ) from error

    def append(self, run: Mapping[str, Any]) -> None:
        """Add one finished run; it is on the disk when this returns."""
        self.prepare()
        append_line(self.path, run)


def duration(seconds: float) -> str:
    """`"40 s"`, `"12 min"`, `"3 h 05 min"`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
