"""How a report calls the methods of a study, in which order."""

import re

TITLES = {
    "erm": "ERM",
    "erm_lr_scaled": "ERM, learning rate × mean weight",
    "chi2": "χ²",
    "reverse_kl": "reverse KL",
    "focal": "focal loss",
    "label_smoothing": "label smoothing",
    "class_weights": "class weights",
    "cvar": "CVaR",
    "tilted": "tilted loss",
}
_PARTS = (
    (r"ess_(\d+)", r"ESS \1 %"),
    (r"kl_tau([\d.]+)", r"KL, τ = \1"),
    (r"kl", "KL"),
    (r"chi2", "χ²"),
    (r"reverse_kl", "reverse KL"),
)
_ENDINGS = {
    "_normalized": ", mean-one weights",
    "_first_half": ", first half only",
    "_second_half": ", second half only",
}


def method_title(name: str) -> str:
    """A method's name in words: `"kl_tau1_normalized"` is `"KL, τ = 1, mean-one weights"`; unknown names stay."""
    if name in TITLES:
        return TITLES[name]
    for ending, words in _ENDINGS.items():
        if name.endswith(ending):
            return method_title(name.removesuffix(ending)) + words
    for pattern, words in _PARTS:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, words, name)
    return name.replace("_", " ")


def in_order(names: set[str]) -> list[str]:
    """ERM and what stands in for it, KL, ESS and other divergences, then rivals; numbers by size."""
    families = (
        "erm",
        "kl",
        "ess",
        "chi2",
        "reverse_kl",
        "focal",
        "label_smoothing",
        "class_weights",
        "cvar",
        "tilted",
    )

    def key(name: str) -> tuple:
        found = [i for i, family in enumerate(families) if name.startswith(family)]
        # ESS targets from gentle to strong, tau from small to large.
        number = [float(n) for n in re.findall(r"\d+", name)] if not name.startswith("chi2") else []
        signed = [-n for n in number] if name.startswith("ess") else number
        return (max(found, default=len(families)), signed or [99.0], name)

    return sorted(names, key=key)
