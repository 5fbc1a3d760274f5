"""The settings of re-weighting as `TrainingArguments` fields: scalars with command-line help."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from rgd_hf.class_weights import parse as parse_class_weights
from rgd_hf.weightings import WEIGHTINGS, Weighting
from rgd_hf.weightings.choice import (
    as_weighting,
    check_settings,
    option_names,
    settings_of,
    unparsed,
    weighting_of,
)

LEVELS = ("auto", "sample", "token")


@dataclass
class ReweightingArguments:
    """The fields that re-weighting adds; mix into any `TrainingArguments` class, to the left of it.

    Raises:
        ValueError: a value is not allowed; the message says what is.
    """

    reweighting: str = field(
        default="kl",
        metadata={
            "help": "How losses are weighted: by the divergence 'kl' (the paper's main one), 'chi2' or 'reverse_kl', or by "
            "another rule; or 'none', plain training (ERM), the fair baseline.",
            "choices": WEIGHTINGS.keys(),
        },
    )
    reweighting_args: str | None = field(
        default=None,
        metadata={
            "help": "Settings of the rule that have no option of their own, as 'name=value,name=value': those of its class "
            "in rgd_hf.weightings."
        },
    )
    tau: float = field(
        default=1.0,
        metadata={
            "help": "Loss from which on weights stop growing, in units of the loss (> 0). Raise it where most losses "
            "lie above it (many classes, label smoothing, mixup): see clipped_fraction in the logs. For the divergences."
        },
    )
    target_ess: float | None = field(
        default=None,
        metadata={
            "help": "In place of tau: find the temperature of the 'kl' weights in every micro-batch, so that their effective "
            "sample size is this fraction of its items (above 0, below 1; 0.9 is gentle). Their mean is one, and the "
            "unit of the losses does not matter."
        },
    )
    reweighting_level: str = field(
        default="auto",
        metadata={
            "help": "What gets a weight of its own: every 'sample' (its loss is the mean over its tokens), every "
            "'token', or 'auto': the level at which the model's own loss averages.",
            "choices": list(LEVELS),
        },
    )
    normalize_weights: bool = field(
        default=False,
        metadata={
            "help": "Scale the weights to mean one over each optimizer step, so that the step size is that of plain "
            "training (the paper's weights lie between 1 and e)."
        },
    )
    reweighting_warmup_ratio: float = field(
        default=0.0,
        metadata={
            "help": "Fraction of the training steps, from the start, in which all weights are 1 (0 to 1)."
        },
    )
    reweighting_stop_ratio: float = field(
        default=1.0,
        metadata={
            "help": "Fraction of the training steps after which all weights are 1 again (0 to 1; 1 for never)."
        },
    )
    focal_gamma: float = field(
        default=2.0, metadata={"help": "Of 'focal': exponent that plays down easy samples (> 0)."}
    )
    tilt: float = field(
        default=1.0, metadata={"help": "Of 'tilted': weights grow with exp(tilt * loss) (> 0)."}
    )
    cvar_fraction: float = field(
        default=0.5,
        metadata={
            "help": "Of 'cvar': share of a micro-batch's items, its largest losses, that is trained on."
        },
    )
    class_weights: str | None = field(
        default=None,
        metadata={
            "help": "Weights of the classes in the distribution that re-weighting departs from: 'balanced' (from the "
            "training set's labels) or one number a class, joined by commas. With 'none' it is class-weighted ERM."
        },
    )

    fused_lm_head: bool = field(
        default=True,
        metadata={
            "help": "Make the token losses of language models inside the LM head, tile by tile, without the [tokens, "
            "vocabulary] logits, wherever the losses are the same; False for the full logits."
        },
    )

    def __post_init__(self):
        check_reweighting(self)
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()


def check_reweighting(args: "ReweightingArguments", weighting: Weighting | None = None) -> None:
    """Raise `ValueError` where a setting of `args` is not allowed, saying what is.

    Args:
        args: the settings.
        weighting: the rule, where it is not the one that `args` name.
    """
    check_settings(args)
    weighting = weighting_of(args) if weighting is None else weighting
    if args.reweighting_level not in LEVELS:
        raise ValueError(
            f"Unknown reweighting_level {args.reweighting_level!r}: choose one of {', '.join(map(repr, LEVELS))}."
        )
    if args.class_weights is not None:
        parse_class_weights(args.class_weights)
    start, stop = args.reweighting_warmup_ratio, args.reweighting_stop_ratio
    for name, ratio in (("reweighting_warmup_ratio", start), ("reweighting_stop_ratio", stop)):
        if not 0 <= ratio <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, not {ratio!r}.")
    if start >= stop and not weighting.is_plain:
        raise ValueError(
            f"Losses are re-weighted after reweighting_warmup_ratio={start:g} of the steps and before "
            f"reweighting_stop_ratio={stop:g} of them, so never: give a larger reweighting_stop_ratio, or "
            "reweighting='none'."
        )


@dataclass
class ReweightedTrainingArguments(ReweightingArguments, TrainingArguments):
    """`TrainingArguments` with the settings of re-weighting."""


@dataclass
class ReweightedSeq2SeqTrainingArguments(ReweightingArguments, Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments` with the settings of re-weighting."""


def take_weighting(given: dict[str, Any]) -> tuple[Weighting | None, dict[str, Any]]:
    """The rule in `given`, where it is an object or a function and no name; and the fields that stand for it.

    Args:
        given: fields of `ReweightingArguments`, where `reweighting` may be an object or a function.

    Raises:
        TypeError: `reweighting` is neither a name nor a rule.
        ValueError: `given` has settings of rules chosen by name beside an object.
    """
    given = dict(given)
    if isinstance(given.get("reweighting_args"), Mapping):
        given["reweighting_args"] = unparsed(given["reweighting_args"])
    if isinstance(given.get("reweighting", ""), str):
        return None, given
    rule = as_weighting(given["reweighting"])
    of_named_rules = option_names() - {"reweighting"}
    unread = sorted(of_named_rules & set(given))
    if unread:
        raise ValueError(
            f"{', '.join(unread)} is for rules that are chosen by name, but reweighting is {rule.method_name()}: give the "
            "object its settings itself."
        )
    defaults = {name: ReweightingArguments.__dataclass_fields__[name].default for name in of_named_rules}
    return rule, given | defaults | settings_of(rule)


def with_settings(args: Any, given: dict[str, Any]) -> Any:
    """`args` with the settings of re-weighting; a copy where it changes, so that one `args` can serve several trainers.

    Args:
        args: any `TrainingArguments`; where they lack the fields of `ReweightingArguments`, they get the defaults.
        given: fields that override those of `args`.

    Raises:
        ValueError: `args` has a field of the same name that means something else.
    """
    if not isinstance(args, ReweightingArguments):
        fields = ReweightingArguments.__dataclass_fields__
        foreign = sorted(set(fields) & set(getattr(args, "__dataclass_fields__", {})))
        if foreign:
            raise ValueError(
                f"{type(args).__name__} has fields of its own named {', '.join(foreign)}. Derive your arguments from "
                "rgd_hf.ReweightingArguments, so that their meaning is clear."
            )
        given = {name: getattr(args, name, field.default) for name, field in fields.items()} | given
    if given:
        args = copy.copy(args)
        for name, value in given.items():
            setattr(args, name, value)
    return args
