"""Columns that a rule or an observer reads: carried by any collator, found by the user's losses, and not given to a model."""

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import default_collate
from transformers import BatchEncoding, BatchFeature, BertForSequenceClassification, default_data_collator

from rgd_hf import ReweightedTrainer
from rgd_hf.batches.columns import ColumnCollator, SampleWeightCollator, WithColumns
from rgd_hf.observers import HardExamples
from rgd_hf.weightings import GroupDRO
from tests.helpers.recorded import RecordedMixin
from tests.helpers.tiny import (
    classification_data,
    parameters_of,
    relative_error,
    stack,
    tiny_bert,
    tiny_config,
)

SAMPLES = 16


def rows(**columns):
    """Samples with further columns, each a function of the sample's number."""
    data = classification_data(SAMPLES)
    return [{**row, **{k: of(i) for k, of in columns.items()}} for i, row in enumerate(data)]


def weighed(**others):
    return rows(group=lambda i: i % 2, sample_weight=lambda i: 0.5 + i % 3, **others)


def trained(make_args, cls=ReweightedTrainer, model=None, data=None, rule=None, collator=None, **kwargs):
    names = {name: kwargs.pop(name) for name in ("per_sample_loss_fn",) if name in kwargs}
    trainer = cls(
        model or tiny_bert(),
        make_args(train_sampling_strategy="sequential", **kwargs),
        train_dataset=data or weighed(),
        data_collator=collator,
        reweighting=rule or GroupDRO(2, 0.5),
        **names,
    )
    trainer.train()
    return trainer


# --- collators ------------------------------------------------------------------------------------------------------


def by_name(examples):
    return {
        **stack([{k: e[k] for k in ("input_ids", "labels")} for e in examples]),
        "group": torch.tensor([e["group"] for e in examples]),
        "sample_weight": torch.tensor([e.get("sample_weight", 1.0) for e in examples]),
    }


def taken_out(examples):
    groups = torch.tensor([e.pop("group") for e in examples])
    weights = torch.tensor([e.pop("sample_weight") if "sample_weight" in e else 1.0 for e in examples])
    return {**stack(examples), "group": groups, "sample_weight": weights}


def of_copies(examples):
    return taken_out([{**e} for e in examples])


def without(examples):
    """Takes what all examples have, as collators for tokens do."""
    return {k: torch.stack([torch.as_tensor(e[k]) for e in examples]) for k in dict(examples[0])}


@pytest.mark.parametrize("collator", [by_name, taken_out, of_copies, without, default_collate])
def test_collators_may_carry_a_column_or_not(make_args, collator):
    known = trained(make_args, collator=default_data_collator)
    found = trained(make_args, collator=collator)
    start = parameters_of(tiny_bert())
    assert relative_error(parameters_of(found.model) - start, parameters_of(known.model) - start) < 1e-5
    assert torch.allclose(found.weighting.state["group_weights"], known.weighting.state["group_weights"])


def test_a_column_that_a_collator_makes_is_the_one_of_the_batch():
    def changes(examples):
        weights = torch.tensor([2 * e["sample_weight"] for e in examples], dtype=torch.float64)
        return {**by_name(examples), "group": torch.ones(len(examples)).long(), "sample_weight": weights}

    calls = []

    def counted(examples):
        calls.append(len(examples))
        return changes(examples)

    batch = ColumnCollator(SampleWeightCollator(counted, check=True), "group")(weighed()[:3])
    assert calls == [3]
    assert (
        batch["sample_weight"].tolist() == [1.0, 3.0, 5.0] and batch["sample_weight"].dtype == torch.float32
    )
    assert batch["group"].tolist() == [1, 1, 1]


def test_a_key_error_of_a_collator_is_its_own():
    def fails(examples):
        return {}["lengths"]

    with pytest.raises(KeyError, match="lengths"):
        ColumnCollator(fails, "group")(weighed()[:2])


def test_columns_are_attributes_as_of_a_tokenizers_batch():
    batch = WithColumns({"input_ids": 1}, {"group": 2})
    assert (batch.input_ids, batch.group, batch.asked) == (1, 2, {"group"})
    assert pickle.loads(pickle.dumps(batch)).group == copy.copy(batch).group == 2
    assert not hasattr(batch, "to") and not hasattr(batch, "__array__")
    with pytest.raises(AttributeError, match=r"no 'labels', only 'input_ids'"):
        batch.labels  # noqa: B018


@pytest.mark.parametrize("kind", [BatchEncoding, BatchFeature])
def test_a_ported_loss_reads_its_batch_as_before(make_args, kind):
    class Ported(ReweightedTrainer):
        def compute_per_sample_losses(self, model, inputs):
            outputs = model(input_ids=inputs.input_ids)
            return F.cross_entropy(outputs.logits, inputs.labels, reduction="none"), outputs

    Ported(
        model=tiny_bert(),
        args=make_args(max_steps=1),
        train_dataset=classification_data(8),
        data_collator=lambda examples: kind(default_data_collator(examples)),
    ).train()


