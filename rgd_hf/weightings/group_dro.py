"""Group distributionally robust optimization (GroupDRO): groups with high losses count more.

This module needs torch alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from rgd_hf.items import Items, in_one_row
from rgd_hf.weightings.base import Weighting
from rgd_hf.weightings.function import Function
from rgd_hf.weightings.uniform import Uniform


@dataclass
class GroupDRO(Weighting):
    """`sum_g q_g * mean loss of group g`, where the group weights q follow the losses by exponentiated gradient ascent.

    `q_g <- q_g * exp(step_size * mean loss of g)`, then scaled to sum to one. So the weight of an item is
    `q_g * N / N_g`, N the items of the whole step and N_g those of its group; another rule may weight items within the
    groups. Group weights are updated with the plain mean losses of a whole optimizer step (all micro-batches, all processes)
    and used from the next step on: the losses of later micro-batches are not known in time, and this way a step is the
    same however it is cut. A group without items in a step keeps its weight, up to the scaling, and adds nothing to that
    step's objective.

    A step of several micro-batches or processes needs N_g before its first forward pass: losses of one's own are then those of
    the head's items, changed, or one for each sample; others are refused.

    Source: Sagawa, Koh, Hashimoto, Liang, "Distributionally Robust Neural Networks for Group Shifts", ICLR 2020,
    Algorithm 1.

    Args:
        num_groups: number of groups; each sample's group is an integer from 0 to `num_groups - 1`.
        step_size: step size of the exponentiated gradient ascent on the group weights.
        column: the column of the batches that holds the groups, int `[batch]`. The model never sees it.
        names: names of the groups for the logs (default: their numbers).
        within: the rule that weights the items within a group, or a function of losses to weights; by default all have the same
            weight.

    Raises:
        ValueError: `num_groups` is below 1, `step_size` is negative, there are not `num_groups` names, or the rule within the
            groups keeps a state; in training: a
            batch lacks the column, or has another group than the integers from 0 to `num_groups - 1`.
        NotImplementedError: in training: the losses of a divided step are of other items than could be counted.
    """

    num_groups: int
    step_size: float = 0.01
    column: str = "group"
    names: list[str] | None = None
    within: Weighting = field(default_factory=Uniform)

    name: ClassVar[str] = "group_dro"
    title: ClassVar[str] = "GroupDRO"
    short: ClassVar[str] = "GroupDRO"
    citation: ClassVar[str | None] = """\
