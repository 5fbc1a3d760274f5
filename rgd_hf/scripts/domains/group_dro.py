"""GroupDRO with the training domains as groups."""

from typing import Any

from rgd_hf.group_dro import GroupDROMixin
from rgd_hf.scripts.domains.batches import DOMAIN
from rgd_hf.scripts.domains.training import DomainTrainer


class GroupDRODomainTrainer(GroupDROMixin, DomainTrainer):
    """GroupDRO. Its hyper-parameter `group_step_size` is that of the exponentiated gradient ascent."""

    def __init__(
        self, *args: Any, hyper_parameters: dict[str, Any], training_domains: list[str], **kwargs: Any
    ):
        super().__init__(
            *args,
            hyper_parameters=hyper_parameters,
            training_domains=training_domains,
            num_groups=len(training_domains),
            group_step_size=hyper_parameters["group_step_size"],
            group_column=DOMAIN,
            group_names=training_domains,
            **kwargs,
        )