def test_columns_found_by_name():
    batch = WithColumns({"a": 1}, {"group": 2})
    assert batch["group"] == batch.get("group") == 2 and "group" in batch and batch.get("b", 3) == 3
    assert dict(**batch) == dict(batch) == {"a": 1} and list(batch.items()) == [("a", 1)] and len(batch) == 1
    assert batch.copy().pop("group") == 2 and batch.pop("b", 4) == 4
    batch["group"] = 5
    assert batch["group"] == 5 and batch.pop("group") == 5 and "group" not in batch
    with pytest.raises(KeyError, match="group"):
        batch["group"]
    with pytest.raises(KeyError, match="group"):
        batch.pop("group")


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, message",
    [
        (2, "has the group 2, but num_groups=2 allows the integers from 0 to 1"),
        (-1, "has the group -1"),
        (0.5, "has the group 0.5"),
        (float("nan"), "has the group nan"),
        ("news", "must hold a number for each sample.*has 'news'.*class_encode_column"),
        (None, "must hold a number for each sample.*has None"),
    ],
)
def test_a_group_that_is_none_is_refused_whenever_it_comes(make_args, value, message):
    data = rows(group=lambda i: i % 2 if i != SAMPLES - 1 else value)
    with pytest.raises(ValueError, match=message):
        trained(make_args, data=data, dataloader_num_workers=int(value == 2))


def test_values_are_looked_at_in_training_alone_and_before_the_device(make_args):
    trainer = trained(make_args, data=rows(group=lambda i: i % 2))
    other = rows(group=lambda i: 7)
    assert trainer.evaluate(other)["eval_loss"] == pytest.approx(
        trainer.evaluate(classification_data(SAMPLES))["eval_loss"]
    )
    # A data loader's workers may be started by pickling its collator.
    check = pickle.loads(pickle.dumps(GroupDRO(2).column_checks()))["group"]
    check(torch.tensor([0, 1]))
    check(torch.tensor([False, True]))
    with pytest.raises(ValueError, match="has the group 3"):
        check(torch.tensor([[0.0], [3.0]]))


# --- the user's losses ----------------------------------------------------------------------------------------------


class MultiTask(ReweightedTrainer):
    def compute_per_sample_losses(self, model, inputs):
        labels, tasks = inputs.pop("labels"), inputs.pop("task")
        outputs = model(**inputs)
        topics = F.cross_entropy(outputs.logits, labels, reduction="none")
        tones = F.cross_entropy(outputs.logits[:, :2], labels.clamp(max=1), reduction="none")
        return topics.where(tasks == 0, 0.3 * tones), outputs


def of_both(outputs, labels):
    topics = F.cross_entropy(outputs.logits, labels["labels"], reduction="none")
    return topics * (1 + labels["task"])


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("by", ["method", "function"])
def test_a_loss_may_read_the_column_of_the_rule(make_args, by, accumulation):
    """The oracle has the same numbers in two columns, so that the loss and the rule each have their own."""
    own = {"cls": MultiTask, "remove_unused_columns": False}
    if by == "function":
        own = {"per_sample_loss_fn": of_both, "label_names": ["labels", "task"]}
    own["gradient_accumulation_steps"] = accumulation
    data = rows(task=lambda i: i % 2, group=lambda i: i % 2)
    apart = trained(make_args, data=data, rule=GroupDRO(2, 0.5), **own)
    data = rows(task=lambda i: i % 2)
    shared = trained(make_args, data=data, rule=GroupDRO(2, 0.5, column="task"), **own)
    assert torch.equal(parameters_of(shared.model), parameters_of(apart.model))
    assert shared.evaluate(data)["eval_loss"] == apart.evaluate(data)["eval_loss"]
    assert len(shared.predict(data).predictions) == SAMPLES


@pytest.mark.parametrize("derived", [False, True])
def test_groups_may_be_the_labels(make_args, derived):
    """Also where the losses of a derived class are compared with its own."""
    model = (
        type("Derived", (BertForSequenceClassification,), {}) if derived else BertForSequenceClassification
    )
    found = []
    for data, column in ((rows(), "labels"), ([{**r, "group": r["labels"]} for r in rows()], "group")):
        torch.manual_seed(0)
        trainer = trained(make_args, model=model(tiny_config()), data=data, rule=GroupDRO(3, column=column))
        found.append(parameters_of(trainer.model))
        assert "eval_loss" in trainer.evaluate(data)
    assert torch.equal(*found)


# --- the user's forward passes --------------------------------------------------------------------------------------


