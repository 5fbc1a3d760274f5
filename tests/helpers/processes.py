"""Several processes of one training, started as torchrun starts them."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

from rgd_hf.scripts.processes import leave_process_group

ROOT = Path(__file__).parents[2]


def run_on(processes: int, script: str | Path, *arguments: str | Path) -> None:
    """Run a Python file on that many processes, which can import `tests`; it has to succeed on each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    # Any free port: tests run side by side.
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", "--master_port", "0"]
    done = subprocess.run(
        [*command, __file__, str(script), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    leave_process_group()
