"""The options of the networks."""

from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.tabular.configuration import NUM_EMBEDDINGS

# Above this number of numeric features, embeddings make the first layer so wide that training takes several times as long.
MAX_EMBEDDED_FEATURES = 100


@dataclass
class NetworkArguments:
    """Networks: sizes (by default those of each network) and how long they train."""

    n_blocks: int | None = field(default=None, metadata={"help": "Number of blocks."})
    d_block: int | None = field(default=None, metadata={"help": "Width of a block."})
    dropout: float | None = field(default=None, metadata={"help": "Dropout rate."})
    k: int = field(default=16, metadata={"help": "Number of members of the TabM ensemble."})
    num_embeddings: str = field(
        default="auto",
        metadata={
            "help": "Embeddings of numeric features: 'auto' takes piecewise_linear up to "
            f"{MAX_EMBEDDED_FEATURES} numeric features and none beyond.",
            "choices": ["auto", *NUM_EMBEDDINGS],
        },
    )
    d_embedding: int = field(default=16, metadata={"help": "Size of the embedding of a numeric feature."})
    n_bins: int = field(default=32, metadata={"help": "Number of bins of piecewise-linear embeddings."})
    patience: int = field(
        default=16, metadata={"help": "Epochs without a better validation score before training stops."}
    )
    pretrain_epochs: int = field(
        default=0,
        metadata={
            "help": "Number of epochs of self-supervised pretraining: masked features are reconstructed."
        },
    )
    mask_rate: float = field(
        default=0.3, metadata={"help": "Fraction of the features that are masked in pretraining."}
    )
    reweight_pretraining: bool = field(
        default=False,
        metadata={"help": "Also re-weight the losses of pretraining."},
    )

    def __post_init__(self):
        for option in fields(self):  # of JSON, which no parser of options has read
            value, choices = getattr(self, option.name), option.metadata.get("choices")
            kind: Any = option.type
            try:
                TypeAdapter(kind).validate_python(value, strict=True)
            except ValidationError as error:
                raise UserError(f"--{option.name} is {value!r}: {error.errors()[0]['msg']}.") from error
            if choices and value not in choices:
                raise UserError(f"--{option.name} must be one of {listed(choices)}, not {value!r}.")
        least = {
            "n_blocks": 1,
            "d_block": 1,
            "k": 1,
            "d_embedding": 1,
            "n_bins": 2,
            "patience": 1,
            "pretrain_epochs": 0,
        }
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise UserError(f"--{name} must be at least {minimum}, not {value}.")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"--dropout must be at least 0 and below 1, not {self.dropout:g}.")
        if not 0 < self.mask_rate < 1:
            raise UserError(f"--mask_rate must lie between 0 and 1, not {self.mask_rate:g}.")
