"""What the processes of one training do together: act once, end."""

import gc
from collections.abc import Callable
from typing import Any

from accelerate import PartialState
from torch import distributed

from rgd_hf.hub.errors import HubError
from rgd_hf.processes import same_everywhere
from rgd_hf.scripts.errors import UserError


def on_main_process(action: Callable[[], Any]) -> None:
    """Call `action` on the main process; what the user can put right is raised on every one."""
    problem: Exception | None = None
    if PartialState().is_main_process:
        try:
            action()
        except (HubError, UserError) as error:
            problem = error
    message = same_everywhere(None if problem is None else (type(problem), str(problem)))
    if message is not None:
        raise message[0](message[1]) from problem


def leave_process_group() -> None:
    """End the process group of a launched run whose work is done, if there is one.

    A thread of gloo may otherwise still hold the tensors of the last collective while the interpreter ends, which aborts
    the process (exit code -6). Leaving the group waits for that thread.
    """
    if distributed.is_available() and distributed.is_initialized():
        gc.collect()  # a model that is wrapped for several processes holds the group
        distributed.destroy_process_group()
