"""The one table of private members of other libraries that the project uses or overrides, and why.

A row fails by its name when a release moves the member; a use without a row fails too. A public hook is better where
there is one: add a row only after looking for it.
"""

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel, Seq2SeqTrainer, Trainer

ROOT = Path(__file__).parents[2]
OURS = ("rgd_hf", "recipes", "benchmarks")

PRIVATE: dict[str, tuple[Any, str]] = {
    # --- overridden: the Trainer calls them, and has no public hook there ---
    "_finish_current_push": (Trainer, "a failed push of a checkpoint ends in a message of ours"),
    "_get_dataloader": (Trainer, "every loader's collator passes sample weights by"),
    "_get_eval_sampler": (Trainer, "evaluation in order of length, predictions in that of the data"),
    "_get_num_items_in_batch": (
        Trainer,
        "the items of the whole optimizer step, counted by the model's head",
    ),
    "_get_train_sampler": (Trainer, "batches of equal length, batches of equally many samples a domain"),
    "_inner_training_loop": (Trainer, "only there a search's trial has its model and settings"),
    "_load_optimizer_and_scheduler": (Trainer, "state of rules and observers comes back with a checkpoint"),
    "_prepare_input": (Trainer, "a batch that a user's method prepares again keeps its hidden columns"),
    "_push_from_checkpoint": (Trainer, "no push of a checkpoint without a repository that takes it"),
    "_save": (Trainer, "the model card is written beside the model"),
    "_save_checkpoint": (Trainer, "no checkpoint after a loss that was not finite"),
    "_save_optimizer_and_scheduler": (Trainer, "state of rules and observers goes into the checkpoint"),
    "_set_signature_columns_if_needed": (Trainer, "columns that the losses read are kept"),
    # --- read or called ---
    "_clip_grad_norm": (Trainer, "overhead.py times the parts of a step"),
    "_get_collator_with_removed_columns": (Trainer, "MIRO reads rows as the Trainer's collator gets them"),
    "_globalstep_last_logged": (inspect.getsource(Trainer), "which logs are the Trainer's own"),
    "_prepare_inputs": (Trainer, "a batch goes to the device as in training"),
    "_remove_unused_columns": (Trainer, "collators that are wrapped drop columns as the Trainer does"),
    "_signature_columns": ("self._signature_columns", "the columns that the Trainer keeps"),
    "_train_batch_size": ("self._train_batch_size", "the batch size after the search for one that fits"),
    "_set_sync_gradients": (
        Accelerator().gradient_state.__class__,
        "overhead.py makes one micro-batch a step",
    ),
    "_loss_function": (inspect.getsource(PreTrainedModel), "whether a model's loss was replaced"),
    "_shift_right": (transformers.T5ForConditionalGeneration, "decoder inputs as T5 makes them from labels"),
    "_name_or_path": (inspect.getsource(transformers.PreTrainedConfig), "the model card's base model"),
    # --- of torch: documented in its sources alone ---
    "_BatchNorm": (nn.modules.batchnorm, "freezes batch normalization of any dimension"),
    "_forward_hooks": (nn.Module(), "whether hooks see or change the outputs of a model"),
    "_backward_hooks": (torch.Tensor, "whether hooks may take a step with the gradients"),
    "_post_accumulate_grad_hooks": (torch.Tensor, "likewise"),
    "_version": (torch.Tensor, "whether others changed a gradient in place"),
    "_foreach_mul_": (torch, "one kernel rescales all gradients"),
}

NOT_PRIVATE = {"_actions", "_asdict", "_get_value", "_replace"}
"""Of argparse and of named tuples: public by their documentation, or of the standard library."""


def uses() -> Iterator[tuple[str, str]]:
    """Every name with one leading underscore that is read, called, overridden or asked for, and where."""
    for path in sorted(path for folder in OURS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Attribute):
                names = [node.attr]
            elif isinstance(node, ast.FunctionDef):
                names = [node.name]
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(OURS):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                "getattr",
                "hasattr",
                "setattr",
            ):
                names = [str(node.args[1].value)] if isinstance(node.args[1], ast.Constant) else []
            for name in names:
                if re.match("_[^_]", name):
                    yield name, f"{path.relative_to(ROOT)}:{node.lineno}"


def defined_here() -> set[str]:
    """Names that the project itself gives to something."""
    names = set()
    for path in (path for folder in OURS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(getattr(node, "attr", None) or node.id)
    return names


def of_the_trainer() -> set[str]:
    """Members and attributes of the Trainer and of the Accelerator."""
    classes = (Trainer, Seq2SeqTrainer, Accelerator)
    attributes = {name for cls in classes for name in re.findall(r"self\.(_\w+)", inspect.getsource(cls))}
    return attributes | {name for cls in classes for name in dir(cls)}


def is_there(name: str) -> bool:
    """Whether the installed releases still have a member of the table."""
    owner, _ = PRIVATE[name]
    if isinstance(owner, str) and owner.startswith("self."):
        return re.search(rf"{re.escape(owner)}( =|:)", inspect.getsource(Trainer)) is not None
    return name in owner if isinstance(owner, str) else hasattr(owner, name)


@pytest.mark.parametrize("name", PRIVATE)
def test_is_still_there(name):
    assert is_there(name), PRIVATE[name][1]


def test_every_use_has_a_row_and_every_row_a_use():
    found: dict[str, list[str]] = defaultdict(list)
    ours, theirs = defined_here(), of_the_trainer()
    for name, place in uses():
        if (name not in ours or name in theirs) and name not in NOT_PRIVATE:
            found[name].append(place)
    missing = {name: places for name, places in found.items() if name not in PRIVATE}
    assert not missing, "give them a row, or a public hook"
    assert not set(PRIVATE) - set(found), "no longer used: delete the row"
