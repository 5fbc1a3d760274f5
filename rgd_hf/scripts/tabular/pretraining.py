"""Self-supervised pretraining of the encoder: features are masked at random and reconstructed.

In the manner of VIME (Yoon et al., NeurIPS 2020) and of the masked-feature objective of "Revisiting Pretraining
Objectives for Tabular Deep Learning" (Rubachev et al., 2022, arXiv 2207.03208). A masked numeric feature is 0, the
median of a quantile-transformed one; a masked categorical feature has the code of an unknown category.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgd_hf import ReweightedTrainingArguments
from rgd_hf.scripts.tabular.batches import BatchLoader, TensorTable
from rgd_hf.scripts.tabular.modeling import TabularModel
from rgd_hf.scripts.tabular.networks import make_head
from rgd_hf.scripts.tabular.options import NetworkArguments
from rgd_hf.scripts.tabular.splits import Splits
from rgd_hf.scripts.tabular.trainer import TabularTrainer, quiet, with_changes
from rgd_hf.scripts.training.plans import as_erm

LABELS = ["true_num", "true_cat", "mask_num", "mask_cat"]


class Reconstructor(nn.Module):
    """A model's encoder with a head that predicts every feature: one number, or the logits of the codes."""

    def __init__(self, model: TabularModel):
        super().__init__()
        config: Any = model.config
        self.encoder = model.encoder
        self.head = make_head(config, config.n_num_features + sum(config.cat_cardinalities))

    def forward(self, x_num: Tensor | None = None, x_cat: Tensor | None = None) -> dict[str, Tensor]:
        """Features to `{"reconstruction": [batch, outputs] or [batch, k, outputs]}`."""
        return {"reconstruction": self.head(self.encoder(x_num, x_cat))}


def mask_features(batch: dict[str, Tensor], rate: float, generator: torch.Generator) -> dict[str, Tensor]:
    """A batch whose features are masked at `rate`, with the originals and the masks (bool) as labels."""
    masked: dict[str, Tensor] = {}
    for kind in ("num", "cat"):
        x = batch.get(f"x_{kind}")
        if x is None:
            continue
        mask = (torch.rand(x.shape, generator=generator) < rate).to(x.device)
        masked |= {f"x_{kind}": torch.where(mask, 0, x), f"true_{kind}": x, f"mask_{kind}": mask}
    return masked


def reconstruction_losses(
    reconstruction: Tensor, labels: dict[str, Tensor], cat_cardinalities: list[int]
) -> Tensor:
    """Mean loss over the masked features of each sample: squared error of numbers, cross-entropy of codes.

    Args:
        reconstruction: `[batch, outputs]`: the numeric features, then the logits of each categorical one; or
            `[batch, k, outputs]`, whose losses are averaged over the members.
        labels: `true_num` and `mask_num` `[batch, numeric]`, `true_cat` and `mask_cat` `[batch, categorical]`, as far
            as the table has them.
        cat_cardinalities: number of codes of each categorical feature.

    Returns:
        float32 `[batch]`, 0 where nothing is masked.
    """
    members = reconstruction if reconstruction.ndim == 3 else reconstruction[:, None]
    n_num = labels["true_num"].shape[1] if "true_num" in labels else 0
    losses, masks = [], []
    if n_num:
        losses.append((members[..., :n_num].float() - labels["true_num"][:, None]).square().mean(dim=1))
        masks.append(labels["mask_num"])
    if cat_cardinalities:
        for i, logits in enumerate(members[..., n_num:].float().split(cat_cardinalities, dim=-1)):
            codes = labels["true_cat"][:, i, None].expand(logits.shape[:2])
            loss = F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")
            losses.append(loss.mean(dim=1, keepdim=True))
        masks.append(labels["mask_cat"])
    mask = torch.cat(masks, dim=1)
    return (torch.cat(losses, dim=1) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


class _MaskedBatches(BatchLoader):
    def __init__(self, rate: float, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.rate = rate

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed + 10_007 * (self.epoch + 1) + self.rank)
        for batch in super().__iter__():
            yield mask_features(batch, self.rate, generator)


class _PretrainingTrainer(TabularTrainer):
    def __init__(self, *args: Any, mask_rate: float, **kwargs: Any):
        self.mask_rate = mask_rate
        super().__init__(*args, **kwargs)

    def get_train_dataloader(self) -> Any:
        args = self.args
        return _MaskedBatches(
            self.mask_rate,
            self.train_dataset,
            self._train_batch_size,
            shuffle=True,
            seed=args.seed,
            rank=args.process_index,
            world_size=args.world_size,
        )


def pretrain(
    model: TabularModel, splits: Splits, sizes: NetworkArguments, args: ReweightedTrainingArguments
) -> float:
    """Train the encoder of `model`, in place, on the training rows without their target.

    Args:
        model: the network to be trained on the target afterwards.
        splits: the encoded table.
        sizes: epochs, share of masked features, and whether the losses are re-weighted.
        args: arguments of the training that follows; learning rate, batch size and seed are taken over.

    Returns:
        The mean training loss of the stage.
    """
    config: Any = model.config
    reconstructor = Reconstructor(model)
    trainer = quiet(
        _PretrainingTrainer(
            mask_rate=sizes.mask_rate,
            model=reconstructor,
            args=with_changes(
                args if sizes.reweight_pretraining else as_erm(args),
                num_train_epochs=sizes.pretrain_epochs,
                max_steps=-1,
                eval_strategy="no",
                label_names=LABELS,
            ),
            train_dataset=TensorTable(splits.train.features(), args.device),
            per_sample_loss_fn=lambda outputs, labels: reconstruction_losses(
                outputs["reconstruction"], labels, config.cat_cardinalities
            ),
        )
    )
    return trainer.train().training_loss
