"""Methods of other papers that go under or beside re-weighting: mixins for Trainer classes of your own.

Each is listed before the Trainer that it changes, and they combine, but for SWAD with EMA:

    class MyTrainer(CORALMixin, SWADMixin, ReweightedTrainer): ...

`CORALMixin` and `MIROMixin` add a penalty to the re-weighted objective, so they need a Trainer of this package
(`reweighting="none"` is plain training). `SWADMixin` and `EMAMixin` average weights and work with any Trainer. GroupDRO is a
rule of weights: `ReweightedTrainer(..., reweighting=rgd_hf.weightings.GroupDRO(num_groups=3))`.
"""

from rgd_hf.contrib.coral import CORALMixin, coral_penalty
from rgd_hf.contrib.ema import EMAMixin
from rgd_hf.contrib.errors import SetupError
from rgd_hf.contrib.miro import MIROMixin, Variances, miro_penalty
from rgd_hf.contrib.penalty import PenaltyMixin
from rgd_hf.contrib.swad import LossValley, SWADMixin, WeightAverage

__all__ = [
    "CORALMixin",
    "EMAMixin",
    "LossValley",
    "MIROMixin",
    "PenaltyMixin",
    "SWADMixin",
    "SetupError",
    "Variances",
    "WeightAverage",
    "coral_penalty",
    "miro_penalty",
]
