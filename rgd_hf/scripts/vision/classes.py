"""Names of image classes: ImageNet's by WordNet id, everyone else's as they stand."""

import re
from collections import Counter
from collections.abc import Sequence

from timm.data import ImageNetInfo

_WORDNET_ID = re.compile(r"n\d{8}")


def readable_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Class names that people can read, each one once.

    WordNet ids (`n01440764`) become their words (`tench, Tinca tinca`), with the id behind them where two ids have
    the same words (ImageNet has two cranes); other names are kept.

    Args:
        classes: names of class folders or of a label column.
    """
    if not classes or not all(_WORDNET_ID.fullmatch(name) for name in classes):
        return tuple(classes)
    words: dict[str, str] = {}
    for subset in ("imagenet-22k", "imagenet-1k"):
        words.update(dict(ImageNetInfo(subset).label_descriptions(as_dict=True)))  # type: ignore[arg-type]
    names = [words.get(name, name) for name in classes]
    count = Counter(names)
    return tuple(
        f"{name} ({wordnet_id})" if count[name] > 1 else name for name, wordnet_id in zip(names, classes)
    )


def label_config(classes: Sequence[str]) -> dict[str, dict]:
    """`id2label` and `label2id` of a model's configuration."""
    names = readable_names(classes)
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
