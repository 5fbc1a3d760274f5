"""What a run took and where it came from: peak memory, commit, device and processor; and a recipe that runs without a word."""

import contextlib
import io
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import datasets
import torch
import transformers

from rgd_hf.scripts.messages import console

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_CPU_INFO = Path("/proc/cpuinfo")
_RESET_PEAK = "5"


def reset_peak_memory() -> None:
    """Let `peak_memory_mb` count from here, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text(_RESET_PEAK)


def peak_memory_mb() -> float:
    """Peak memory in MB (2**20 bytes): that of the GPU if there is one, else the resident memory of the process.

    The latter counts from `reset_peak_memory` on Linux, where it includes what the process held at that moment (the
    libraries, about 600 MB); where the system cannot reset it, it is the largest of the process's life.
    """
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return round(int(line.split()[1]) / 2**10, 1)
    except (OSError, StopIteration):
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(largest / (2**20 if sys.platform == "darwin" else 2**10), 1)


def use_plain_attention_on_cpu() -> None:
    """Let attention be plain matrix products where there is no GPU.

    At the length of sentences torch's fused attention takes a third of a training step there, most of it in the backward.
    """
    if not torch.accelerator.is_available():
        torch.backends.cuda.enable_flash_sdp(False)


@cache
def git_commit(directory: Path) -> str | None:
    """The commit of the repository that `directory` lies in, with `+dirty` if files differ from it; None without one."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--short", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{commit}+dirty" if commit and changed else commit


@contextlib.contextmanager
def quiet_and_apart() -> Iterator[io.StringIO]:
    """Keep what is printed, and undo what is done to the environment variables; yields what was printed."""
    output, environment = io.StringIO(), dict(os.environ)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    was_quiet, console.quiet = console.quiet, True
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            yield output
    finally:
        console.quiet = was_quiet
        datasets.enable_progress_bars()
        transformers.logging.enable_progress_bar()
        transformers.logging.set_verbosity(verbosity)
        os.environ.clear()
        os.environ.update(environment)


def device_name() -> str:
    """What trains: the accelerator's name, or `"cpu"`."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


@cache
def processor_name() -> str:
    """The processor's model and the instructions that torch takes of it, `"AMD EPYC 9B14, AVX512"`: last bits depend on both."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = re.findall(r"^model name\s*:\s*(.+?)\s*$", _CPU_INFO.read_text(), flags=re.MULTILINE)
        model = names[0] if names else model
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"
