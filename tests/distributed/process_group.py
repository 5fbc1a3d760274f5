"""Launch the processes of one gloo group as torchrun would, and collect what each of them found."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent


def launch(scenario: str, processes: int, folder: Path, timeout: float = 500) -> list[dict[str, Any]]:
    """Run the `scenario` of `scenarios.py` on `processes` ranks; return the results of every rank, by name.

    Raises:
        RuntimeError: a rank failed or did not finish within `timeout` seconds; with the end of its output.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent.parent)]),
    }
    ranks = []
    for rank in range(processes):
        with open(folder / f"{scenario}-{rank}.log", "w") as log:
            ranks.append(
                subprocess.Popen(
                    [sys.executable, str(HERE / "scenarios.py"), scenario, str(folder)],
                    env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    deadline = time.monotonic() + timeout
    try:
        while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
            if any(rank.poll() for rank in ranks):
                # A rank has failed: the others may wait for it for long.
                deadline = min(deadline, time.monotonic() + 5)
            time.sleep(0.1)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    if any(rank.returncode for rank in ranks):
        ends = [
            f"--- rank {i}: exit code {rank.returncode}\n{(folder / f'{scenario}-{i}.log').read_text()[-3000:]}"
            for i, rank in enumerate(ranks)
        ]
        raise RuntimeError(f"{scenario} on {processes} processes failed\n" + "\n".join(ends))
    return [torch.load(folder / f"{scenario}-{rank}.pt", weights_only=False) for rank in range(processes)]
