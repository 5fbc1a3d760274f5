"""How a report calls the methods of a study, in which order."""

import re

from rgd_hf.weightings import WEIGHTINGS

_NOT_RULES = {
    "erm": "ERM",
    "erm_lr_scaled": "ERM, learning rate × mean weight",
    "label_smoothing": "label smoothing",
    "class_weights": "class weights",
}
_NAMES = {"coral": "CORAL", "miro": "MIRO", "swad": "SWAD", "ema": "EMA", "lightgbm": "LightGBM"}
TITLES = {name: rule.short or name for name, rule in WEIGHTINGS.items()} | _NOT_RULES | _NAMES
_PARTS = (
    (r"ess_(\d+)", r"ESS \1 %"),
    (r"(\w+?)_tau([\d.]+)", r"{}, τ = \2"),
    (r"(\w+?)_tau_chosen", r"{}, τ chosen"),
)
_ENDINGS = {
    "_normalized": ", mean-one weights",
    "_first_half": ", first half only",
    "_second_half": ", second half only",
    "_kl": " + KL",
}


def method_title(name: str) -> str:
    """A method's name in words: `"kl_tau1_normalized"` is `"KL, τ = 1, mean-one weights"`; unknown names stay."""
    if name in TITLES:
        return TITLES[name]
    for ending, words in _ENDINGS.items():
        if name.endswith(ending):
            return method_title(name.removesuffix(ending)) + words
    for pattern, words in _PARTS:
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(words).format(TITLES.get(found[1], found[1]))
    return name.replace("_", " ")


def difference_title(ours: str, theirs: str = "erm") -> str:
    """`"KL (τ = 1) minus ERM"`: what a title has after its comma is put in brackets, or it would read as an equation."""
    titles = (method_title(name).partition(", ") for name in (ours, theirs))
    return " minus ".join(f"{head} ({rest})" if rest else head for head, _, rest in titles)


def in_order(names: set[str]) -> list[str]:
    """ERM and what stands in for it, the rules in the order of their table, other methods; numbers by size."""
    rules = [name for name in WEIGHTINGS if name != "none"]
    families = ("erm", *("ess" if name == "target_ess" else name for name in rules), *list(_NOT_RULES)[2:])

    def key(name: str) -> tuple:
        found = [i for i, family in enumerate(families) if name.startswith(family)]
        # ESS targets from gentle to strong, tau from small to large.
        number = [float(n) for n in re.findall(r"\d+", name)] if not name.startswith("chi2") else []
        signed = [-n for n in number] if name.startswith("ess") else number
        return (name != "erm", max(found, default=len(families)), signed or [99.0], name)

    return sorted(names, key=key)
