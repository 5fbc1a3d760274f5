"""How a run's losses were weighted, in words, for model cards and tables; each rule describes itself."""

from dataclasses import fields
from typing import Any

from rgd_hf.training_args import ReweightingArguments
from rgd_hf.weightings import WEIGHTINGS, Weighting
from rgd_hf.weightings.choice import option_names, parsed, weighting_of


def settings_in_use(args: Any, rule: Weighting) -> dict[str, Any]:
    """The fields of `ReweightingArguments` that affect the training, and the settings of the rule, by name.

    Args:
        args: arguments that have the fields of `ReweightingArguments`.
        rule: the rule in use.
    """
    config = rule.get_config()
    own = {rule.options.get(name, name): value for name, value in config.items() if name != "name"}
    of_all = [field.name for field in fields(ReweightingArguments) if field.name not in option_names()]
    if rule.is_plain:
        of_all = ["reweighting_level", "class_weights"]
    return {"reweighting": config["name"], **own, **{name: getattr(args, name) for name in of_all}}


def method_name(args: Any, rule: Weighting | None = None) -> str:
    """A short name of the method for tables: `"ERM"`, `"RGD (kl, tau=1)"`, `"Focal loss (gamma=2)"`.

    Args:
        args: arguments that have the fields of `ReweightingArguments`.
        rule: the rule in use, some of whose settings the arguments may lack; None for the one that they name.
    """
    if args.reweighting not in WEIGHTINGS:
        # A rule of a user's own, of which the arguments have name and settings alone.
        settings = [f"{name}={value}" for name, value in parsed(args.reweighting_args).items()]
        shown = ", ".join([*settings, *_schedule(args)])
        name = args.reweighting.rsplit(".", 1)[-1]
        return f"{name} ({shown})" if shown else name
    if type(rule) is not WEIGHTINGS[args.reweighting]:
        rule = weighting_of(args)
    return rule.method_name() if rule.is_plain else rule.method_name(*_schedule(args))


def _schedule(args: Any) -> list[str]:
    details = ["mean-one weights"] if args.normalize_weights else []
    if args.reweighting_warmup_ratio > 0 or args.reweighting_stop_ratio < 1:
        details.append(
            f"{args.reweighting_warmup_ratio:.0%} to {args.reweighting_stop_ratio:.0%} of the steps"
        )
    return details


def describe_weights(args: Any, rule: Weighting, item: str, override: str | None = None) -> str:
    """A paragraph on the weights of a run.

    Args:
        args: arguments that have the fields of `ReweightingArguments`.
        rule: the rule in use.
        item: what is weighted, `"sample"` or `"token"`.
        override: name of the method that computes weights instead of the rule (and may call it), or None.
    """
    prose = rule.describe(item)
    if override is not None:
        prose = (
            f"The weight of every {item} came from the method `{override}` of the Trainer's class, which replaces the weights "
            f"of the settings or departs from them. The settings say: {prose}"
        )
    elif rule.is_plain:
        return prose
    if args.normalize_weights:
        prose += " The weights were then scaled to mean one over the step."
    if args.reweighting_warmup_ratio:
        prose += f" All weights were 1 in the first {args.reweighting_warmup_ratio:.0%} of the steps."
    if args.reweighting_stop_ratio < 1:
        prose += f" All weights were 1 after {args.reweighting_stop_ratio:.0%} of the steps."
    return f'{prose} "Training Loss", where it is shown, includes the weights; evaluation losses are plain means.'