class Strict(torch.nn.Module):
    """Takes what it names, and nothing else."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.EmbeddingBag(50, 3)

    def forward(self, input_ids):
        return {"logits": self.embed(input_ids)}


class Naming(Strict):
    def forward(self, input_ids, group=None):
        assert group is not None
        return super().forward(input_ids)


def of_logits(outputs, labels):
    return F.cross_entropy(outputs["logits"], labels, reduction="none")


class WithPenalty(ReweightedTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True)
        penalty = model(**{k: v for k, v in inputs.items() if k != "labels"})["logits"].square().mean()
        loss = loss + 1e-2 * penalty
        return (loss, outputs) if return_outputs else loss


class Adversarial(ReweightedTrainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        model(**{k: v for k, v in self._prepare_inputs(inputs).items() if k != "labels"})
        return super().training_step(model, inputs, num_items_in_batch)


class Predicting(ReweightedTrainer):
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with torch.no_grad():
            logits = model(**inputs)["logits"]
        return F.cross_entropy(logits, labels), logits, labels


class Own(ReweightedTrainer):
    def compute_per_sample_losses(self, model, inputs):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        return F.cross_entropy(outputs["logits"], labels, reduction="none"), outputs


@pytest.mark.parametrize("cls", [WithPenalty, Adversarial, Predicting, Own])
def test_a_model_that_takes_what_it_names_is_not_given_columns(make_args, cls):
    class Numbered(RecordedMixin, cls):
        pass

    keywords = {} if cls is Own else {"per_sample_loss_fn": of_logits}
    # The same without columns, which ERM of equal groups is.
    bare = cls(
        Strict(),
        make_args(train_sampling_strategy="sequential"),
        train_dataset=rows(),
        reweighting="none",
        **keywords,
    )
    bare.train()
    data = rows(group=lambda i: i % 2, sample_weight=lambda i: 1.0)
    trainer = trained(make_args, Numbered, Strict(), data, GroupDRO(2, 0.0), **keywords)
    assert relative_error(parameters_of(trainer.model), parameters_of(bare.model)) < 1e-6
    assert trainer.evaluate(data)["eval_loss"] == pytest.approx(bare.evaluate(rows())["eval_loss"])
    assert not trainer.model._forward_pre_hooks


def test_what_a_forward_names_the_users_code_may_give_it(make_args):
    class Giving(ReweightedTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            model(inputs["input_ids"], group=inputs["group"])
            return super().compute_loss(self.plain, inputs, return_outputs, num_items_in_batch)

    model = Naming()
    Giving.plain = staticmethod(lambda **inputs: Strict.forward(model, **inputs))
    trained(make_args, Giving, model, per_sample_loss_fn=of_logits)


def test_permuted_batches_keep_their_columns_beside_them(make_args):
    """What an override of `compute_loss` does to a batch it does to its columns."""

    class Permuted(ReweightedTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            order = torch.arange(len(inputs["labels"])).flip(0)
            return super().compute_loss(model, {k: v[order] for k, v in inputs.items()}, *args, **kwargs)

    start = parameters_of(tiny_bert())
    found, expected = (parameters_of(trained(make_args, c).model) for c in (Permuted, ReweightedTrainer))
    assert relative_error(found - start, expected - start) < 1e-5


def test_observers_by_object_are_no_exception(make_args):
    trainer = ReweightedTrainer(
        tiny_bert(), make_args(), train_dataset=rows(), data_collator=by_index, reweighting="kl"
    )
    trainer.add_observer(HardExamples())
    trainer.train()


def by_index(examples):
    numbers = torch.tensor([e["sample_index"] for e in examples])
    return {**stack([{k: e[k] for k in ("input_ids", "labels")} for e in examples]), "sample_index": numbers}


@pytest.mark.parametrize("value", [None, "news"])
def test_evaluation_needs_no_column_that_it_does_not_read(make_args, value):
    trainer = ReweightedTrainer(
        tiny_bert(), make_args(), reweighting=GroupDRO(2), train_dataset=rows(group=lambda i: i % 2)
    )
    plain = [{name: v for name, v in row.items() if name != "group"} for row in rows(group=lambda i: i % 2)]
    expected = trainer.evaluate(plain)["eval_loss"]
    strange = [{**row, "group": value, "sample_weight": value} for row in plain]
    assert trainer.evaluate(strange)["eval_loss"] == pytest.approx(expected)


def test_a_batch_that_is_prepared_again_keeps_the_column(make_args):
    class Prepares(ReweightedTrainer):
        def compute_per_sample_losses(self, model, inputs):
            inputs = self._prepare_inputs(inputs)
            assert inputs.pop("group").shape == inputs["labels"].shape
            return super().compute_per_sample_losses(model, inputs)

    args = make_args(max_steps=1, per_device_train_batch_size=8)
    trainer = Prepares(tiny_bert(), args, reweighting=GroupDRO(2), train_dataset=rows(group=lambda i: i % 2))
    assert trainer.train().training_loss > 0
