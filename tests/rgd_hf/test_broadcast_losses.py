"""Losses of every sample with the labels of all others: what `[batch, 1]` and `[batch]` make of one another."""

import pytest
import torch
from torch.nn import functional as F

from rgd_hf import ReweightedTrainer
from tests.helpers.tiny import classification_data, tiny_bert

BATCH = 4


def data(*shape, samples=2 * BATCH):
    generator = torch.Generator().manual_seed(0)
    return [{**row, "labels": torch.rand(shape, generator=generator)} for row in classification_data(samples)]


def squared(logits, labels):
    return (logits - labels) ** 2


def trainer_of(way, losses, rows, make_args, outputs=1, **settings):
    """A Trainer whose losses are `losses(logits, labels)`, of a function or of a method."""

    class Mine(ReweightedTrainer):
        def compute_per_sample_losses(self, model, inputs):
            labels = inputs.pop("labels")
            found = model(**inputs)
            returned = losses(found.logits, labels)
            return (returned[0], found, returned[1]) if isinstance(returned, tuple) else (returned, found)

    args = make_args(
        per_device_train_batch_size=BATCH, max_steps=2, per_device_eval_batch_size=BATCH, **settings
    )
    keywords = {
        "model": tiny_bert(num_labels=outputs),
        "args": args,
        "train_dataset": rows,
        "eval_dataset": rows,
    }
    if way == "method":
        return Mine(**keywords)
    return ReweightedTrainer(
        per_sample_loss_fn=lambda outputs, labels: losses(outputs.logits, labels), **keywords
    )


ways = pytest.mark.parametrize("way", ["function", "method"])


@ways
@pytest.mark.parametrize(
    ("labels", "outputs", "losses"),
    [
        ((), 1, squared),
        ((1,), 1, lambda logits, labels: squared(logits.squeeze(-1), labels)),
        ((3,), 3, lambda logits, labels: squared(logits[:, None], labels)),
    ],
    ids=["[b, 1] and [b]", "[b] and [b, 1]", "[b, 1, k] and [b, k]"],
)
@pytest.mark.parametrize("level", ["auto", "sample"])
def test_they_are_refused(way, labels, outputs, losses, level, make_args):
    trainer = trainer_of(way, losses, data(*labels), make_args, outputs, save_strategy="no")
    trainer.args.reweighting_level = level
    for call in (trainer.train, trainer.evaluate):
        with pytest.raises(ValueError, match="each sample with the labels of all others"):
            call()


@ways
@pytest.mark.parametrize(
    ("labels", "outputs", "losses"),
    [
        ((), 1, lambda logits, labels: squared(logits.squeeze(-1), labels)),
        ((1,), 1, squared),
        ((3,), 3, squared),
        ((BATCH,), BATCH, squared),
        ((), 3, lambda logits, labels: squared(logits, labels[:, None])),
        ((), BATCH, lambda logits, labels: squared(logits, labels[:, None])),
    ],
    ids=["[b]", "[b, 1]", "[b, k]", "[b, k] with k = b", "a label, several losses", "as many as samples"],
)
def test_those_of_one_shape_are_not(way, labels, outputs, losses, make_args):
    trainer_of(way, losses, data(*labels), make_args, outputs).train()


@ways
def test_the_remedies_work(way, make_args):
    def with_a_mask(logits, labels):
        losses = squared(logits, labels)
        return losses, torch.ones_like(losses, dtype=torch.bool)

    trainer_of(way, with_a_mask, data(), make_args).train()
    trainer_of(way, lambda logits, labels: squared(logits.squeeze(-1), labels), data(), make_args).train()


@ways
def test_a_later_batch_of_as_many_samples_as_there_are_losses_is_no_sign(way, make_args):
    """Three losses for each label; the last batch has three samples."""
    rows = data(samples=BATCH + 3)
    trainer_of(way, lambda logits, labels: squared(logits, labels[:, None]), rows, make_args, 3).train()


@ways
def test_a_first_batch_of_one_sample_does_not_tell(way, make_args):
    trainer = trainer_of(way, squared, data(samples=1), make_args)
    trainer.evaluate()
    with pytest.raises(ValueError, match="labels of all others"):
        trainer.evaluate(data(samples=3))


def test_losses_without_labels_are_left_alone(make_args):
    def densities(outputs, labels):
        return F.relu(outputs.logits.expand(-1, len(outputs.logits)))

    rows = [{"input_ids": row["input_ids"]} for row in classification_data(8)]
    args = make_args(max_steps=2, per_device_train_batch_size=BATCH)
    ReweightedTrainer(
        model=tiny_bert(num_labels=1), args=args, train_dataset=rows, per_sample_loss_fn=densities
    ).train()
