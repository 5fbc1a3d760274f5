"""Environments (domains), what they must have in common, and how each is split.

The protocol is that of Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization", ICLR 2021 (DomainBed).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.messages import say_warning

HOLDOUT_FRACTION = 0.2


@dataclass(frozen=True)
class Environment:
    """One domain.

    Attributes:
        name: name of the domain.
        inputs: one input per sample: images (PIL, or uint8 arrays `[height, width, 3]`) or strings, accessed by position.
        labels: class numbers, int64 `[samples]`.
    """

    name: str
    inputs: Any
    labels: np.ndarray


@dataclass(frozen=True)
class DomainData:
    """All environments of a data set.

    Attributes:
        environments: at least two, with the same classes.
        classes: their names, in the order of their numbers.
        kind: `"image"` or `"text"`.
    """

    environments: tuple[Environment, ...]
    classes: tuple[str, ...]
    kind: str

    @property
    def names(self) -> list[str]:
        """The names of the environments."""
        return [environment.name for environment in self.environments]


def check_environments(data: DomainData) -> DomainData:
    """Return `data` if one can train on some of its environments and test on another.

    Raises:
        UserError: fewer than two environments or classes, an environment without samples, or one that lacks a class
            which others have.
    """
    empty = [e.name for e in data.environments if len(e.labels) == 0]
    if empty:
        raise UserError(
            f"the domain(s) {listed(empty)} have no {data.kind}s at all: fill or remove them "
            f"(domains found: {listed(data.names)})."
        )
    if len(data.environments) < 2:
        raise UserError(
            f"found {len(data.environments)} domain(s), {listed(data.names)}: at least two are needed, one to hold out "
            "and the others to train on."
        )
    present = {e.name: set(np.unique(e.labels).tolist()) for e in data.environments}
    everywhere = set.union(*present.values())
    for name, classes in present.items():
        if classes != everywhere:
            lacking = [data.classes[number] for number in sorted(everywhere - classes)]
            raise UserError(
                f"the domain {name!r} has no {data.kind} of the class(es) {listed(lacking)}, which others have: every "
                "domain needs the same classes. Add such samples or remove the class from all domains."
            )
    if len(everywhere) < 2:
        raise UserError(
            f"the domains have {len(everywhere)} class(es), {listed(data.classes[number] for number in everywhere)}: "
            "two are needed."
        )
    nowhere = [name for number, name in enumerate(data.classes) if number not in everywhere]
    if nowhere:
        say_warning(
            f"no domain has {'an image' if data.kind == 'image' else 'a text'} of {len(nowhere)} of the "
            f"{len(data.classes)} classes that the labels name: {listed(nowhere[:10])}. The model has outputs for "
            "them, which it never learns."
        )
    small = [e.name for e in data.environments if int(len(e.labels) * HOLDOUT_FRACTION) == 0]
    if small:
        raise UserError(
            f"the domain(s) {listed(small)} have too few samples to set {HOLDOUT_FRACTION:.0%} aside: "
            "at least 5 are needed."
        )
    return data


def check_held_out(names: Sequence[str], data: DomainData) -> None:
    """Raise `UserError` unless `names` are one or two of the environments, and others are left to train on."""
    domains = listed(data.names)
    strange = [name for name in names if name not in data.names]
    if strange:
        raise UserError(f"--held_out: there is no domain {listed(strange)}; domains: {domains}.")
    if len(set(names)) != len(names) or len(names) not in (1, 2):
        raise UserError(
            f"--held_out names the domain to test on (two for leave-one-domain-out selection), one of {domains}, not "
            f"{listed(names)}. Each in turn is for a study: `parts: {{held_out: [...]}}`, see benchmarks/README.md."
        )
    if len(names) == len(data.names):
        raise UserError(f"--held_out leaves no domain to train on; domains: {domains}.")


def seed_hash(*parts: Any) -> int:
    """A seed from 0 to 2**31 - 1 that depends on all `parts`, as DomainBed derives its seeds."""
    return int(hashlib.md5(str(parts).encode("utf-8")).hexdigest(), 16) % (2**31)


def split(count: int, trial: int, position: int) -> tuple[np.ndarray, np.ndarray]:
    """The `in` (80 %) and `out` (20 %) samples of an environment.

    A permutation of all samples, drawn with the seed `seed_hash(trial, position)`; its first `int(0.2 * count)` are
    `out`. It depends on the trial alone, so every algorithm sees the same splits.

    Args:
        count: samples of the environment.
        trial: number of the trial.
        position: index of the environment in the data set.

    Returns:
        Sample numbers of `in` and of `out`, in the order of the permutation.
    """
    keys = np.arange(count)
    np.random.RandomState(seed_hash(trial, position)).shuffle(keys)
    held_back = int(count * HOLDOUT_FRACTION)
    return keys[held_back:], keys[:held_back]
