"""Group distributionally robust optimization (GroupDRO) for the Trainer: groups with high losses count more.

Sagawa, Koh, Hashimoto, Liang, "Distributionally Robust Neural Networks for Group Shifts", ICLR 2020, Algorithm 1.
Every sample belongs to a group (a domain, a subpopulation) named by a column of the batch. A step's objective is
`sum_g q_g * mean loss of group g`, and the group weights q follow the losses by exponentiated gradient ascent:
`q_g <- q_g * exp(step_size * mean loss of g)`, then scaled to sum to one.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rgd_hf.data import SAMPLE_WEIGHT
from rgd_hf.overrides import check_order
from rgd_hf.trainer import ReweightedTrainer
from rgd_hf.weighting import Items

if TYPE_CHECKING:
    from transformers import Trainer

    from rgd_hf.trainer import ReweightingMixin as TrainerBase

    class _Base(TrainerBase, Trainer): ...
else:
    _Base = object

GROUP_WEIGHTS_NAME = "group_weights.json"


class GroupDROMixin(_Base):
    """GroupDRO for any class that derives from `ReweightingMixin` and a Trainer; put it to their left.

    The group weights multiply the samples' weights in the reference distribution, so that any `reweighting` applies on
    top of them, within the groups. They are updated with the plain mean losses of a whole optimizer step (all
    micro-batches, all processes) and used from the next step on: in one pass over the data no step can be weighted by
    losses that its later micro-batches have yet to show, and so a step is the same however it is cut. A group
    that a step has no sample of keeps its weight, up to the scaling, and adds nothing to that step's objective.

    Group weights are saved with every checkpoint, and training logs have them as `group_weight_<name>`.

    Args:
        num_groups: number of groups; each sample's group is a whole number below it.
        group_step_size: of the exponentiated gradient ascent (default 0.01).
        group_column: the column of the batches that holds the groups, int `[batch]` (default `"group"`). The model
            never sees it.
        group_names: names for the logs (default: the numbers).

    Raises:
        ValueError: `num_groups` is below 1 or `group_step_size` is negative; in training: a batch lacks the
            column, or the first step has a group that is not below `num_groups`.

    Note:
        With `normalize_weights`, or a `per_sample_loss_fn`, the objective is also divided by the sum of the weights of
        the groups that are present; otherwise only by that of all, which is one.
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
        if num_groups < 1 or group_step_size < 0:
            raise ValueError(
                f"GroupDRO needs at least one group and a step size of at least 0, not num_groups={num_groups} and "
                f"group_step_size={group_step_size}."
            )
        if group_names is not None and len(group_names) != num_groups:
            raise ValueError(f"group_names has {len(group_names)} names for num_groups={num_groups}.")
        self.num_groups, self.group_step_size, self.group_column = num_groups, group_step_size, group_column
        self.group_names = group_names or [str(number) for number in range(num_groups)]
        self._batch_groups: Tensor | None = None
        self._groups_checked = False
        super().__init__(*args, **kwargs)
        self.group_weights: Tensor = torch.full((num_groups,), 1 / num_groups, device=self.args.device)
        """Weights of the groups, float32 `[num_groups]`, that sum to one."""
        self._reset_group_losses()

    def _reset_group_losses(self) -> None:
        self._group_losses = torch.zeros(2, self.num_groups, device=self.args.device)

    # --- the column of groups: kept by the Trainer, not shown to the model ------------------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if self.group_column not in columns:
            columns.append(self.group_column)

    def _check_set_up(self) -> None:
        super()._check_set_up()
        if self._loss_source() is None:
            raise NotImplementedError(
                "GroupDRO weights the losses of samples, but the loss of this Trainer and model is one that rgd_hf "
                "cannot un-reduce: override compute_per_sample_losses, or pass per_sample_loss_fn."
            )

    def _groups_of(self, batch: Any) -> Tensor:
        groups = batch.get(self.group_column)
        if groups is None:
            raise ValueError(
                f"GroupDRO needs the column {self.group_column!r} (a group's number for every sample) in every training "
                f"batch, but this batch has only {', '.join(sorted(batch))}. Set group_column, and keep the column in "
                "the data collator."
            )
        return torch.as_tensor(groups).reshape(-1).long()

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As the Trainer's; in training the losses are also added up by group."""
        if model.training or torch.is_grad_enabled():
            self._batch_groups = self._groups_of(inputs)
        inputs = {name: value for name, value in inputs.items() if name != self.group_column}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any):
        """As the Trainer's; evaluation knows no groups."""
        inputs = {name: value for name, value in inputs.items() if name != self.group_column}
        return super().prediction_step(model, inputs, *args, **kwargs)

    def _check_groups(self, groups: Tensor) -> None:
        # On the first step alone, because it waits for the device.
        low, high = int(groups.min()), int(groups.max())
        if low < 0 or high >= self.num_groups:
            raise ValueError(
                f"The column {self.group_column!r} of the first step has groups from {low} to {high}, but "
                f"num_groups={self.num_groups} allows 0 to {self.num_groups - 1}."
            )
        self._groups_checked = True

    # --- group weights ----------------------------------------------------------------------------------------------

    def _begin_step(self, batch_samples: list) -> None:
        super()._begin_step(batch_samples)
        self._update_group_weights()
        groups = [self._groups_of(batch) for batch in batch_samples]
        if not self._groups_checked:
            self._check_groups(torch.cat(groups))
        weights = [
            batch[SAMPLE_WEIGHT].float()
            if SAMPLE_WEIGHT in batch
            else torch.ones(len(group), device=group.device)
            for batch, group in zip(batch_samples, groups, strict=True)
        ]
        counts = torch.zeros(self.num_groups, device=self.args.device)
        for group, weight in zip(groups, weights, strict=True):
            counts.index_add_(0, group.to(counts.device), weight.to(counts.device))
        counts = self.accelerator.reduce(counts, reduction="sum")
        share = torch.where(counts > 0, self.group_weights / counts, 0.0)
        for batch, group, weight in zip(batch_samples, groups, weights, strict=True):
            batch[SAMPLE_WEIGHT] = weight * share.to(group.device)[group]

    def _mass_of_step(self, mass: Tensor) -> Tensor:
        return torch.ones_like(mass)

    def weigh(self, items: Items, inputs: Any) -> Tensor:
        """The weights of the divergence; the items' losses are added up by group."""
        if self._batch_groups is not None and self.is_in_train:
            with torch.no_grad():
                groups = self._batch_groups.to(items.losses.device)
                losses = items.losses.detach().reshape(len(groups), -1)
                # Within a group all samples share the group's weight, so that it cancels in the group's mean.
                reference = items.reference.reshape(len(groups), -1)
                sums = torch.stack([(reference * losses).sum(dim=1), reference.sum(dim=1)])
                self._group_losses.index_add_(1, groups, sums)
        return super().weigh(items, inputs)

    def _update_group_weights(self) -> None:
        """Take the ascent step for the optimizer step that was last added up, if there was one."""
        losses, reference = self.accelerator.reduce(self._group_losses, reduction="sum")
        means = torch.where(reference > 0, losses / reference, 0.0)
        # A bad loss is reported by the Trainer; it must not turn all weights into NaN first.
        ascent = self.group_step_size * means.nan_to_num(nan=0.0, posinf=0.0)
        self.group_weights = torch.softmax(self.group_weights.log() + ascent, dim=0)
        self._reset_group_losses()

    # --- logs and checkpoints ---------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's; training logs also have the group weights, with the last step's losses in them."""
        if "loss" in logs:
            self._update_group_weights()
            for name, weight in zip(self.group_names, self.group_weights.tolist(), strict=True):
                logs[f"group_weight_{name}"] = weight
        super().log(logs, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self._update_group_weights()
        if self.args.should_save:
            path = Path(output_dir) / GROUP_WEIGHTS_NAME
            path.write_text(json.dumps(self.group_weights.tolist()), encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        path = Path(checkpoint or "") / GROUP_WEIGHTS_NAME
        if checkpoint is not None and path.is_file():
            weights = json.loads(path.read_text(encoding="utf-8"))
            self.group_weights = torch.tensor(weights, device=self.args.device)


class GroupDROTrainer(GroupDROMixin, ReweightedTrainer):
    """`ReweightedTrainer` with GroupDRO; see `GroupDROMixin` for what it adds."""
