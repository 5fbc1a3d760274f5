"""The base of mixins for a Trainer class, which stand to its left: type checkers see the Trainer below them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Trainer as TrainerBase
else:
    TrainerBase = object

__all__ = ["TrainerBase"]
