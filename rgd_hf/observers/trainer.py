"""How a Trainer runs its observers: every micro-batch goes to them, their results to the log, their state to checkpoints."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from rgd_hf.items import Items
from rgd_hf.observers.base import Observer
from rgd_hf.observers.statistics import WeightStatistics
from rgd_hf.observers.summary import WeightsSummary
from rgd_hf.trainer_base import TrainerBase


class ObserversMixin(TrainerBase):
    """Runs the observers of a training; the statistics of the weights are the first of them."""

    # Those that the observers have been shown since the last log, on this process.
    _micro_batches = 0

    def __init__(self, *args: Any, **kwargs: Any):
        self.statistics = WeightStatistics()
        self.observers: list[Observer] = [self.statistics]
        super().__init__(*args, **kwargs)
        self.statistics.reset(self.args.device)
        self.add_callback(WeightsSummary)

    def add_observer(self, observer: Observer | type[Observer]) -> None:
        """Show `observer` the items of every training micro-batch and their weights, from the next training on.

        Args:
            observer: an object, or a class that takes no arguments.

        Raises:
            TypeError: it is not an observer.
            ValueError: another observer has the same name.
            RuntimeError: called during training.
        """
        observer = observer() if isinstance(observer, type) else observer
        if not isinstance(observer, Observer):
            raise TypeError(
                f"add_observer takes an rgd_hf.observers.Observer, not {type(observer).__name__}."
            )
        if observer.name in [other.name for other in self.observers]:
            raise ValueError(
                f"The Trainer has an observer named {observer.name!r} already: its file in checkpoints has that name. Set "
                f"another name on {type(observer).__name__}."
            )
        if self.is_in_train:
            raise RuntimeError("Observers cannot be added during training: add them before train().")
        self.observers.append(observer)

    def _start_observers(self) -> None:
        for observer in self.observers:
            observer.start(self)
            observer.reset(self.args.device)

    def _show_observers(self, items: Items, weights: Tensor) -> None:
        """Show them a micro-batch; called without gradients."""
        self._micro_batches += 1
        for observer in self.observers:
            observer.observe(items, weights, self.state.global_step + 1)

    def _collect(self, observer: Observer) -> dict[str, Any]:
        """What `observer` saw since the last log; every process has to call it."""
        found = observer.collect(observer.merged(self.accelerator))
        observer.reset(self.args.device, observer.kept)
        return found

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        for observer in self.observers:
            state = observer.merged(self.accelerator)
            if self.args.should_save:
                save_file(state, str(Path(output_dir) / f"{observer.name}.safetensors"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        for observer in self.observers:
            path = Path(checkpoint) / f"{observer.name}.safetensors"
            if path.is_file():
                observer.load(load_file(str(path)), self.accelerator.is_main_process)
            else:
                observer.missing(checkpoint)