@inproceedings{sagawa2020distributionally,
  title     = {Distributionally Robust Neural Networks for Group Shifts: On the Importance of Regularization for Worst-Case
               Generalization},
  author    = {Sagawa, Shiori and Koh, Pang Wei and Hashimoto, Tatsunori B. and Liang, Percy},
  booktitle = {International Conference on Learning Representations},
  year      = {2020},
  url       = {https://arxiv.org/abs/1911.08731}
}"""

    def __post_init__(self) -> None:
        if self.num_groups < 1 or self.step_size < 0:
            raise ValueError(
                f"GroupDRO needs at least one group and a step size of at least 0, not num_groups={self.num_groups} and "
                f"step_size={self.step_size}."
            )
        if self.names is not None and len(self.names) != self.num_groups:
            raise ValueError(f"names has {len(self.names)} names for num_groups={self.num_groups}.")
        if not isinstance(self.within, Weighting):
            self.within = Function(self.within)
        if self.within.initial_state():
            raise ValueError(
                f"{self.within.method_name()} keeps a state of its own over the steps, which GroupDRO would not update: choose "
                "another rule within the groups, such as KL()."
            )
        self.columns = (self.column, *self.within.columns)
        self.compares_items = self.within.compares_items
        self._share: Tensor | None = None
        self._checked = False

    def column_checks(self) -> dict[str, Callable[[Tensor], None]]:
        """That groups are integers from 0 to `num_groups - 1`, and those of the rule within the groups."""
        own = partial(check_groups, column=self.column, num_groups=self.num_groups)
        return {**self.within.column_checks(), self.column: own}

    # --- group weights ----------------------------------------------------------------------------------------------

    def initial_state(self) -> dict[str, Tensor]:
        """Equal group weights, float32 `[num_groups]`, that sum to one."""
        return {"group_weights": torch.full((self.num_groups,), 1 / self.num_groups)}

    def reset(self, device: torch.device | str = "cpu") -> None:
        """Reset to equal group weights."""
        super().reset(device)
        self._share, self._checked = None, False

    def counts(self, items: Items) -> Tensor:
        """Reference weight of each group's items, float32 `[num_groups]`."""
        groups, reference = self._column(items), items.reference
        # The Trainer's own data loader checks every batch. Of another's, the first is, as that waits for a device.
        if not self._checked or groups.device.type == "cpu":
            check_groups(groups, self.column, self.num_groups)
            self._checked = True
        counts = torch.zeros(self.num_groups, device=reference.device)
        return counts.index_add_(0, groups.long(), reference.reshape(len(groups), -1).sum(dim=1))

    def begin_step(self, counts: Tensor) -> None:
        """Divide the group weights among the groups' items."""
        weights = self.state["group_weights"]
        self._share = torch.where(counts > 0, weights * counts.sum() / counts, 0.0)

    def sums(self, items: Items) -> Tensor:
        """Losses and reference weight of each group, float32 `[2, num_groups]`."""
        groups = self._groups(items)
        losses = items.losses.reshape(len(groups), -1)
        reference = items.reference.reshape(len(groups), -1)
        rows = torch.stack([(reference * losses).sum(dim=1), reference.sum(dim=1)])
        return torch.zeros(2, self.num_groups, device=rows.device).index_add_(1, groups, rows)

    def update(self, sums: Tensor) -> None:
        """Take the ascent step."""
        losses, reference = sums
        means = torch.where(reference > 0, losses / reference, 0.0)
        # A bad loss is reported by the Trainer; it must not turn all weights into NaN first.
        ascent = self.step_size * means.nan_to_num(nan=0.0, posinf=0.0)
        weights = self.state["group_weights"]
        self.state["group_weights"] = torch.softmax(weights.log() + ascent, dim=0)

    # --- weights ----------------------------------------------------------------------------------------------------

    def weights(self, items: Items) -> Tensor:
        """Weights of the groups, times those within them."""
        group_weights = self.plain_weights(items)
        within = self.within.weights(items._replace(reference=items.reference * group_weights))
        # Nobody reads the weight of an item that does not count, but 0 * inf is NaN.
        return group_weights * within.masked_fill(items.reference <= 0, 1.0)

    def plain_weights(self, items: Items) -> Tensor:
        """Weights of the groups alone."""
        if self._share is None:
            self.begin_step(self.counts(items))
        groups, share = self._groups(items), self._share
        assert share is not None
        return share[groups].reshape(-1, *[1] * (items.losses.dim() - 1)).expand(items.losses.shape)

    def _groups(self, items: Items) -> Tensor:
        return self._column(items).long()

    def _column(self, items: Items) -> Tensor:
        groups = items.batch.get(self.column)
        if groups is None:
            raise ValueError(
                f"GroupDRO needs the column {self.column!r} (the group number of each sample) in every training batch, "
                f"but this batch has only {', '.join(sorted(items.batch))}. Set column, and keep the column in the "
                "data collator."
            )
        groups = torch.as_tensor(groups, device=items.reference.device).reshape(-1)
        if len(groups) != len(items.reference):
            raise ValueError(
                f"The column {self.column!r} has {len(groups)} elements for losses of shape {list(items.reference.shape)}: "
                "GroupDRO needs one for each sample, and losses whose first dimension is the batch."
                + in_one_row(items.reference)
            )
        return groups

    def clips_above(self) -> float | Tensor:
        """The clipping threshold of the rule within the groups."""
        return self.within.clips_above()

    # --- words ------------------------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Name and settings, those of the rule within the groups in a dict of their own."""
        return {**super().get_config(), "names": self.names, "within": self.within.get_config()}

    def logs(self) -> dict[str, float]:
        """`group_weight_<name>`, including the update of the last step."""
        names = self.names or [str(number) for number in range(self.num_groups)]
        weights = dict(zip(names, self.state["group_weights"].tolist(), strict=True))
        return {f"group_weight_{name}": weight for name, weight in weights.items()} | self.within.logs()

    def details(self) -> list[str]:
        """The step size, and the rule within the groups."""
        own = [f"step size={self.step_size:g}"]
        return own if self.within.is_plain else [*own, self.within.method_name()]

    def describe(self, item: str) -> str:
        """How groups were weighted, and what was done within them."""
        paper = "[group distributionally robust optimization](https://arxiv.org/abs/1911.08731)"
        prose = (
            f"Trained with {paper} (GroupDRO): the objective was the weighted sum of the mean losses of {self.num_groups} "
            f"groups (column `{self.column}`), whose weights were multiplied by `exp({self.step_size:g} * mean loss)` of the "
            "group after every optimization step and scaled to sum to one."
        )
        return prose if self.within.is_plain else f"{prose} Within the groups: {self.within.describe(item)}"

    def citations(self) -> list[str]:
        """GroupDRO's, and those of the rule within the groups."""
        return [*super().citations(), *self.within.citations()]

    def advice(self, statistics: Mapping[str, float]) -> str | None:
        """That of the rule within the groups."""
        return self.within.advice(statistics)


def check_groups(groups: Tensor, column: str, num_groups: int) -> None:
    """Raise `ValueError` unless all are integers from 0 to `num_groups - 1`; waits for the device."""
    numbers = groups.float()
    bad = numbers[~((numbers >= 0) & (numbers < num_groups) & (numbers == numbers.floor()))]
    if bad.numel():
        raise ValueError(
            f"The column {column!r} of a training batch has the group {bad[0].item():g}, but num_groups={num_groups} allows "
            f"the integers from 0 to {num_groups - 1}. Number the groups from 0, give GroupDRO their number, and give samples "
            "without a group one of their own or take them out of the training set."
        )
