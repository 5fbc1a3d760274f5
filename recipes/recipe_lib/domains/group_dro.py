"""GroupDRO with the training domains as groups."""

from typing import Any

from recipe_lib.domains.batches import DOMAIN
from recipe_lib.domains.training import DomainTrainer
from rgd_hf.group_dro import GroupDROMixin


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
