"""What the processes of one training agree on."""

from typing import Any

from accelerate.utils import broadcast_object_list


def same_everywhere(value: Any) -> Any:
    """The main process's `value`, on every process: called by each, it waits for all."""
    return broadcast_object_list([value])[0]
