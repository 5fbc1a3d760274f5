"""The line at the end of a training that summarizes the weights."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


def weights_summary(log_history: list[dict[str, Any]]) -> str | None:
    """One line on the weights of the last training log that has weight statistics; None if no log has."""
    for entry in reversed(log_history):
        if "weight_mean" in entry:
            return (
                f"Weights at step {entry['step']}: mean {entry['weight_mean']:.3g}, "
                f"effective sample size {entry['effective_sample_size']:.1%}, "
                f"clipped fraction {entry['clipped_fraction']:.1%}"
            )
    return None


class WeightsSummary(TrainerCallback):
    """Prints `weights_summary` at the end of a training, unless progress is turned off (`disable_tqdm`)."""

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Print the line on the main process."""
        line = weights_summary(state.log_history)
        if line and state.is_world_process_zero and not args.disable_tqdm:
            print(line)
