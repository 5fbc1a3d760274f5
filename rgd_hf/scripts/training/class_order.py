"""The order of the classes where training begins with a classifier that has one already."""

import re
from collections.abc import Mapping, Sequence

from rgd_hf.scripts.errors import listed
from rgd_hf.scripts.messages import say, say_warning

_MADE_UP = re.compile(r"LABEL_\d+")
_SHOWN = 10


def in_order_of_model(model: str, id2label: Mapping[int, str], names: Sequence[str]) -> tuple[str, ...]:
    """The classes of the data in the order of a pretrained classifier's outputs, where these have the same names.

    Upper and lower case, spaces and hyphens make no difference. Where the names are others, the order stays, and one
    sentence says that the outputs get another meaning (not for `LABEL_0`, which transformers makes up).

    Args:
        model: its name, for messages.
        id2label: the names of its outputs; as many as the data has classes.
        names: the classes of the data.
    """
    trained = [str(id2label[number]) for number in sorted(id2label)]
    places = {_plain(name): number for number, name in enumerate(trained)}
    known = {_plain(name): name for name in names}
    if len(known) == len(names) == len(places) and known.keys() == places.keys():
        ordered = tuple(sorted(names, key=lambda name: places[_plain(name)]))
        if ordered != tuple(names):
            say(f"Classes are numbered as in {model}: {_shown(ordered)}.")
        return ordered
    shared = [number for number, name in enumerate(names) if _plain(name) in places]
    in_place = all(_plain(trained[number]) == _plain(names[number]) for number in shared)
    few_differ = in_place and 2 * len(shared) >= len(names)  # of ImageNet's words there are several editions
    if not few_differ and not all(_MADE_UP.fullmatch(name) for name in trained):
        say_warning(
            f"the outputs of {model} stand for {_shown(trained)}, and from now on for {_shown(names)}, in this order: its "
            "classifier begins with the weights of the other classes."
        )
    return tuple(names)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", str(name).strip().casefold())


def _shown(names: Sequence[str]) -> str:
    return listed(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
