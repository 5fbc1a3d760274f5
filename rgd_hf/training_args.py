"""The settings of re-weighting as `TrainingArguments` fields: scalars with command-line help."""

import copy
import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from rgd_hf.class_weights import as_setting
from rgd_hf.class_weights import parse as parse_class_weights
from rgd_hf.weightings import WEIGHTINGS, Weighting
from rgd_hf.weightings.choice import (
    as_weighting,
    check_settings,
    option_names,
    rule_name,
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
            "help": "How each sample is weighted by its loss: by the divergence 'kl' (the paper's main one), 'chi2' or "
            "'reverse_kl', or by another rule; 'none' is plain training (ERM), the fair baseline.",
            "choices": WEIGHTINGS.keys(),
        },
    )
    reweighting_args: str | None = field(
        default=None,
        metadata={
            "help": "Further settings of the chosen rule, as 'name=value,name=value': those of its class in "
            "rgd_hf.weightings that have no option of their own, e.g. 'decay=0.9' with 'relative_kl'."
        },
    )
    tau: float = field(
        default=1.0,
        metadata={
            "help": "Clipping threshold of 'kl', 'chi2' and 'reverse_kl', in units of the loss (> 0): losses above tau get "
            "the same weight. Raise it if most losses are above it (many classes, label smoothing, mixup): see "
            "clipped_fraction in the logs."
        },
    )
    target_ess: float | None = field(
        default=None,
        metadata={
            "help": "Instead of tau: in every micro-batch, choose the temperature of the 'kl' weights so that their effective "
            "sample size is this fraction of its items (between 0 and 1; 0.9 is gentle). The weights have mean one and "
            "do not depend on the scale of the losses."
        },
    )
    reweighting_level: str = field(
        default="auto",
        metadata={
            "help": "What is weighted: each 'sample' (its loss is the mean over its tokens), each 'token', or 'auto', the "
            "level that the model's own loss averages over.",
            "choices": list(LEVELS),
        },
    )
    normalize_weights: bool = field(
        default=False,
        metadata={
            "help": "Scale the weights to mean one over each optimizer step, so that the step size stays that of plain "
            "training. Without, the weights of 'kl' are between 1 and exp(tau / (tau + 1)): 1.65 at tau=1, below e at any."
        },
    )
    reweighting_warmup_ratio: float = field(
        default=0.0,
        metadata={
            "help": "Fraction of the training steps at the start during which all weights are 1 (0 to 1)."
        },
    )
    reweighting_stop_ratio: float = field(
        default=1.0,
        metadata={
            "help": "Fraction of the training steps after which all weights are 1 again (0 to 1; 1 means never)."
        },
    )
    focal_gamma: float = field(
        default=2.0,
        metadata={"help": "Exponent of the 'focal' rule (> 0): the larger, the less easy samples count."},
    )
    tilt: float = field(
        default=1.0, metadata={"help": "Tilt of the 'tilted' rule (> 0): weights grow with exp(tilt * loss)."}
    )
    cvar_fraction: float = field(
        default=0.5,
        metadata={
            "help": "Fraction of a micro-batch's items that the 'cvar' rule trains on: those with the largest losses "
            "(above 0, at most 1)."
        },
    )
    class_weights: str | None = field(
        default=None,
        metadata={
            "help": "Class weights, multiplied with the weights of the chosen rule: 'balanced' (from the labels of the "
            "training set) or one number per class, joined by commas. With 'none' this is class-weighted ERM."
        },
    )

    fused_lm_head: bool = field(
        default=True,
        metadata={
            "help": "Compute the token losses of language models tile by tile inside the LM head, without the [tokens, "
            "vocabulary] logits, wherever the losses are the same; False computes the full logits."
        },
    )

    def __post_init__(self):
        self.class_weights = as_setting(self.class_weights)
        check_reweighting(self)
        of_rules = {name: ReweightingArguments.__dataclass_fields__[name].default for name in option_names()}
        given = {
            name: getattr(self, name) for name, default in of_rules.items() if getattr(self, name) != default
        }
        check_read(given, self.reweighting, self.target_ess)
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()


