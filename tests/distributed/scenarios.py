"""What the launched processes do: `python scenarios.py SCENARIO FOLDER`, once in every process of the group.

A scenario does many things, because every launch imports torch again.
"""

import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cut_cases import BY_PROCESSES
from cut_training import train

torch.set_num_threads(1)
# Every train() collects garbage; what importing left behind is not worth looking through each time.
gc.freeze()


def cuts(folder: Path) -> dict[str, Any]:
    """Trajectories of all cases for this number of processes."""
    return {str(case): train(case, folder) for case in BY_PROCESSES[int(os.environ["WORLD_SIZE"])]}


SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "cuts": cuts,
}


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    started = time.perf_counter()
    found = SCENARIOS[name](folder)
    torch.save(found, folder / f"{name}-{os.environ['RANK']}.pt")
    print(f"{name} took {time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        # Other ranks may wait for this one, so leave without the clean-up that would wait for them.
        os._exit(1)
