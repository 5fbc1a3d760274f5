"""GroupDRO by a class of Trainers; `reweighting=GroupDRO(num_groups=...)` does the same on any `ReweightedTrainer`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rgd_hf.overrides import check_order
from rgd_hf.trainer import ReweightedTrainer
from rgd_hf.weightings import GroupDRO, Weighting

if TYPE_CHECKING:
    from transformers import Trainer

    from rgd_hf.trainer import ReweightingMixin as TrainerBase

    class _Base(TrainerBase, Trainer): ...
else:
    _Base = object

# Where group weights were saved before rules saved their own state.
OLD_STATE_NAME = "group_weights.json"


class GroupDROMixin(_Base):
    """GroupDRO for any class that derives from `ReweightingMixin` and a Trainer; list it first among the base classes.

    Groups are weighted by `rgd_hf.weightings.GroupDRO`, and the chosen `reweighting` weights the samples within each
    group. Group weights are saved with every checkpoint and logged as `group_weight_<name>`.

    Args:
        num_groups: number of groups; each sample's group is an integer from 0 to `num_groups - 1`.
        group_step_size: step size of the exponentiated gradient ascent on the group weights (default 0.01).
        group_column: the column of the batches that holds the groups, int `[batch]` (default `"group"`). The model
            never sees it.
        group_names: names of the groups for the logs (default: their numbers).

    Raises:
        ValueError: as for `rgd_hf.weightings.GroupDRO`.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        check_order(cls, GroupDROMixin)

    def __init__(
        self,
        *args: Any,
        num_groups: int,
        group_step_size: float = 0.01,
        group_column: str = "group",
        group_names: list[str] | None = None,
        **kwargs: Any,
    ):
        self._groups: dict[str, Any] = {
            "num_groups": num_groups,
            "step_size": group_step_size,
            "column": group_column,
            "names": group_names,
        }
        GroupDRO(**self._groups)
        super().__init__(*args, **kwargs)

    def _complete(self, rule: Weighting) -> Weighting:
        return super()._complete(GroupDRO(**self._groups, within=rule))

    def _cannot_unreduce(self) -> Exception:
        return NotImplementedError(
            "GroupDRO weights per-sample losses, but those of this Trainer and model are not known to rgd_hf: "
            "override compute_per_sample_losses, or pass per_sample_loss_fn."
        )

    @property
    def group_weights(self) -> Tensor:
        """Weights of the groups, float32 `[num_groups]`, that sum to one."""
        return self.weighting.state["group_weights"]

    def _saved_rule_state(self, checkpoint: Path) -> dict[str, Tensor] | None:
        old = checkpoint / OLD_STATE_NAME
        if old.is_file():
            return {"group_weights": torch.tensor(json.loads(old.read_text(encoding="utf-8")))}
        return super()._saved_rule_state(checkpoint)


class GroupDROTrainer(GroupDROMixin, ReweightedTrainer):
    """`ReweightedTrainer` with GroupDRO; see `GroupDROMixin` for what it adds."""
