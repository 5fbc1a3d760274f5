"""One weighting per file: each rule has its formula, settings, state, and its description for logs, cards and tables.

A new rule is one more file here and a row in `WEIGHTINGS`; a custom rule in a script needs neither (docs/extend.md).
"""

from rgd_hf.weightings.base import Weighting, WeightsError
from rgd_hf.weightings.chi2 import Chi2
from rgd_hf.weightings.cvar import CVaR
from rgd_hf.weightings.divergence import Divergence
from rgd_hf.weightings.focal import Focal
from rgd_hf.weightings.function import Function
from rgd_hf.weightings.group_dro import GroupDRO
from rgd_hf.weightings.kl import KL
from rgd_hf.weightings.lin_upper import LinUpper
from rgd_hf.weightings.relative_kl import RelativeKL
from rgd_hf.weightings.reverse_kl import ReverseKL
from rgd_hf.weightings.target_ess import TargetESS
from rgd_hf.weightings.tilted import Tilted
from rgd_hf.weightings.uniform import Uniform

WEIGHTINGS: dict[str, type[Weighting]] = {
    "kl": KL,
    "target_ess": TargetESS,
    "relative_kl": RelativeKL,
    "chi2": Chi2,
    "reverse_kl": ReverseKL,
    "focal": Focal,
    "cvar": CVaR,
    "tilted": Tilted,
    "lin_upper": LinUpper,
    "group_dro": GroupDRO,
    "none": Uniform,
}
"""The rules by name: the values that the setting `reweighting` accepts."""

__all__ = [
    "KL",
    "WEIGHTINGS",
    "CVaR",
    "Chi2",
    "Divergence",
    "Focal",
    "Function",
    "GroupDRO",
    "LinUpper",
    "RelativeKL",
    "ReverseKL",
    "TargetESS",
    "Tilted",
    "Uniform",
    "Weighting",
    "WeightsError",
]
