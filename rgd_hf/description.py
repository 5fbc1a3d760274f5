"""How a run's losses were weighted, in words: for model cards and tables."""

from dataclasses import fields
from typing import Any

from rgd_hf.divergences import largest_weight
from rgd_hf.training_args import ReweightingArguments
from rgd_hf.weighting import clips_at_tau

PAPER = "[stochastic re-weighted gradient descent](https://arxiv.org/abs/2306.09222)"
FOCAL = "[focal loss](https://arxiv.org/abs/1708.02002)"
TILTED = "[tilted loss](https://arxiv.org/abs/2007.01162)"
CVAR = "[conditional value at risk](https://arxiv.org/abs/2010.05893)"

DIVERGENCE_NAMES = {
    "kl": ("KL divergence", "exp({z})"),
    "chi2": ("chi-squared divergence", "1 + {z}"),
    "reverse_kl": ("reverse KL divergence", "1 / (1 - {z})"),
}
"""How a card calls each divergence, and its weight as a function of z = min(loss, tau) / (tau + 1)."""

# The settings that a single value of `reweighting` reads.
_READ_BY = {"focal_gamma": "focal", "tilt": "tilted", "cvar_fraction": "cvar"}
_READ_BY_ALL = ("reweighting", "reweighting_level", "class_weights")


def settings_in_use(args: Any) -> dict[str, Any]:
    """The fields of `ReweightingArguments` that decide what `args` train, by name."""
    settings = {field.name: getattr(args, field.name) for field in fields(ReweightingArguments)}
    if args.reweighting == "none":
        return {name: settings[name] for name in _READ_BY_ALL}
    if not clips_at_tau(args):
        del settings["tau"]
    return {
        name: value
        for name, value in settings.items()
        if _READ_BY.get(name, args.reweighting) == args.reweighting
    }


def method_name(args: Any) -> str:
    """A short name of the method for tables: `"ERM"`, `"RGD (kl, tau=1)"`, `"Focal loss (gamma=2)"`."""
    if args.reweighting == "none":
        return "ERM"
    name, setting = {
        "focal": ("Focal loss", f"gamma={args.focal_gamma:g}"),
        "tilted": ("Tilted loss", f"tilt={args.tilt:g}"),
        "cvar": ("CVaR", f"top {args.cvar_fraction:.0%}"),
    }.get(args.reweighting, ("RGD", f"{args.reweighting}, tau={args.tau:g}"))
    if args.target_ess is not None:
        setting = f"{args.reweighting}, ESS={args.target_ess:g}"
    details = [setting]
    if args.normalize_weights:
        details.append("mean-one weights")
    if args.reweighting_warmup_ratio > 0 or args.reweighting_stop_ratio < 1:
        details.append(
            f"{args.reweighting_warmup_ratio:.0%} to {args.reweighting_stop_ratio:.0%} of the steps"
        )
    return f"{name} ({', '.join(details)})"


def describe_weights(args: Any, item: str) -> str:
    """A paragraph on the weights of a run that re-weights.

    Args:
        args: with the fields of `ReweightingArguments`.
        item: what has a weight, `"sample"` or `"token"`.
    """
    prose = _describe_method(args, item)
    if args.normalize_weights:
        prose += " The weights were then scaled to mean one over the step."
    if args.reweighting_warmup_ratio:
        prose += f" All weights were 1 in the first {args.reweighting_warmup_ratio:.0%} of the steps."
    if args.reweighting_stop_ratio < 1:
        prose += f" All weights were 1 after {args.reweighting_stop_ratio:.0%} of the steps."
    return f'{prose} "Training Loss", where it is shown, includes the weights; evaluation losses are plain means.'


def _describe_method(args: Any, item: str) -> str:
    if args.target_ess is not None:
        return (
            f"Trained with a variant of {PAPER}: the gradient of every {item} was weighted by `exp(loss / temperature)` "
            "of its own, detached loss, with mean one and the temperature found in every micro-batch, so that the "
            f"effective sample size of the weights was {args.target_ess:g} of its {item}s."
        )
    if args.reweighting == "focal":
        return f"Trained with the gradient of the {FOCAL} of every {item}, gamma = {args.focal_gamma:g}."
    if args.reweighting == "tilted":
        return f"Trained with the gradient of the {TILTED} of every micro-batch, tilt = {args.tilt:g}."
    if args.reweighting == "cvar":
        return (
            f"Trained on the {CVAR}: the mean over the {args.cvar_fraction:.0%} of every micro-batch's {item}s whose "
            "losses were largest."
        )
    name, formula = DIVERGENCE_NAMES[args.reweighting]
    weight = formula.format(z=f"min(loss, {args.tau:g}) / {args.tau + 1:g}")
    return (
        f"Trained with {PAPER} ({name}, tau = {args.tau:g}): in each optimization step, the gradient of every {item} "
        f"was weighted by `{weight}` of its own, detached loss, so by 1 to "
        f"{largest_weight(args.reweighting, args.tau):.3g}."
    )
