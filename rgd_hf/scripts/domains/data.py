"""The domains that a command line names, and what the model is given of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from datasets import concatenate_datasets
from PIL import Image as PILImage
from torch.utils.data import Subset

from rgd_hf.scripts.domains.backbones import Backbone
from rgd_hf.scripts.domains.batches import TrainingDomains
from rgd_hf.scripts.domains.digits import coloured_digits, grey_images, rotated_digits
from rgd_hf.scripts.domains.environments import DomainData
from rgd_hf.scripts.domains.sources import LOCAL_HINT, from_table, read_directory, read_table
from rgd_hf.scripts.domains.views import ImageView, TextView, View
from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.text.vader import load_vader
from rgd_hf.scripts.training.hard_examples import TrainingSamples

DIGITS = {"rotated_digits": rotated_digits, "coloured_digits": coloured_digits}
MADE_HERE = (*DIGITS, "kinds_of_sentences")


@dataclass
class DomainArguments:
    """Data: domains made here, or one's own."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "rotated_digits (digits rotated by 0 to 75 degrees), coloured_digits (their colour misleads), "
            "kinds_of_sentences (movie reviews, newspapers, product reviews, tweets), or a data set of the Hub (owner/name) "
            "with all domains, see --domain_column. Digits need no network."
        },
    )
    dataset_dir: str | None = field(
        default=None,
        metadata={
            "help": "Directory with <domain>/<class>/*.jpg (PACS, VLCS, OfficeHome, TerraIncognita, DomainNet) or "
            "<domain>.parquet (columns image or text, and the label)."
        },
    )
    data_file: str | None = field(
        default=None,
        metadata={
            "help": "File with all domains (parquet, csv, tsv, json, jsonl), see --domain_column. With --dataset "
            "rotated_digits or coloured_digits: the grey images to make them of (columns image and label)."
        },
    )
    domain_column: str = field(default="domain", metadata={"help": "The column with the domain of each row."})
    label_column: str = field(default="label", metadata={"help": "The column with the classes."})
    text_column: str | None = field(
        default=None,
        metadata={"help": "The text column, if there are no images. Inferred from the data if not given."},
    )
    image_size: int = field(default=224, metadata={"help": "Height and width of images for the model."})
    augment: bool = field(
        default=True, metadata={"help": "Random crops, flips and colours in training, as in DomainBed."}
    )
    max_seq_length: int = field(
        default=128, metadata={"help": "Longer texts are truncated to this number of tokens."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on a random subset of this size of each split."}
    )

    def __post_init__(self):
        for name in ("image_size", "max_seq_length", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} must be at least 1, not {value}.")


def load_data(args: DomainArguments) -> DomainData:
    """The domains that the options name.

    Raises:
        UserError: they name none or several, or one cannot train on these.
    """
    if args.dataset in DIGITS and not args.dataset_dir:
        return DIGITS[args.dataset](*grey_images(args.data_file, args.label_column))
    given = [name for name in ("dataset", "dataset_dir", "data_file") if getattr(args, name)]
    if len(given) != 1:
        raise UserError(
            f"give exactly one source of data, not {len(given)} ({listed(given)}): --dataset {'|'.join(MADE_HERE)}, "
            f"{LOCAL_HINT}, or --dataset owner/name of the Hub."
        )
    if args.dataset == "kinds_of_sentences":
        rows = concatenate_datasets(list(load_vader().values()))
        return from_table(rows, "domain", "label", args.dataset)
    if args.dataset_dir is not None:
        return read_directory(args.dataset_dir, args.label_column, args.text_column)
    if args.dataset is not None and "/" not in args.dataset:
        raise UserError(
            f"--dataset {args.dataset!r}: choose {', '.join(MADE_HERE)}, or a data set of the Hub as owner/name. A "
            f"directory or file of yours is {LOCAL_HINT}."
        )
    return read_table(
        args.domain_column,
        args.label_column,
        data_file=args.data_file,
        dataset_name=args.dataset,
        text_column=args.text_column,
    )


def make_views(data: DomainData, backbone: Backbone, args: DomainArguments) -> list[View]:
    """What the model is given of each environment."""
    if backbone.tokenizer is None:
        return [
            ImageView(environment, args.image_size, backbone.mean, backbone.std, args.augment)
            for environment in data.environments
        ]
    return [TextView(e, backbone.tokenizer, args.max_seq_length) for e in data.environments]


def training_samples(data: DomainData, training: Sequence[int], domains: TrainingDomains) -> TrainingSamples:
    """The training samples as the list of hard examples shows them.

    Args:
        data: all environments.
        training: places of those that are trained on.
        domains: the training set made of them, whose numbers the samples go by.
    """

    def text(index: int) -> str:
        domain, sample = domains.place(index)
        environment = data.environments[training[domain]]
        shown = f"{environment.name}, sample {sample}"
        return shown if data.kind == "image" else f"{shown}: {environment.inputs[sample]}"

    def row(index: int) -> dict[str, int | str]:
        domain, sample = domains.place(index)
        return {"index": sample, "domain": data.environments[training[domain]].name}

    def image(index: int) -> PILImage.Image:
        domain, sample = domains.place(index)
        found = data.environments[training[domain]].inputs[sample]
        return (PILImage.fromarray(found) if isinstance(found, np.ndarray) else found).convert("RGB")

    return TrainingSamples(
        select=lambda _, indices: Subset(domains, indices),
        text=text,
        classes=data.classes,
        row=row,
        image=image if data.kind == "image" else None,
    )
