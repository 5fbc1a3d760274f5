"""What an observer is: it looks at the items of every training micro-batch and their weights, and changes neither."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rgd_hf.items import Items


class Observer:
    """Looks at what was trained on: derive from it, and give an object to `trainer.add_observer`.

    What it has seen is kept in tensors on the device, each a sum (or a largest or smallest value) over items, micro-batches
    and processes. The Trainer makes them when a training begins, merges those of the processes when it logs, saves them
    with its checkpoints and restores them when a training is resumed.

    Attributes:
        name: name of the observer, and of its file in a checkpoint, `<name>.safetensors`; unique within a Trainer.
        columns: columns of the batch that it reads: kept by the Trainer, not shown to the model. `"sample_index"` is the
            index of each sample in the training set, which the Trainer adds.
        largest: names of the tensors of the state that are merged by their maximum, element by element.
        smallest: names of those that are merged by their minimum. All others are summed.
        kept: names of the tensors that are not reset after a log.
    """

    name: ClassVar[str]
    columns: tuple[str, ...] = ()
    largest: ClassVar[tuple[str, ...]] = ()
    smallest: ClassVar[tuple[str, ...]] = ()
    kept: ClassVar[tuple[str, ...]] = ()

    state: dict[str, Tensor]

    def start(self, trainer: Any) -> None:
        """A training of `trainer` begins: check what is needed, before `initial_state` is asked for."""

    def initial_state(self) -> dict[str, Tensor]:
        """The tensors to start with, by name; what is merged by sums has to start with 0."""
        raise NotImplementedError

    def observe(self, items: Items, weights: Tensor, step: int) -> None:
        """Look at one micro-batch on one process, and change tensors of `state`.

        Called without gradients, on the device: it must not wait for the device.

        Args:
            items: losses, reference weights, batch.
            weights: float32, of the shape of `items.losses`, without the reference weights.
            step: number of the optimizer step, from 1.
        """
        raise NotImplementedError

    def collect(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """What goes into a training log, from what was seen since the last one on all processes.

        Numbers go to all loggers; anything else that JSON has, into `trainer.state.log_history` alone.

        Args:
            state: `self.state`, merged over the processes.
        """
        return {}

    def missing(self, checkpoint: str) -> None:
        """Called when training resumes from a checkpoint without the state of this observer: raise, or start empty."""

    # --- what the Trainer does with the state -----------------------------------------------------------------------

    def reset(self, device: torch.device, kept: tuple[str, ...] = ()) -> None:
        """Reset the state on `device`, except the tensors in `kept`."""
        fresh = {name: _on(device, value) for name, value in self.initial_state().items() if name not in kept}
        self.state = fresh | {name: self.state[name] for name in kept}

    def merged(self, accelerator: Any) -> dict[str, Tensor]:
        """The state of all processes; every process has to call it."""
        found = {}
        for name, value in self.state.items():
            if name in self.largest:
                found[name] = accelerator.gather(value[None]).amax(dim=0)
            elif name in self.smallest:
                found[name] = accelerator.gather(value[None]).amin(dim=0)
            else:
                found[name] = accelerator.reduce(value.clone(), reduction="sum")
        return found

    def load(self, state: Mapping[str, Tensor], is_main_process: bool) -> None:
        """Restore a state that `merged` returned.

        Raises:
            ValueError: it is not a state of this observer, or was recorded with other data.
        """
        shapes = {name: list(value.shape) for name, value in self.state.items()}
        found = {name: list(value.shape) for name, value in state.items()}
        if shapes != found:
            raise ValueError(
                f"{self.name}.safetensors should hold tensors of shapes {shapes}, but has {found}."
            )
        for name, value in self.state.items():
            # One process keeps the sums of all, so that they are counted once.
            if is_main_process or name in self.largest or name in self.smallest:
                value.copy_(state[name])


def _on(device: torch.device, value: Tensor) -> Tensor:
    # MPS knows no float64.
    single = device.type == "mps" and value.dtype == torch.float64
    return value.to(device, torch.float32 if single else value.dtype)
