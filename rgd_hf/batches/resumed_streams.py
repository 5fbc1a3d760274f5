"""What a training that resumes in the middle of a stream does not know: which of its passes it was in."""

import warnings
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import has_length


class ResumedStreams(TrainerCallback):
    """Warns where a training resumes after the first pass over data of unknown length.

    The Trainer takes a pass over such data to be `max_steps` long, and skips so many batches of the first.
    """

    def on_train_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Look at where the training begins."""
        goes_on = 0 < state.global_step < state.max_steps
        if not goes_on or has_length(train_dataloader) or args.ignore_data_skip:
            return
        # It is exactly 1 at the end of an earlier `max_steps` that the first pass had room for.
        if (state.epoch or 0) <= 1:
            return
        warnings.warn(
            f"This training resumes at step {state.global_step}, in pass {int(state.epoch) + 1} over a training set of unknown "
            "length, where the Trainer skips batches of the first pass only: from here on it sees other samples than a training "
            "that was not interrupted. A training set without an end resumes exactly: "
            "train_dataset.repeat(None) of a datasets.IterableDataset, from the first start on.",
            stacklevel=2,
        )
