"""The algorithms by name, and the options of a training on all domains but the held-out ones."""

from dataclasses import dataclass, field
from typing import Any

from rgd_hf import ReweightedTrainingArguments
from rgd_hf.scripts.domains.batches import DOMAIN
from rgd_hf.scripts.domains.training import (
    CORALDomainTrainer,
    DomainTrainer,
    MIRODomainTrainer,
    SWADDomainTrainer,
)
from rgd_hf.scripts.errors import UserError
from rgd_hf.weightings import GroupDRO
from rgd_hf.weightings.choice import weighting_of


@dataclass(frozen=True)
class Algorithm:
    """How to train on several domains.

    Attributes:
        title: as tables call it.
        trainer: its Trainer.
        option: the one of `AlgorithmArguments` that is its own.
    """

    title: str
    trainer: type[DomainTrainer]
    option: str | None = None


ALGORITHMS = {
    "erm": Algorithm("ERM", DomainTrainer),
    "group_dro": Algorithm("GroupDRO", DomainTrainer, "group_step_size"),
    "coral": Algorithm("CORAL", CORALDomainTrainer, "coral_weight"),
    "miro": Algorithm("MIRO", MIRODomainTrainer, "miro_weight"),
    "swad": Algorithm("SWAD", SWADDomainTrainer, "swad_tolerance"),
}


@dataclass
class AlgorithmArguments:
    """Algorithm and held-out domain."""

    held_out: list[str] = field(
        default_factory=list,
        metadata={
            "help": "The domain to test on, which is not trained on (two of them for leave-one-domain-out selection). A "
            "batch has --per_device_train_batch_size samples of each of the other domains, and --seed decides which samples "
            "are validation rows."
        },
    )
    algorithm: str = field(
        default="erm",
        metadata={
            "help": "The method of training; --reweighting applies on top of it.",
            "choices": list(ALGORITHMS),
        },
    )
    dropout: float = field(default=0.0, metadata={"help": "Rate of dropout before the classifier."})
    group_step_size: float = field(
        default=0.01, metadata={"help": "Of GroupDRO: step size of the group weights."}
    )
    coral_weight: float = field(default=1.0, metadata={"help": "Of CORAL: weight of its penalty."})
    miro_weight: float = field(default=0.1, metadata={"help": "Of MIRO: weight of its penalty."})
    swad_tolerance: float = field(
        default=1.3,
        metadata={
            "help": "Of SWAD: averaging ends when the validation loss stays above this factor times that at its start."
        },
    )

    def __post_init__(self):
        if not 0 <= self.dropout < 1:
            raise UserError(f"--dropout must be at least 0 and below 1, not {self.dropout:g}.")
        for name in ("group_step_size", "coral_weight", "miro_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} must be at least 0, not {getattr(self, name):g}.")
        if self.swad_tolerance < 1:
            raise UserError(f"--swad_tolerance must be at least 1, not {self.swad_tolerance:g}.")

    def idle(self) -> list[str]:
        """Options that are set, but are of another algorithm; a random search draws them for all."""
        default = {name: f.default for name, f in type(self).__dataclass_fields__.items()}
        others = [each.option for name, each in ALGORITHMS.items() if each.option and name != self.algorithm]
        return [option for option in others if getattr(self, option) != default[option]]

    @property
    def title(self) -> str:
        """Of the algorithm: `"CORAL"`."""
        return ALGORITHMS[self.algorithm].title

    def method(self, weighted: str) -> str:
        """The algorithm and what is on top of it: `"CORAL + RGD (kl, tau=1)"`; `weighted` alone is that on plain ERM."""
        if self.algorithm == "erm":
            return weighted
        return self.title if weighted == "ERM" else f"{self.title} + {weighted}"

    def trainer_settings(self, args: ReweightedTrainingArguments, domains: list[str]) -> dict[str, Any]:
        """Keyword arguments of the algorithm's Trainer, in addition to those that all algorithms share.

        Args:
            args: arguments of the training; with GroupDRO, their re-weighting applies within the groups.
            domains: names of the training domains.
        """
        if self.algorithm == "group_dro":
            return {
                "reweighting": GroupDRO(
                    len(domains), self.group_step_size, DOMAIN, list(domains), within=weighting_of(args)
                )
            }
        if self.algorithm == "coral":
            return {"num_domains": len(domains), "coral_weight": self.coral_weight, "domain_column": DOMAIN}
        option = ALGORITHMS[self.algorithm].option
        return {} if option is None else {option: getattr(self, option)}
