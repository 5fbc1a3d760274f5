"""Where the images of a recipe come from: the Hub, parquet files, class folders, or scikit-learn's digits."""

import glob
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
from datasets import load_dataset

from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.files import holdout
from rgd_hf.scripts.files.data_files import concatenated, read_file
from rgd_hf.scripts.files.hub import load_hub_dataset
from rgd_hf.scripts.messages import say_warning
from rgd_hf.scripts.vision.image_files import folders_in, is_image
from rgd_hf.scripts.vision.sets import ImageSet, digits, from_dataset, read_folder, sample_rows
from rgd_hf.scripts.vision.stream import stream_classes

LOCAL_HINT = "--data_dir DIR (train/<class>/*.JPEG and val/..., or parquet files)"
IMAGENET = "ILSVRC/imagenet-1k"
VALIDATION_NAMES = ("validation", "val", "test")
SUBSET_SEED = 0
"""Which images are drawn does not depend on `--seed`: runs with several seeds see the same ones."""


@dataclass
class ImageDataArguments:
    """Data."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": f"Data set on the Hugging Face Hub, {IMAGENET} by default; or `digits` (of scikit-learn, no network)."
        },
    )
    data_dir: list[str] | None = field(
        default=None,
        metadata={
            "help": "Directory with train/<class>/*.JPEG and val/<class>/*.JPEG (or validation, test), or with parquet files: "
            "train.parquet, train/*.parquet, or train-*.parquet there or in data/, as in a copy of a data set of the Hub. "
            "Or two paths, for training and validation images: each a folder of class folders or of parquet files, or a "
            "parquet file. With --holdout_fraction one folder of class folders, or one parquet file, is enough."
        },
    )
    columns: list[str] = field(
        default_factory=lambda: ["image", "label"],
        metadata={"help": "Names of the image column and the label column (Hub, parquet)."},
    )
    class_names: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the classes in the order of their numbers, each a different one, if the data does not have "
            "them."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read images from the Hub (or parquet files) as they are needed, without storing them."
        },
    )
    max_train_samples: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of training images: a random subset, stratified by class, the same for every --seed."
        },
    )
    max_eval_samples: int | None = field(
        default=None,
        metadata={"help": "Maximum number of validation images, chosen as those of --max_train_samples are."},
    )
    holdout_fraction: float | None = field(
        default=None,
        metadata={"help": holdout.HELP + "The split is stratified by class and does not depend on --seed."},
    )
    bad_images: str = field(
        default="skip",
        metadata={
            "help": "Unreadable images: `skip` skips them, counts them and lists them in OUTPUT_DIR/bad_images.txt; `stop` "
            "decodes all images before training and stops if one is unreadable."
        },
    )

    def __post_init__(self):
        if isinstance(self.data_dir, str):
            self.data_dir = [self.data_dir]
        if self.data_dir is not None and len(self.data_dir) not in (1, 2):
            raise UserError(
                "--data_dir is one directory, or two places: what to train on and what to evaluate on; given: "
                f"{listed(self.data_dir)}."
            )
        if len(self.columns) != 2:
            raise UserError(
                f"--columns takes two names, the column of the images and that of the labels; given: {listed(self.columns)}."
            )
        for name, count in Counter(self.class_names or ()).items():
            if count > 1:
                numbers = [number for number, other in enumerate(self.class_names or ()) if other == name]
                raise UserError(
                    f"--class_names has {name!r} {count} times, for the classes {listed(numbers)}: each needs a name of its "
                    f"own. Make them different: '{name} ({numbers[0]})', say, or '{name} (KIND)'."
                )
        if self.dataset_name and self.data_dir:
            raise UserError("give either --dataset_name or --data_dir, not both.")
        if not self.data_dir:
            self.dataset_name = self.dataset_name or IMAGENET
        if not self.streaming:
            return
        for name in ("holdout_fraction", "max_train_samples", "max_eval_samples"):
            if getattr(self, name) is not None:
                raise UserError(f"--{name} needs all labels beforehand: remove --streaming.")


@dataclass(frozen=True)
class ImageStream:
    """A streamed split.

    Attributes:
        rows: with an image column and a label column of class numbers.
        classes: names of the classes.
        size: number of images, None where it is not known.
    """

    rows: datasets.IterableDataset
    classes: tuple[str, ...]
    size: int | None


def load_image_sets(
    args: ImageDataArguments, seed: int = SUBSET_SEED, thin: Callable[[ImageSet], ImageSet] | None = None
) -> tuple[ImageSet, ImageSet]:
    """The training and the validation images, with class numbers in the order of the training classes.

    With `args.holdout_fraction` the second are training images, drawn from what is left of them, and no validation
    images are looked for.

    Args:
        args: where they are, and how many.
        seed: random seed of every draw.
        thin: takes images away from what is trained on, before some are held out; for studies.

    Raises:
        UserError: there are no such data, they are no labelled images, of fewer than two classes, a validation class is
            not trained, or they are too few to hold some out.
    """
    splits = ("train",) if args.holdout_fraction is not None else ("train", "validation")
    sets = _read_sets(args, splits)
    train = sets["train"]
    missing = [name for name, count in zip(train.classes, train.counts()) if count == 0]
    if missing:
        raise UserError(
            f"{train.origin} has no image of {len(missing)} of its {len(train.classes)} classes: {listed(missing[:10])}. "
            "Class numbers count from 0 and leave none out: renumber the labels, or write them as texts in place of numbers"
            f"{' and leave out --class_names' if args.class_names else ''}; then those that occur are the classes."
        )
    _check_classes(train.classes, train.origin)
    train = sample_rows(train, args.max_train_samples, seed, "max_train_samples")
    if thin is not None:
        train = thin(train)
    if args.holdout_fraction is not None:
        kept, held_out = holdout.hold_out(len(train), args.holdout_fraction, seed, train.labels)
        train, validation = train.select(kept), train.select(held_out)
    else:
        validation = sets["validation"].in_order_of(train.classes)
    validation = sample_rows(validation, args.max_eval_samples, seed, "max_eval_samples")
    absent = [name for name, count in zip(train.classes, validation.counts()) if count == 0]
    if absent:
        say_warning(
            f"no image to evaluate on is of {len(absent)} of the {len(train.classes)} classes: "
            f"{listed(absent[:10])}. All scores, "
            "worst_class_accuracy too, are those of the other classes."
        )
    return train, validation


def _check_classes(classes: Sequence[str], origin: str) -> None:
    if len(classes) < 2:
        raise UserError(
            f"{origin} has {len(classes)} class(es), {listed(classes)}: two are needed. Images of each class belong "
            "in a folder of their own; of parquet files and the Hub, --columns IMAGE LABEL names the column of the "
            "classes."
        )


def load_image_streams(args: ImageDataArguments) -> tuple[ImageStream, ImageStream]:
    """The streamed training and validation splits.

    Raises:
        UserError: there are no such data, or their classes are not known.
    """
    if args.dataset_name:
        splits = load_hub_dataset(args.dataset_name, local_hint=LOCAL_HINT, streaming=True)
        found = {"train": splits.get("train"), "validation": _validation_of(splits, args.dataset_name)}
    else:
        files = {split: [glob.escape(str(path)) for path in paths] for split, paths in _files(args).items()}
        if not all(name.endswith(".parquet") for names in files.values() for name in names):
            raise UserError("--streaming reads the Hub or parquet files; class folders need no streaming.")
        found = dict(load_dataset("parquet", data_files=files, streaming=True))
    if found["train"] is None:
        raise UserError(f"{args.dataset_name} has no split `train`.")
    streams = []
    for split, rows in found.items():
        info = (rows.info.splits or {}).get(rows.split if args.dataset_name else split)
        classes = stream_classes(rows, args.columns[1], args.class_names)
        _check_classes(classes, f"the {split} stream")
        streams.append(ImageStream(rows, classes, info.num_examples if info else None))
    return streams[0], streams[1]


def _read_sets(args: ImageDataArguments, wanted: Sequence[str]) -> dict[str, ImageSet]:
    if args.dataset_name == "digits":
        return dict(zip(("train", "validation"), digits()))
    if args.dataset_name:
        used = (("train",), VALIDATION_NAMES)
        splits = load_hub_dataset(args.dataset_name, local_hint=LOCAL_HINT, splits=used)
        if "train" not in splits:
            raise UserError(f"{args.dataset_name} has no split `train`, only {listed(splits)}.")
        found = {"train": splits["train"]}
        if "validation" in wanted:
            found["validation"] = _validation_of(splits, args.dataset_name)
        origins = {split: f"the {split} split of {args.dataset_name}" for split in found}
    else:
        files = _files(args, wanted)
        places = {split: paths[0] if len(paths) == 1 else paths[0].parent for split, paths in files.items()}
        folders = [paths[0].is_dir() for paths in files.values()]
        if any(folders) and (args.class_names or not all(folders)):
            raise UserError(
                "--class_names is for parquet files and the Hub: with class folders, the names of the folders are those of the classes."
                if all(folders)
                else f"{listed(map(str, places.values()))}: give class folders for both splits, or parquet files for both."
            )
        if all(folders):
            return {split: read_folder(place) for split, place in places.items()}
        found = {
            split: concatenated({str(path): read_file(path) for path in paths})
            for split, paths in files.items()
        }
        origins = {split: str(place) for split, place in places.items()}
    image, label = args.columns
    return {
        split: replace(
            from_dataset(rows, image, label, args.class_names, origins[split]),
            split=str(rows.split) if args.dataset_name else None,
        )
        for split, rows in found.items()
    }


def _validation_of(splits, name: str):
    for split in VALIDATION_NAMES:
        if split in splits:
            return splits[split]
    raise UserError(f"{name} has no split {' or '.join(VALIDATION_NAMES)}, only {listed(splits)}.")


def _files(
    args: ImageDataArguments, wanted: Sequence[str] = ("train", "validation")
) -> dict[str, list[Path]]:
    """Of each split the folder of class folders, alone, or the parquet files."""
    given = args.data_dir or []
    if len(given) == 2:
        places = [_existing(name) for name in given[: len(wanted)]]
        return {split: _parquet_in(path) or [path] for split, path in zip(wanted, places)}
    folder, held_out = _existing(given[0]), len(wanted) == 1
    if not folder.is_dir():
        if held_out and folder.suffix == ".parquet":
            return {wanted[0]: [folder]}
        raise UserError(
            f"--data_dir: {str(folder)!r} is a file, not a directory. Give two paths, --data_dir TRAIN VALIDATION, each a "
            "parquet file, a folder of parquet files or a folder of class folders; or one directory that holds both. With "
            "--holdout_fraction one parquet file or folder of class folders is enough."
        )
    found = {}
    for split in wanted:
        names = VALIDATION_NAMES if split == "validation" else (split,)
        present = next(filter(None, (_split_files(folder, name) for name in names)), None)
        if present is None and held_out and _has_class_folders(folder):
            present = [folder]
        if present is None:
            hint = " (with --holdout_fraction the second is not read)" if held_out else ""
            if split == "validation" and not args.streaming:
                hint = "; without validation images, --holdout_fraction 0.1 evaluates on training images"
            raise UserError(
                f"{folder} has no {' or '.join(names)} (a folder of class folders or of parquet files), no "
                f"{names[0]}.parquet, and no {names[0]}-*.parquet there or in {folder / 'data'}; it holds "
                f"{listed(sorted(path.name for path in folder.iterdir())[:10])}. For folders of other names, give two: "
                f"--data_dir TRAIN VALIDATION{hint}."
            )
        found[split] = present
    return found


def _has_class_folders(folder: Path) -> bool:
    """Whether folders in `folder` hold images themselves, as those of classes do and those of splits do not."""
    return any(is_image(path.name) for inner in folders_in(folder) for path in inner.iterdir())


def _split_files(folder: Path, name: str) -> list[Path]:
    """What a directory has of a split; its last two places are those of a local copy of a data set of the Hub."""
    for path in (folder / name, folder / f"{name}.parquet"):
        if path.exists():
            return _parquet_in(path) or [path]
    for place in (folder, folder / "data"):
        shards = sorted(place.glob(f"{name}-*.parquet"))
        if shards:
            return _whole(shards)
    return []


def _parquet_in(path: Path) -> list[Path]:
    return _whole(sorted(path.glob("*.parquet"))) if path.is_dir() else []


def _whole(shards: list[Path]) -> list[Path]:
    """The files of a split that was written in parts, if they are all there."""
    totals = {
        int(match.group(1)) for path in shards if (match := re.search(r"-of-(\d+)\.parquet$", path.name))
    }
    if totals and totals != {len(shards)}:
        raise UserError(
            f"{shards[0].parent} has {len(shards)} parquet file(s) of a split that was written in "
            f"{' or '.join(map(str, sorted(totals)))} ({listed([path.name for path in shards[:3]])}, ...): copy the others "
            "there too, or take away what does not belong to it."
        )
    return shards


def _existing(name: str) -> Path:
    path = Path(name)
    if not path.exists():
        raise UserError(f"there is no file or directory {name!r} (looked in {Path.cwd()}).")
    return path