def check_reweighting(args: "ReweightingArguments", weighting: Weighting | None = None) -> None:
    """Raise `ValueError` where a setting of `args` is not allowed, saying what is.

    Args:
        args: the settings.
        weighting: the rule in use, if it is not the one that `args` name.
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
            f"reweighting_stop_ratio={stop:g} of them, that is, never: set a smaller reweighting_warmup_ratio or a larger reweighting_stop_ratio, or "
            "reweighting='none'."
        )


@dataclass
class ReweightedTrainingArguments(ReweightingArguments, TrainingArguments):
    """`TrainingArguments` with the settings of re-weighting."""


@dataclass
class ReweightedSeq2SeqTrainingArguments(ReweightingArguments, Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments` with the settings of re-weighting."""


_NUMBERS = itertools.count()


class GivenArguments:
    """The arguments that a Trainer was given, where it trains with a copy of them.

    The stock Trainer has no copy: whatever is set on the arguments after it was made counts. Where several Trainers are made
    from one object, that is so for the last one alone: what is set for it is not for those before.

    Args:
        given: the user's object.
        args: the Trainer's copy, just made.
        fixed: names of fields that were also given to the Trainer itself, which come before those of `given`.
    """

    def __init__(self, given: Any, args: Any, fixed: Collection[str]):
        self.given, self._number = given, next(_NUMBERS)
        given._rgd_hf_used_by = self._number
        names = {*type(given).__dataclass_fields__, *ReweightingArguments.__dataclass_fields__} - {*fixed}
        self._seen = {name: getattr(args, name) for name in names if hasattr(args, name)}

    def bring_up_to_date(self, args: Any) -> None:
        """Set on `args` what was since set on the user's object, except where `args` were themselves changed since.

        Args:
            args: the Trainer's copy, in place.
        """
        if self.given._rgd_hf_used_by != self._number:
            return
        for name, before in self._seen.items():
            now = getattr(self.given, name, before)
            if name == "class_weights":
                now = as_setting(now)
            if now is not before:
                self._seen[name] = now
                if getattr(args, name) is before:
                    setattr(args, name, now)


def _set_in(given: Mapping[str, Any]) -> set[str]:
    return {name for name, value in given.items() if value is not None}


def take_weighting(given: dict[str, Any]) -> tuple[Weighting | None, dict[str, Any]]:
    """The rule in `given`, if it is an object or a function rather than a name, and the fields that describe it.

    Args:
        given: fields of `ReweightingArguments`, where `reweighting` may be an object or a function.

    Raises:
        TypeError: `reweighting` is neither a name nor a rule.
        ValueError: `given` has an object and also settings of rules that are chosen by name.
    """
    given = dict(given)
    if isinstance(given.get("reweighting_args"), Mapping):
        given["reweighting_args"] = unparsed(given["reweighting_args"])
    if isinstance(given.get("reweighting", ""), str):
        return None, given
    rule = as_weighting(given["reweighting"])
    of_named_rules = option_names() - {"reweighting"}
    unread = sorted(of_named_rules & _set_in(given))
    if unread:
        raise ValueError(
            f"{', '.join(unread)} is for rules that are chosen by name, but reweighting is {rule.method_name()}: pass the "
            "settings to the object itself."
        )
    defaults = {name: ReweightingArguments.__dataclass_fields__[name].default for name in of_named_rules}
    return rule, given | defaults | settings_of(rule)


def unread_settings(name: str, target_ess: float | None) -> set[str]:
    """The settings of rules that the one called `name` does not read; none of `"none"`, which may have those of the others.

    Args:
        name: as `reweighting`; of an unknown name there are none.
        target_ess: as the setting of that name.

    Raises:
        ValueError: `name` is no string.
    """
    rule = WEIGHTINGS.get(rule_name(name, target_ess))
    if rule is None or rule.is_plain:
        return set()
    return option_names() - {"reweighting", "reweighting_args", *rule.options.values()}


