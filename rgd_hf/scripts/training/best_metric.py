"""The metric that chooses the best model: a wrong name is refused before training, not after its first epoch."""

from collections.abc import Iterable

from transformers import TrainingArguments

from rgd_hf.scripts.errors import UserError, listed

SCHEDULERS = ("reduce_lr_on_plateau", "greedy")
"""Schedules for which transformers sets `metric_for_best_model` to the loss if it is not given."""


def asked_metric(args: TrainingArguments) -> str | None:
    """`metric_for_best_model` without the prefix `eval_`; None where nobody asked for one."""
    name = args.metric_for_best_model
    if name is None or (name == "loss" and args.lr_scheduler_type in SCHEDULERS):
        return None
    return name.removeprefix("eval_")


def check_metric(args: TrainingArguments, names: Iterable[str]) -> None:
    """Check that evaluation computes what the best model is chosen by.

    Args:
        args: training arguments with `metric_for_best_model`.
        names: metrics that evaluation computes, without prefix.

    Raises:
        UserError: it does not; the message lists what it computes.
    """
    asked, known = asked_metric(args), list(names)
    if asked is not None and asked not in known:
        raise UserError(
            f"--metric_for_best_model {args.metric_for_best_model}: evaluation here computes {listed(known)}; choose one "
            "of them."
        )
