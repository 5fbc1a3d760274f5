"""A class that is newer than this release: its losses are held against its own, once, and never silently differ."""

import random
from copy import deepcopy
from functools import wraps

import numpy as np
import pytest
import torch
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    set_seed,
)

from rgd_hf import ReweightedTrainer, RGDLoss
from rgd_hf.heads import HEADS, VERIFIED_CLASSES, why_unverified
from tests.helpers.tiny import classification_data, parameters_of, tiny_bert, tiny_config


def newer(base, monkeypatch, changed=None):
    """A class as transformers would list it tomorrow: the base's task, its own loss passed through `changed`."""
    name = f"Tomorrow{base.__name__}"

    @wraps(base.forward)
    def forward(self, *args, **kwargs):
        self.calls.append(self.training)
        outputs = base.forward(self, *args, **kwargs)
        if changed is not None and outputs.loss is not None:
            outputs.loss = changed(outputs, kwargs["labels"])
        return outputs

    members = {
        "forward": forward,
        "calls": [],
        "__module__": "transformers.models.tomorrow.modeling_tomorrow",
    }
    monkeypatch.setitem(HEADS, name, HEADS[base.__name__])
    return type(name, (base,), members)


def classifier(monkeypatch, changed=None, **config):
    torch.manual_seed(0)
    return newer(BertForSequenceClassification, monkeypatch, changed)(tiny_config(**config))


def language_model(monkeypatch, changed=None):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return newer(LlamaForCausalLM, monkeypatch, changed)(config)


def tokens(n=8, length=7):
    rows = torch.randint(0, 50, (n, length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row.clone()} for row in rows]


def test_a_class_in_the_list_is_read_and_a_new_one_is_not(monkeypatch):
    assert why_unverified(tiny_bert()) is None
    assert why_unverified(classifier(monkeypatch)) == "is newer than this release of rgd_hf"
    assert "BertForSequenceClassification" in VERIFIED_CLASSES


@pytest.mark.parametrize("reweighting", ["kl", "none"])
def test_the_tasks_loss_trains_as_a_known_class_does(reweighting, make_args, monkeypatch):
    data, models = classification_data(16), [classifier(monkeypatch), tiny_bert()]
    for model in models:
        trainer = ReweightedTrainer(model, make_args(), train_dataset=data, reweighting=reweighting)
        trainer.train()
    assert torch.equal(parameters_of(models[0]), parameters_of(models[1]))
    assert models[0].calls == [False, False, True, True, True], (
        "three forward passes more, before the first step alone"
    )


class Restless(torch.nn.Dropout):
    """Draws from every generator, and changes buffers in place and by another tensor."""

    def __init__(self):
        super().__init__(0.5)
        self.register_buffer("passes", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, inputs):
        if self.training:
            self.passes += 1
            self.mean = 0.9 * self.mean + 0.1 * inputs.detach().mean()
        return super().forward(inputs) + random.random() + np.random.rand()


def test_it_leaves_random_states_buffers_and_modes_alone(make_args, monkeypatch):
    """With dropout, whose draws would come otherwise, and a part of the model that the user keeps in `eval()`."""
    data, runs = classification_data(16), []
    for model in (classifier(monkeypatch), tiny_bert()):
        model.dropout = Restless()
        model.bert.embeddings.eval()
        trainer = ReweightedTrainer(model, make_args(), train_dataset=data)
        batch = {key: torch.stack([row[key] for row in data]) for key in data[0]}
        model.bert.embeddings.training, model.dropout.training = False, True
        set_seed(7)
        loss = trainer.compute_loss(model.requires_grad_(True), batch)
        assert not model.bert.embeddings.training and model.dropout.training
        drawn = torch.tensor([random.random(), np.random.rand(), model.dropout.passes, model.dropout.mean])
        runs.append((loss.detach(), torch.get_rng_state(), drawn))
    assert all(map(torch.equal, *runs)) and runs[0][2][2] == 1


def twice(outputs, labels):
    return outputs.loss * 2


def not_shifted(outputs, labels):
    return torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())


def by_sample(outputs, labels):
    """The same wherever all samples have equally many tokens, as in the first batch of the test."""
    losses = torch.nn.functional.cross_entropy(
        outputs.logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none"
    )
    return (losses.sum(1) / (labels[:, 1:] != -100).sum(1)).mean()


@pytest.mark.parametrize("reweighting", ["kl", "none"])
@pytest.mark.parametrize(
    ("build", "changed", "data"),
    [
        (classifier, twice, classification_data(8)),
        (language_model, twice, tokens()),
        (language_model, not_shifted, tokens()),
        (language_model, by_sample, tokens()),
    ],
    ids=["classifier", "twice", "not shifted", "mean of means"],
)
def test_another_loss_is_an_error_that_names_the_ways_out(
    build, changed, data, reweighting, make_args, monkeypatch
):
    model = build(monkeypatch, changed)
    trainer = ReweightedTrainer(model, make_args(), train_dataset=data, reweighting=reweighting)
    start = deepcopy(model.state_dict())
    with pytest.raises(NotImplementedError, match=r"newer than this release.*per_sample_loss_fn"):
        trainer.train()
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


def test_evaluation_checks_too(make_args, monkeypatch):
    model = classifier(monkeypatch, twice)
    with pytest.raises(NotImplementedError, match="newer than this release"):
        ReweightedTrainer(model, make_args(), eval_dataset=classification_data(8)).evaluate()


def test_the_ways_out_work(make_args, monkeypatch):
    def losses(outputs, labels):
        return 2 * torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="none")

    data = classification_data(8)
    ReweightedTrainer(
        classifier(monkeypatch, twice), make_args(), train_dataset=data, per_sample_loss_fn=losses
    ).train()


def test_a_batch_without_labels_leaves_it_to_the_next(make_args, monkeypatch):
    torch.manual_seed(0)
    model = newer(BertForMaskedLM, monkeypatch, twice)(tiny_config())
    trainer = ReweightedTrainer(model, make_args())
    ids = torch.ones(2, 5, dtype=torch.long)
    empty = {"input_ids": ids, "labels": torch.full_like(ids, -100)}
    assert trainer.compute_loss(model.train(), empty) == 0
    with pytest.raises(NotImplementedError, match="newer than this release"):
        trainer.compute_loss(model.train(), {"input_ids": ids, "labels": ids})


def test_rgd_loss_which_cannot_check_refuses(monkeypatch):
    with pytest.raises(NotImplementedError, match=r"newer than this release.*ReweightedTrainer"):
        RGDLoss(classifier(monkeypatch))
