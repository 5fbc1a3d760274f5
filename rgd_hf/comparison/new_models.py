"""Every run of a comparison starts from a new model: one that was trained before would be ahead of the others."""

import weakref
from typing import Any

from torch import nn


class TrainedBefore:
    """The parameters that the runs of one comparison trained; those that are frozen may be shared."""

    def __init__(self) -> None:
        self._runs: dict[int, tuple[weakref.ref[nn.Parameter], str]] = {}

    def check(self, trainer: Any, run: str) -> None:
        """Raise where a parameter that `trainer` would train was trained before.

        Args:
            trainer: a Trainer with its model, before training.
            run: the run's name, for the message.

        Raises:
            ValueError: an earlier run trained it.
        """
        for name, parameter in trainer.model.named_parameters():
            known, earlier = self._runs.get(id(parameter), (None, ""))
            if parameter.requires_grad and known is not None and known() is parameter:
                raise ValueError(
                    f"make_trainer must build a new model at every call, but {name!r} of that for {run} was trained before, for "
                    f"{earlier}, so that it would be ahead. Build or load the model inside make_trainer. Finished runs are "
                    "kept."
                )

    def add(self, trainer: Any, run: str) -> None:
        """Remember what `trainer` trains; called before and after, as training may put other parameters in their place."""
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                self._runs[id(parameter)] = (weakref.ref(parameter), run)
