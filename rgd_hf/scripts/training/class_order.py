"""Where training begins with a classifier that has the data's classes in another order: its outputs are reordered."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rgd_hf.batches.datasets import seeded
from rgd_hf.processes import same_everywhere
from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.messages import say, say_warning

_MADE_UP = re.compile(r"LABEL_\d+")
_SHOWN = 10
_MOST_HEADS = 4


def tell_order(name: str, id2label: Mapping[int, str], classes: Sequence[str]) -> None:
    """Say what becomes of a pretrained classifier's outputs, if anything: that they are reordered (see `reorder_outputs`), or
    that they get another meaning.

    Args:
        name: the model, for messages.
        id2label: the names of its outputs; as many as the data has classes. `LABEL_0`, which transformers makes up, is no name.
        classes: the classes of the data.
    """
    trained = _in_order(id2label)
    outputs = _outputs_of(trained, classes)
    if outputs is not None:
        if _differ(outputs):
            say(
                f"The outputs of {name} stand for {_shown(trained)}: they are reordered, with their weights, to the data's "
                f"order, {_shown(classes)}."
            )
        return
    known = {_plain(other) for other in trained}
    shared = [number for number, other in enumerate(classes) if _plain(other) in known]
    in_place = all(_plain(trained[number]) == _plain(classes[number]) for number in shared)
    # Of ImageNet's words there are several editions.
    few_differ = in_place and 2 * len(shared) >= len(classes)
    if not few_differ and not all(_MADE_UP.fullmatch(other) for other in trained):
        say_warning(
            f"the outputs of {name} stand for {_shown(trained)}, and from now on for {_shown(classes)}, in this order: its "
            "classifier begins with the weights of the other classes."
        )


def reorder_outputs(
    model: Any, name: str, id2label: Mapping[int, str], classes: Sequence[str], inputs: Mapping[str, Tensor]
) -> None:
    """Put the outputs of a pretrained classifier in the order of the data's classes, if both have the same names.

    Upper and lower case, spaces, hyphens and underscores make no difference. The rows of the last layer change places, in
    place; that the logits are then the old ones reordered is checked on `inputs`. Called on every process.

    Args:
        model: as `from_pretrained` returns it, in evaluation mode.
        name: its name, for messages.
        id2label: the names of its outputs, as the pretrained configuration has them; as many as the data has classes.
        classes: the classes of the data.
        inputs: keywords of the model, without labels: a batch of any size.

    Raises:
        UserError: there is no layer whose rows are the logits' classes.
    """
    trained = _in_order(id2label)
    outputs = _outputs_of(trained, classes)
    if outputs is None or not _differ(outputs):
        return
    # Weights of other processes may be those of the main one only later.
    if not same_everywhere(_reordered(model, outputs, inputs)):
        raise UserError(
            f"{name} has the same classes as the data, {_shown(trained)}, but in another order than the data's, "
            f"{_shown(classes)}, and its outputs cannot be reordered: they are not those of a linear layer. Give the model that it "
            "was fine-tuned from (--model_name_or_path), which gets a new classifier."
        )


@torch.no_grad()
def _reordered(model: Any, outputs: list[int], inputs: Mapping[str, Tensor]) -> bool:
    layers = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and len(module.weight) == len(outputs)
    ]
    if not layers:
        return False
    wanted = _logits(model, inputs)[..., outputs]
    # Some models add the outputs of several heads, as those distilled with a token of their own do.
    for layer in layers[: -_MOST_HEADS - 1 : -1]:
        for parameter in layer.parameters():
            parameter.copy_(parameter[outputs])
        # The order in which a product is summed may depend on its row.
        precision = max(4 * torch.finfo(kind).eps for kind in (wanted.dtype, layer.weight.dtype))
        allowed = max(precision, 1e-4) * wanted.abs().max().item()
        if torch.allclose(_logits(model, inputs), wanted, rtol=0, atol=allowed):
            return True
    return False


def _logits(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    with seeded(0):  # some attention draws at random in evaluation too
        return model(**inputs)[0]


def _in_order(id2label: Mapping[int, str]) -> list[str]:
    return [str(id2label[number]) for number in sorted(id2label)]


def _outputs_of(trained: Sequence[str], classes: Sequence[str]) -> list[int] | None:
    """The number of the output that stands for each class; None where the names are others, or not told apart."""
    places = {_plain(other): number for number, other in enumerate(trained)}
    wanted = [_plain(other) for other in classes]
    if len(set(wanted)) == len(wanted) == len(places) and set(wanted) == places.keys():
        return [places[other] for other in wanted]
    return None


def _differ(outputs: Sequence[int]) -> bool:
    return list(outputs) != list(range(len(outputs)))


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", str(name).strip().casefold())


def _shown(names: Sequence[str]) -> str:
    return listed(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
