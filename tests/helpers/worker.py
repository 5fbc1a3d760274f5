"""A process that calls the functions of one module when asked: imports and environment are paid for once."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class RemoteError(Exception):
    """What a function raised in the other process.

    Attributes:
        kind: name of its type.
        trace: its traceback.
    """

    def __init__(self, kind: str, message: str, trace: str):
        super().__init__(message)
        self.kind, self.trace = kind, trace


class Worker:
    """Starts a process; calling the worker calls a function there.

    Args:
        module: name of the module with the functions; arguments and results are JSON.
        environment: of the process.
        log: where its output goes.
    """

    def __init__(self, module: str, environment: Mapping[str, str], log: Path):
        self.log = log
        path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "recipes")))
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, __file__, module],
                env={**environment, "PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )

    def __call__(self, function: str, *arguments: Any, **options: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([function, arguments, options]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the process ended: {self.log.read_text()[-3000:]}"
        answer = json.loads(line)
        if "error" in answer:
            raise RemoteError(*answer["error"])
        return answer["result"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()


def serve(module: str) -> None:
    """Answer calls until the input ends; what functions print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.005))  # between the clients' retries
    functions = importlib.import_module(module)
    for line in sys.stdin:
        function, arguments, options = json.loads(line)
        try:
            answer = {"result": getattr(functions, function)(*arguments, **options)}
        except BaseException as error:
            print(traceback.format_exc(), file=sys.stderr)
            answer = {"error": [type(error).__name__, str(error), traceback.format_exc()]}
        answers.write(json.dumps(answer, default=str) + "\n")
        answers.flush()
        if "error" in answer and answer["error"][0] == "KeyboardInterrupt":
            break


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve(sys.argv[1])
