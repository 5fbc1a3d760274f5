"""The configuration of a tabular network, with all that predicting from a raw table needs but the fitted encoders."""

from typing import Any

from transformers import PretrainedConfig

NETWORKS = ("mlp", "resnet", "ft_transformer", "tabm")
NUM_EMBEDDINGS = ("none", "periodic", "piecewise_linear")

DEFAULT_SIZES: dict[str, dict[str, Any]] = {
    "mlp": {"n_blocks": 3, "d_block": 256, "dropout": 0.1},
    "resnet": {"n_blocks": 3, "d_block": 128, "dropout": 0.15},
    "ft_transformer": {"n_blocks": 2, "d_block": 64, "dropout": 0.1},
    "tabm": {"n_blocks": 3, "d_block": 128, "dropout": 0.1},
}
"""Depth, width and dropout of each network where none are given: small enough for a CPU."""

ATTENTION_HEADS = 8


class TabularConfig(PretrainedConfig):
    """Configuration of a `TabularModel`.

    Args:
        network: one of `NETWORKS`.
        n_num_features: numeric features of the encoded table.
        cat_cardinalities: number of codes of each categorical feature, code 0 (unknown category) included.
        n_blocks: depth; by default that of `DEFAULT_SIZES`, like `d_block` and `dropout`.
        d_block: width; a multiple of 8 for the FT-Transformer.
        dropout: dropout rate.
        k: members of the TabM ensemble.
        num_embeddings: how numeric features are embedded: one of `NUM_EMBEDDINGS`. The FT-Transformer has embeddings
            of its own.
        d_embedding: size of such an embedding.
        bins: for `"piecewise_linear"`, the edges of each numeric feature's bins.
        problem_type: `"single_label_classification"` or `"regression"`.
        classes: for classification, the target's values in the order of the logits.
        target_mean: for regression, what the standardized target's 0 stands for.
        target_std: for regression, the scale of the standardized target.
        columns: name and kind of each column of the raw table that is used.
        target: name of the target column.
        **kwargs: fields of `PretrainedConfig`.

    Raises:
        ValueError: a value is not allowed; the message says what is.
    """

    model_type = "rgd_tabular"
    keys_to_ignore_at_inference = ["member_logits"]  # noqa: RUF012  (transformers adds lists to it)

    def __init__(
        self,
        network: str = "mlp",
        n_num_features: int = 1,
        cat_cardinalities: list[int] | None = None,
        n_blocks: int | None = None,
        d_block: int | None = None,
        dropout: float | None = None,
        k: int = 16,
        num_embeddings: str = "none",
        d_embedding: int = 16,
        bins: list[list[float]] | None = None,
        problem_type: Any = "single_label_classification",
        classes: list | None = None,
        target_mean: float = 0.0,
        target_std: float = 1.0,
        columns: list[dict[str, str]] | None = None,
        target: str = "target",
        **kwargs: Any,
    ):
        if network not in NETWORKS:
            raise ValueError(f"unknown network {network!r}: choose one of {', '.join(NETWORKS)}.")
        if num_embeddings not in NUM_EMBEDDINGS:
            raise ValueError(
                f"unknown num_embeddings {num_embeddings!r}: choose one of {', '.join(NUM_EMBEDDINGS)}."
            )
        sizes = DEFAULT_SIZES[network]
        self.network = network
        self.n_num_features = n_num_features
        self.cat_cardinalities = cat_cardinalities or []
        self.n_blocks = sizes["n_blocks"] if n_blocks is None else n_blocks
        self.d_block = sizes["d_block"] if d_block is None else d_block
        self.dropout = sizes["dropout"] if dropout is None else dropout
        if network == "ft_transformer" and self.d_block % ATTENTION_HEADS:
            raise ValueError(
                f"the width of the FT-Transformer must be a multiple of its {ATTENTION_HEADS} attention heads, not "
                f"{self.d_block}."
            )
        self.k = k
        self.num_embeddings = num_embeddings
        self.d_embedding = d_embedding
        self.bins = bins
        self.classes = classes
        self.target_mean = target_mean
        self.target_std = target_std
        self.columns = columns or []
        self.target = target
        if classes is not None:
            kwargs["id2label"] = {i: str(value) for i, value in enumerate(classes)}
            kwargs["label2id"] = {str(value): i for i, value in enumerate(classes)}
        elif problem_type == "regression":
            kwargs["num_labels"] = 1
        super().__init__(problem_type=problem_type, **kwargs)