def check_read(
    given: Mapping[str, Any], name: str, target_ess: float | None, dashes: str = "", takes_args: bool = True
) -> None:
    """Raise `ValueError` where `given` has a setting of rules that the one called `name` does not read.

    Args:
        given: fields of `ReweightingArguments` that the user gave for this rule.
        name: as `reweighting`; an unknown name is left to `weighting_of`.
        target_ess: the one in use, given or not.
        dashes: what stands before the names of options of a command line.
        takes_args: whether `reweighting_args` can be given beside them.
    """
    unread = sorted(_set_in(given) & unread_settings(name, target_ess))
    if not unread:
        return
    rule = WEIGHTINGS[rule_name(name, target_ess)]
    shown = ", ".join(dashes + option for option in unread)
    if rule is not WEIGHTINGS[name] and unread == ["tau"]:
        raise ValueError(
            f"{shown} is not read where {dashes}target_ess is set, which takes its place: leave out one of them."
        )
    own = [f"{field.name}=..." for field in fields(rule) if field.name not in rule.options]  # type: ignore[arg-type]
    has = f"; its own settings go into {dashes}reweighting_args {','.join(own)}" if own else ""
    if own and not takes_args:
        has = f"; its own settings are those of an object, reweighting={rule.__name__}({', '.join(own)})"
    readers = [key for key, each in WEIGHTINGS.items() if set(unread) & set(each.options.values())]
    raise ValueError(
        f"{shown} is no setting of {name!r}, which would ignore it{has}. Leave it out, or choose a rule that reads it "
        f"({dashes}reweighting {', '.join(readers)})."
    )


def with_settings(args: Any, given: dict[str, Any]) -> Any:
    """`args` with the settings of re-weighting; a copy where it changes, so that one `args` can serve several trainers.

    Args:
        args: any `TrainingArguments`; where they lack the fields of `ReweightingArguments`, they get the defaults.
        given: fields that override those of `args`.

    Returns:
        Arguments whose `class_weights` are None or a string, also where `args` or `given` have a list, dict or tensor.

    Raises:
        ValueError: the class weights have none of these forms; or `args` without the fields have an attribute named like
            one, which may mean something else. One with the value that `given` has is accepted, and so is None where that is
            the field's default.
    """
    if not isinstance(args, ReweightingArguments):
        defaults = {name: field.default for name, field in ReweightingArguments.__dataclass_fields__.items()}
        _check_names_are_free(args, {name: None for name in defaults if defaults[name] is None} | given)
        given = {name: getattr(args, name, default) for name, default in defaults.items()} | given
    if given:
        args = copy.copy(args)
        for name, value in given.items():
            setattr(args, name, value)
    args.class_weights = as_setting(args.class_weights)
    return args


def _check_names_are_free(args: Any, expected: Mapping[str, Any]) -> None:
    """Raise `ValueError` where `args`, other than `ReweightingArguments`, have a setting's name for something of their own.

    What is set under such a name after this check is a setting, in copies and pickles too.

    Args:
        args: any `TrainingArguments`; marked where all the names are free.
        expected: the values that need not be told apart from settings.
    """
    names = ReweightingArguments.__dataclass_fields__
    own = {name: getattr(args, name) for name in names if hasattr(args, name)}
    # Arguments that a Trainer completed have them all; those of an older version lack what came later.
    if hasattr(args, "_rgd_hf_names_are_settings") or len(own) > len(names) / 2:
        return
    if not own:
        args._rgd_hf_names_are_settings = True
    foreign = [
        name
        for name, value in own.items()
        if name not in expected
        or not isinstance(value, bool | int | float | str | None)
        or value != expected[name]
    ]
    if foreign:
        settings = ", ".join(f"{name}=..." for name in foreign)
        raise ValueError(
            f"{type(args).__name__} has attributes of its own named {', '.join(foreign)}, but settings of re-weighting have "
            "these names. If they mean something else, rename them. If they are meant as the settings, give those to the "
            f"Trainer instead, ReweightedTrainer(..., {settings}), or use rgd_hf.ReweightedTrainingArguments(..., {settings})."
        )
