"""The column `sample_weight`: lost on its way, or with values that are no weights."""

import datasets
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from rgd_hf import ReweightedTrainer, rgd_surrogate
from tests.helpers.tiny import (
    classification_data,
    gradients_of,
    parameters_of,
    relative_error,
    stack,
    tiny_bert,
)

RATE = 1e-2


def weighted(n=12, weight=lambda i: float(i % 3)):
    return [{**row, "sample_weight": torch.tensor(weight(i))} for i, row in enumerate(classification_data(n))]


class Rows(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {**self.rows[index], "noise": torch.rand(())}


def as_dataset(rows):
    return datasets.Dataset.from_list([{k: v.tolist() for k, v in row.items()} for row in rows])


def collate(examples):
    """As collators do that name the columns of a batch themselves."""
    return {
        name: torch.stack([torch.as_tensor(e[name]) for e in examples]) for name in ("input_ids", "labels")
    }


def collate_with_weights(examples):
    return {
        **collate(examples),
        "sample_weight": torch.stack([torch.as_tensor(e["sample_weight"]) for e in examples]),
    }


class OwnLoader(ReweightedTrainer):
    def get_train_dataloader(self):
        return DataLoader(
            self.train_dataset, batch_size=self.args.train_batch_size, collate_fn=self.data_collator
        )


def step_of(trainer):
    start = parameters_of(trainer.model)
    trainer.train()
    return (start - parameters_of(trainer.model)) / RATE


def trainer_of(make_args, data, cls=ReweightedTrainer, **arguments):
    args = make_args(max_steps=1, learning_rate=RATE, per_device_train_batch_size=12)
    return cls(tiny_bert(), args, train_dataset=data, **arguments)


@pytest.mark.parametrize("kind", [list, Rows, as_dataset])
def test_weights_that_a_dataloader_leaves_out_are_missed_and_the_remedies_work(kind, make_args):
    data = kind(weighted())
    trainer = trainer_of(make_args, data, OwnLoader, data_collator=collate)
    with pytest.raises(ValueError, match=r"has a column 'sample_weight'.*only input_ids, labels.*remove or"):
        trainer.train()
    found = step_of(trainer_of(make_args, data, OwnLoader, data_collator=collate_with_weights))
    model, batch = tiny_bert(), stack(weighted())
    losses = F.cross_entropy(model(input_ids=batch["input_ids"]).logits, batch["labels"], reduction="none")
    weights = batch["sample_weight"]
    ((rgd_surrogate(losses) * weights).sum() / weights.sum()).backward()
    assert relative_error(found, gradients_of(model)) < 1e-4


@pytest.mark.parametrize("kind", [list, Rows, as_dataset])
def test_data_without_weights_need_none(kind, make_args):
    found = step_of(trainer_of(make_args, kind(classification_data(12)), OwnLoader, data_collator=collate))
    model, batch = tiny_bert(), stack(classification_data(12))
    losses = F.cross_entropy(model(input_ids=batch["input_ids"]).logits, batch["labels"], reduction="none")
    rgd_surrogate(losses).mean().backward()
    assert relative_error(found, gradients_of(model)) < 1e-4


def test_weights_that_a_transform_leaves_out_are_missed(make_args):
    def transform(rows):
        return {name: [torch.tensor(value) for value in rows[name]] for name in ("input_ids", "labels")}

    data = as_dataset(weighted()).with_transform(transform)
    with pytest.raises(ValueError, match="has a column 'sample_weight'"):
        trainer_of(make_args, data).train()
    assert trainer_of(make_args, data.remove_columns("sample_weight")).train().global_step == 1


def test_looking_for_weights_leaves_random_numbers_alone(make_args):
    """The examples of `Rows` draw one each."""

    class Draws(OwnLoader):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            self.drawn = torch.rand(())
            return loss

    def drawn(rows):
        trainer = trainer_of(make_args, rows, Draws, data_collator=collate)
        trainer.train()
        return trainer.drawn

    class Named(Rows):
        column_names = ["input_ids", "labels"]

    rows = classification_data(12)
    assert torch.equal(drawn(Rows(rows)), drawn(Named(rows)))


class Stream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [list, as_dataset, Stream])
def test_what_is_no_weight_is_refused_wherever_it_is(kind, bad, make_args):
    """In the second batch, where nothing may wait for the device."""
    data = kind(weighted(24, lambda i: bad if i == 20 else 1.0))
    args = make_args(max_steps=3, train_sampling_strategy="sequential")
    trainer = ReweightedTrainer(tiny_bert(), args, train_dataset=data)
    with pytest.raises(ValueError, match=rf"non-negative numbers, but a training batch has {bad:g}"):
        trainer.train()


def test_weights_of_a_dataloader_of_ones_own_are_looked_at_in_the_first_batch(make_args):
    data = weighted(weight=lambda i: -1.0 if i == 3 else 1.0)
    with pytest.raises(ValueError, match="a training batch has -1"):
        trainer_of(make_args, data, OwnLoader, data_collator=collate_with_weights).train()


def test_weights_of_evaluation_data_are_not_used_nor_refused(make_args):
    trainer = ReweightedTrainer(tiny_bert(), make_args(), eval_dataset=weighted(weight=lambda i: -1.0))
    own = tiny_bert().eval()(**stack(classification_data(12))).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(own, rel=1e-5)
