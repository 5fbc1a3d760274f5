"""The networks of `rtdl_revisiting_models` and `tabm` as an encoder (features to representation) and its head.

References:
    Gorishniy et al., "Revisiting Deep Learning Models for Tabular Data", 2021 (arXiv 2106.11959): MLP, ResNet,
    FT-Transformer. Gorishniy et al., "On Embeddings for Numerical Features", 2022 (arXiv 2203.05556). Gorishniy et
    al., "TabM: Advancing Tabular Deep Learning with Parameter-Efficient Ensembling", 2025 (arXiv 2410.24210).
"""

import warnings

import torch
from rtdl_num_embeddings import PeriodicEmbeddings, PiecewiseLinearEmbeddings
from rtdl_revisiting_models import MLP, FTTransformer, ResNet
from tabm import LinearEnsemble, TabM
from torch import Tensor, nn

from .configuration import ATTENTION_HEADS, TabularConfig


class OneHot(nn.Module):
    """One-hot code of every categorical feature in one operation; an unknown category (code 0) is all zeros.

    Args:
        cardinalities: number of codes of each feature, code 0 included.
    """

    def __init__(self, cardinalities: list[int]):
        super().__init__()
        sizes = torch.tensor([size - 1 for size in cardinalities])
        self.width = int(sizes.sum())
        self.offsets: Tensor
        self.register_buffer("offsets", sizes.cumsum(0) - sizes)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes `[batch, features]` to float `[batch, sum(cardinalities) - features]`."""
        # Column 0 takes the ones of unknown categories and is cut off.
        positions = torch.where(codes > 0, codes + self.offsets, 0)
        hot = torch.zeros(len(codes), self.width + 1, device=codes.device)
        return hot.scatter_(1, positions, 1.0)[:, 1:]


class FlatInput(nn.Module):
    """All features of a sample as one vector: numeric ones as they are or embedded, categorical ones one-hot."""

    def __init__(self, config: TabularConfig):
        super().__init__()
        self.embedding = make_num_embeddings(config)
        self.one_hot = OneHot(config.cat_cardinalities) if config.cat_cardinalities else None
        per_feature = 1 if self.embedding is None else config.d_embedding
        self.width = config.n_num_features * per_feature + (self.one_hot.width if self.one_hot else 0)

    def forward(self, x_num: Tensor | None, x_cat: Tensor | None) -> Tensor:
        """Features to `[batch, width]`."""
        parts = []
        if x_num is not None:
            parts.append(x_num if self.embedding is None else self.embedding(x_num).flatten(1))
        if x_cat is not None and self.one_hot is not None:
            parts.append(self.one_hot(x_cat))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def make_num_embeddings(config: TabularConfig) -> nn.Module | None:
    """The embeddings of the numeric features, or None where they go in as numbers."""
    if config.num_embeddings == "none" or config.n_num_features == 0:
        return None
    if config.num_embeddings == "periodic":
        return PeriodicEmbeddings(config.n_num_features, config.d_embedding, lite=False)
    if config.bins is None:
        raise ValueError("num_embeddings='piecewise_linear' needs the bins of the numeric features.")
    bins = [torch.tensor(edges) for edges in config.bins]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a feature of 0 and 1 has one bin
        return PiecewiseLinearEmbeddings(bins, config.d_embedding, activation=False, version="B")


class FlatEncoder(nn.Module):
    """MLP or ResNet without its output layer."""

    def __init__(self, config: TabularConfig):
        super().__init__()
        self.features = FlatInput(config)
        sizes = {"d_in": self.features.width, "d_out": None, "n_blocks": config.n_blocks}
        if config.network == "mlp":
            self.backbone: nn.Module = MLP(**sizes, d_block=config.d_block, dropout=config.dropout)
        else:
            self.backbone = ResNet(
                **sizes,
                d_block=config.d_block,
                d_hidden_multiplier=2.0,
                dropout1=config.dropout,
                dropout2=0.0,
            )

    def forward(self, x_num: Tensor | None, x_cat: Tensor | None) -> Tensor:
        """Features to `[batch, d_block]`."""
        return self.backbone(self.features(x_num, x_cat))


def make_encoder(config: TabularConfig) -> nn.Module:
    """The network up to its representation, `[batch, d_block]` (TabM: `[batch, k, d_block]`)."""
    sizes = {"n_blocks": config.n_blocks, "d_block": config.d_block, "d_out": None}
    if config.network == "ft_transformer":
        return FTTransformer(
            n_cont_features=config.n_num_features,
            cat_cardinalities=config.cat_cardinalities,
            **sizes,
            attention_n_heads=ATTENTION_HEADS,
            attention_dropout=config.dropout,
            ffn_d_hidden=None,
            ffn_d_hidden_multiplier=4 / 3,
            ffn_dropout=config.dropout,
            residual_dropout=0.0,
        )
    if config.network == "tabm":
        return TabM.make(
            n_num_features=config.n_num_features,
            cat_cardinalities=config.cat_cardinalities,
            num_embeddings=make_num_embeddings(config),
            **sizes,
            dropout=config.dropout,
            k=config.k,
        )
    return FlatEncoder(config)


def make_head(config: TabularConfig, outputs: int) -> nn.Module:
    """The layers that the papers put between the representation and `outputs` numbers."""
    width = config.d_block
    if config.network == "tabm":
        return LinearEnsemble(width, outputs, k=config.k)
    if config.network == "ft_transformer":
        return nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, outputs))
    if config.network == "resnet":
        return nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, outputs))
    return nn.Linear(width, outputs)
