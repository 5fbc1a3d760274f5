"""Re-weighting never waits for the device between two logs: no `.item()` of ours, nor anything that becomes one."""

import pytest
from transformers import Trainer

from rgd_hf import ReweightedTrainer
from rgd_hf.weightings.choice import by_losses_alone
from tests.helpers.language import llama
from tests.helpers.operators import CountSteps, CountWaits
from tests.helpers.tiny import classification_data, tiny_bert


def token_data():
    data = []
    for i, example in enumerate(classification_data(32)):
        labels = example["input_ids"] % 30
        labels[: i % 4] = -100
        data.append({"input_ids": example["input_ids"] % 30, "labels": labels})
    return data


TASKS = {"classification": (tiny_bert, classification_data(32)), "causal LM": (llama, token_data())}


def waits(cls, task, make_args, keywords, **settings):
    model, data = TASKS[task]
    mode = CountWaits()
    counter = CountSteps(mode)
    args = make_args(
        max_steps=6, logging_steps=6, gradient_accumulation_steps=2, per_device_train_batch_size=4, **settings
    )
    trainer = cls(model(), args, train_dataset=data, callbacks=[counter], **keywords)
    with mode:
        trainer.train()
    return counter.per_step[1:-1]


def log_weights(losses):
    return (1 + losses).log1p()


CASES = [
    *(({"reweighting": name}, {}) for name in by_losses_alone()),
    ({"reweighting": log_weights}, {}),
    ({"reweighting": "reverse_kl", "reweighting_warmup_ratio": 0.5}, {}),
    ({"reweighting": "kl", "normalize_weights": True}, {}),
    ({"reweighting": "kl", "reweighting_level": "sample"}, {}),
    ({"reweighting": "kl"}, {"label_smoothing_factor": 0.1}),
    ({"fused_lm_head": False}, {}),
]


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize(
    ("keywords", "settings"),
    CASES,
    ids=lambda given: str({k: getattr(v, "__name__", v) for k, v in given.items()}),
)
def test_waits_for_the_device_no_more_often_than_the_stock_trainer(task, keywords, settings, make_args):
    stock = waits(Trainer, task, make_args, {}, **settings)
    ours = waits(ReweightedTrainer, task, make_args, keywords, **settings)
    assert len(ours) == len(stock) == 4
    for expected, found in zip(stock, ours, strict=True):
        assert not found - expected, f"{found} instead of {expected} in one step"


def test_the_count_sees_a_wait(make_args):
    class Waits(ReweightedTrainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            loss.item()
            return loss

    stock, ours = (waits(cls, "classification", make_args, {}) for cls in (Trainer, Waits))
    assert ours[0]["aten::_local_scalar_dense"] == stock[0]["aten::_local_scalar_dense"] + 2
