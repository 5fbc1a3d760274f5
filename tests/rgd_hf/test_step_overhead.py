"""How much a re-weighted step asks of the host: its operations, against those of the stock Trainer's step.

The step of a small model takes as long as the host needs to launch its kernels, so that each operation counts.
"""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertForTokenClassification,
    Trainer,
    TrainerCallback,
)

from rgd_hf import ReweightedTrainer
from rgd_hf.items import Items
from rgd_hf.observers.statistics import KEPT_BATCHES, KEPT_ITEMS, WeightStatistics
from tests.helpers.tiny import classification_data, tiny_bert, tiny_config, tiny_gpt2

# Neither launches a kernel nor computes anything.
VIEWS = {
    "aten.detach.default",
    "aten.expand.default",
    "aten.select.int",
    "aten.view.default",
    "aten.t.default",
}


class CountOperations(TorchDispatchMode):
    """Counts what is dispatched, but for views."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func) not in VIEWS:
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def token_data(n):
    return [{**row, "labels": row["input_ids"] % 3} for row in classification_data(n)]


def language_data(n):
    return [{**row, "labels": row["input_ids"]} for row in classification_data(n)]


TASKS = {
    "sequence classification": (tiny_bert, classification_data),
    "token classification": (lambda: BertForTokenClassification(tiny_config()), token_data),
    "causal language modelling": (tiny_gpt2, language_data),
}


def operations(cls, task, args, **settings):
    """Operations of one optimizer step, the third, by name."""
    build, data = TASKS[task]
    mode = CountOperations()

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                mode.__enter__()

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                mode.__exit__(None, None, None)

    trainer = cls(build(), args, train_dataset=data(24), callbacks=[Watch()], **settings)
    trainer.train()
    return mode.counts


# What the weighted mean needs: the mask of the items, weights, their product with the losses and its backward pass, sums.
# In an accumulated step also each micro-batch's share of it.
@pytest.mark.parametrize(("accumulated", "most"), [(1, 20), (4, 88)])
@pytest.mark.parametrize("task", TASKS)
def test_a_step_adds_few_operations_to_the_stock_trainers(task, accumulated, most, make_args):
    args = make_args(max_steps=4, gradient_accumulation_steps=accumulated, per_device_train_batch_size=2)
    stock = operations(Trainer, task, args)
    # The head without logits has operations of its own, in place of larger ones.
    ours = operations(ReweightedTrainer, task, args, reweighting="kl", tau=50.0, fused_lm_head=False)
    more = {name: ours[name] - stock[name] for name in ours | stock if ours[name] != stock[name]}
    assert stock.total() > 100 and 0 < ours.total() - stock.total() <= most, more


@pytest.mark.parametrize("items", [32, 2 * KEPT_ITEMS // KEPT_BATCHES], ids=["few items", "many items"])
def test_statistics_cost_few_operations_per_micro_batch(items):
    statistics = WeightStatistics()
    statistics.reset(torch.device("cpu"))
    seen, weights, number = Items(torch.rand(items), torch.ones(items)), torch.ones(items), 2 * KEPT_BATCHES
    with CountOperations() as mode:
        for step in range(number):
            statistics.observe(seen, weights, step)
    assert mode.counts.total() <= 4 * number


@pytest.mark.parametrize(
    "method", ["get_batch_samples", "training_step", "_run_epoch", "_inner_training_loop"]
)
def test_who_sees_the_number_of_items_finds_it_counted(method, make_args):
    """A step of one micro-batch is not counted otherwise."""

    def number(cls):
        trainer = cls(tiny_bert(), make_args(), train_dataset=classification_data(8))
        batch = next(iter(trainer.get_train_dataloader()))
        found = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)[1]
        return found, len(batch["labels"])

    class Own(ReweightedTrainer):
        pass

    assert number(Own)[0] is None
    setattr(Own, method, lambda self, *args, **kwargs: getattr(super(Own, self), method)(*args, **kwargs))
    found, samples = number(type("Later", (Own,), {}))
    assert found == samples
