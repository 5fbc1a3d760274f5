"""The ranges of training arguments that transformers takes as they are, and that fail, or do nothing, much later."""

from collections.abc import Mapping

from transformers import TrainingArguments

from rgd_hf.scripts.errors import UserError

AT_LEAST_ONE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
SEEDS = 2**32
# Settings of `TrainingArguments` that recipes for classification cannot follow, and what to do instead.
OF_CLASSIFICATION = {
    "prediction_loss_only": "Leave it out: evaluation needs the predictions to score them.",
    "eval_do_concat_batches": "Leave it out: scores are of all batches together.",
    "label_names": "Leave it out: the recipe itself makes the column of labels.",
    "length_column_name": "Leave it out: the recipe itself makes the column of lengths where it needs one.",
}
# Of those whose batches are drawn by samplers of their own.
ORDER = {"train_sampling_strategy": "Leave it out: the order of the training samples is the recipe's own."}
DATA_SEED = {"data_seed": "Leave it out: --seed decides the order of the training samples too."}
HARMLESS = {"label_names": ["labels"]}


def check_ranges(args: TrainingArguments) -> None:
    """Raise `UserError` where a number is out of its range, with what is allowed."""
    for name in AT_LEAST_ONE:
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(args, name)}.")
    if not args.learning_rate >= 0:
        raise UserError(f"--learning_rate must be at least 0, not {args.learning_rate:g}.")
    if not 0 <= args.label_smoothing_factor < 1:
        raise UserError(
            f"--label_smoothing_factor must lie between 0 and 1 (0 is none), not {args.label_smoothing_factor:g}."
        )
    if args.max_steps == 0 or (args.max_steps < 0 and not args.num_train_epochs > 0):
        raise UserError(
            f"--num_train_epochs {args.num_train_epochs:g} and --max_steps {args.max_steps} train nothing: give a number of "
            "epochs above 0, or of steps from 1."
        )
    for name in ("seed", "data_seed"):
        check_seed(name, getattr(args, name))


def check_usable(args: TrainingArguments, unusable: Mapping[str, str]) -> None:
    """Raise `UserError` where a setting has another value than transformers' default, and cannot be followed.

    Args:
        args: training arguments.
        unusable: names of settings, and a sentence on what to do instead.
    """
    for name, instead in unusable.items():
        value = getattr(args, name)
        if value not in (type(args).__dataclass_fields__[name].default, HARMLESS.get(name)):
            raise UserError(f"--{name} {value} cannot be followed by this recipe. {instead}")


def check_seed(option: str, seed: int | None) -> None:
    """Raise `UserError` for a seed that random generators do not take."""
    if seed is not None and not 0 <= seed < SEEDS:
        raise UserError(f"--{option} must lie between 0 and {SEEDS - 1}, not {seed}.")
