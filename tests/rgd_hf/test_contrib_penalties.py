"""CORAL and MIRO against their formulas and brute-force autograd, on models and Trainers of one's own."""

import copy
import itertools

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedConfig, Trainer

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments, rgd_weights
from rgd_hf.contrib import (
    CORALMixin,
    MIROMixin,
    PenaltyMixin,
    SetupError,
    SWADMixin,
    Variances,
    coral_penalty,
    miro_penalty,
)
from rgd_hf.contrib.features import classifier_of, recorded_outputs, stages_of
from tests.helpers.quiet import QUIET
from tests.helpers.tiny import classification_data, gradients_of, parameters_of, tiny_bert


class CORALTrainer(CORALMixin, ReweightedTrainer):
    pass


class MIROTrainer(MIROMixin, ReweightedTrainer):
    pass


DOMAINS = 3


def data(n=12):
    return [{**row, "domain": torch.tensor(i % DOMAINS)} for i, row in enumerate(classification_data(n))]


def trainer_of(cls, tmp_path, model=None, keywords=None, **settings):
    defaults = {
        "max_steps": 1,
        "per_device_train_batch_size": 12,
        "learning_rate": 0.1,
    }
    args = ReweightedTrainingArguments(output_dir=str(tmp_path), **(QUIET | defaults | settings))
    rows = Dataset.from_list([{name: value.tolist() for name, value in row.items()} for row in data()])
    if issubclass(cls, CORALMixin):
        keywords = {"num_domains": DOMAINS} | (keywords or {})
    return cls(model=model or tiny_bert(), args=args, train_dataset=rows, **(keywords or {}))


# --- formulas -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(4, 6, 3), (2, 0, 5), (1, 4, 0), (7, 0, 0)])
def test_coral_penalty_is_numpys_means_and_covariances(sizes):
    torch.manual_seed(0)
    groups = [torch.randn(n, 5, dtype=torch.float64) * (n + 1) for n in sizes]
    pairs = []
    for x, y in itertools.combinations([group.numpy() for group in groups if len(group)], 2):
        first, second = (np.cov(g, rowvar=False) if len(g) > 1 else np.zeros((5, 5)) for g in (x, y))
        pairs.append(((x.mean(0) - y.mean(0)) ** 2).mean() + ((first - second) ** 2).mean())
    domains = torch.cat([torch.full((n,), number) for number, n in enumerate(sizes)])
    order = torch.randperm(len(domains))
    found = coral_penalty(torch.cat(groups)[order], domains[order], len(sizes))
    assert found.item() == pytest.approx(np.mean(pairs) if pairs else 0.0)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 5, 3), (2, 3)])
def test_miro_penalty_is_a_gaussian_log_likelihood(shape):
    torch.manual_seed(0)
    features, frozen, variances = torch.randn(shape), torch.randn(shape), Variances([3])
    assert torch.allclose(variances.of(0), torch.full((3,), 0.1), atol=1e-6)
    with torch.no_grad():
        variances.b[0].copy_(torch.tensor([0.1, 1.0, -1.0]))
    spread = variances.of(0).reshape(1, 3, 1, 1) if len(shape) == 4 else variances.of(0)
    likelihood = torch.distributions.Normal(features, spread.sqrt().expand(shape)).log_prob(frozen)
    expected = -likelihood.mean() - np.log(2 * np.pi) / 2
    assert miro_penalty([features], [frozen], variances).item() == pytest.approx(expected.item(), rel=1e-5)


# --- steps ----------------------------------------------------------------------------------------------------------


def step_of(trainer):
    """What a step of plain SGD takes from the parameters, over the learning rate; and the batches that it saw."""
    seen, with_penalty = [], trainer.with_penalty

    def watched(forward, inputs):
        seen.append({name: value.clone() for name, value in inputs.items()})
        return with_penalty(forward, inputs)

    trainer.with_penalty = watched
    start = parameters_of(trainer.model).clone()
    trainer.train()
    return (start - parameters_of(trainer.model)) / trainer.args.learning_rate, seen


def brute_force(model, pieces, weight, normalize, reweighting):
    """Gradient of `sum_b share_b * (weighted mean of b + weight * penalty of b)` over the micro-batches of a step."""
    parts = []
    for batch in pieces:
        pooled = model.dropout(model.bert(batch["input_ids"]).pooler_output)
        losses = torch.nn.functional.cross_entropy(
            model.classifier(pooled), batch["labels"], reduction="none"
        )
        weights = rgd_weights(losses.detach(), reweighting, tau=1.0)
        mass = weights.sum() if normalize else torch.tensor(float(len(losses)))
        mean = (weights * losses).sum() / mass
        parts.append((mass, mean + weight * coral_penalty(pooled, batch["domain"], DOMAINS)))
    whole = sum(mass for mass, _ in parts)
    model.zero_grad()
    sum(mass / whole * total for mass, total in parts).backward()
    return gradients_of(model)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("reweighting", ["none", "kl"])
def test_a_step_is_that_of_the_objective_plus_the_penalty(reweighting, pieces, normalize, tmp_path):
    """Also with weights of mean one in a step that is cut: the shares of its pieces are those of their weights."""
    settings = {"per_device_train_batch_size": 12 // pieces, "gradient_accumulation_steps": pieces}
    settings |= {"normalize_weights": normalize, "reweighting": reweighting}
    trainer = trainer_of(CORALTrainer, tmp_path, keywords={"coral_weight": 3.0}, **settings)
    model = copy.deepcopy(trainer.model)
    step, seen = step_of(trainer)
    assert len(seen) == pieces
    expected, plain = (brute_force(model, seen, weight, normalize, reweighting) for weight in (3.0, 0.0))
    tolerance = 1e-4 * expected.abs().max()
    assert (step - expected).abs().max() < tolerance < (step - plain).abs().max() / 10


def test_evaluation_is_plain(tmp_path):
    rows = data()
    losses = {
        cls: trainer_of(cls, tmp_path).evaluate(
            [{k: v for k, v in row.items() if k != "domain"} for row in rows]
        )["eval_loss"]
        for cls in (CORALTrainer, ReweightedTrainer)
    }
    assert losses[CORALTrainer] == losses[ReweightedTrainer]


def test_miro_penalizes_the_distance_to_the_first_model(tmp_path):
    trainer = trainer_of(MIROTrainer, tmp_path, keywords={"miro_weight": 0.5}, max_steps=3)
    first, frozen = copy.deepcopy(trainer.model), parameters_of(trainer.pretrained).clone()
    assert len(trainer.variances.b) == len(stages_of(trainer.model)) and trainer.variances.of(0).shape == (
        16,
    )
    _, seen = step_of(trainer)
    assert torch.equal(parameters_of(trainer.pretrained), frozen)
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert rates[-1] == pytest.approx(10 * rates[0])
    assert all((b - b.flatten()[0]).abs().max() > 0 for b in trainer.variances.b)
    batch = seen[-1]
    trainer.model.train()
    shown = {"input_ids": batch["input_ids"]}
    features = []
    for model in (trainer.model, first):
        with torch.no_grad(), recorded_outputs(stages_of(model)) as recorded:
            model(**shown)
        features.append(recorded)
    expected = 0.5 * miro_penalty(*features, trainer.variances)
    _, penalty = trainer.with_penalty(lambda: trainer.model(**shown), batch)
    torch.testing.assert_close(penalty, expected)


def test_miro_saves_a_model_without_variances_and_resumes(tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 6}
    whole = trainer_of(MIROTrainer, tmp_path, **settings)
    whole.train()
    resumed = trainer_of(MIROTrainer, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    torch.testing.assert_close(parameters_of(resumed.model), parameters_of(whole.model))
    for found, expected in zip(resumed.variances.b, whole.variances.b, strict=True):
        torch.testing.assert_close(found, expected)
    saved = tmp_path / "checkpoint-final"  # no checkpoint, in spite of its name
    whole.save_model(str(saved))
    loaded, report = type(whole.model).from_pretrained(saved, output_loading_info=True)
    assert not report["unexpected_keys"] and not report["missing_keys"]
    bare = {n: p for n, p in whole.model.state_dict().items() if not n.startswith("miro")}
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in bare.items())
    assert len(whole.variances.b) == 1


def test_miro_begins_with_each_model_that_model_init_makes(tmp_path):
    """Also where they differ, as in a search; what is resumed is what was saved."""
    made = []

    def model_init():
        made.append(tiny_bert(seed=len(made)))
        return copy.deepcopy(made[-1])

    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 6}
    settings |= {"train_sampling_strategy": "sequential"}
    args = ReweightedTrainingArguments(output_dir=str(tmp_path), **(QUIET | settings))
    trainer = MIROTrainer(None, args, model_init=model_init, train_dataset=classification_data(12))
    for seed in (1, 2):  # the constructor made the first
        trainer.train()
        torch.testing.assert_close(
            parameters_of(trainer.pretrained), parameters_of(made[seed]), rtol=0, atol=0
        )
        by_hand = MIROTrainer(tiny_bert(seed), args, train_dataset=trainer.train_dataset)
        by_hand.train()
        torch.testing.assert_close(parameters_of(trainer.model), parameters_of(by_hand.model))
        assert (trainer.variances.of(0) - 0.1).abs().max() > 1e-3
    made.pop()
    expected = parameters_of(trainer.model)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    torch.testing.assert_close(parameters_of(trainer.model), expected)


@pytest.mark.parametrize("rows", [list, tuple, Dataset.from_list])
def test_miro_begins_with_columns_that_the_model_does_not_take(rows, tmp_path):
    made = trainer_of(MIROTrainer, tmp_path)
    named = [{**row, "text": f"row {i}"} for i, row in enumerate(made.train_dataset.to_list())]
    trainer = MIROTrainer(model=tiny_bert(), args=made.args, train_dataset=rows(named))
    assert {*trainer.example_batch()} == {"input_ids", "labels"}
    trainer.train()


class CORALThenMIRO(CORALMixin, MIROMixin, ReweightedTrainer):
    pass


class MIROThenCORAL(MIROMixin, CORALMixin, ReweightedTrainer):
    pass


def both_by_hand(model, batch, coral_weight, miro_weight, pretrained, variances):
    """Loss and gradients of `weighted mean + coral_weight * CORAL + miro_weight * MIRO` on a batch, one step of one piece."""

    def stages(of):
        return of.bert(batch["input_ids"], output_hidden_states=True).hidden_states[1:]

    pooled = model.bert(batch["input_ids"]).pooler_output
    losses = torch.nn.functional.cross_entropy(model.classifier(pooled), batch["labels"], reduction="none")
    loss = (rgd_weights(losses.detach(), "kl", tau=1.0) * losses).mean()
    if coral_weight:
        loss = loss + coral_weight * coral_penalty(pooled, batch["domain"], DOMAINS)
    if miro_weight:
        with torch.no_grad():
            frozen = stages(pretrained)
        loss = loss + miro_weight * miro_penalty(stages(model), frozen, variances)
    model.zero_grad()
    loss.backward()
    # The variances learn ten times as fast.
    rates = {name: 10 if name.startswith("miro") else 1 for name, _ in model.named_parameters()}
    return loss.item(), {n: rates[n] * p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("cls", [CORALTrainer, MIROTrainer, CORALThenMIRO, MIROThenCORAL])
def test_penalties_add_up_in_every_order(cls, tmp_path):
    """The loss and the step of each alone, and of both, are those of the objective written out."""
    weights = {
        name: weight
        for name, weight, mixin in (("coral_weight", 3.0, CORALMixin), ("miro_weight", 0.5, MIROMixin))
        if issubclass(cls, mixin)
    }
    trainer = trainer_of(cls, tmp_path, keywords=weights, reweighting="kl", logging_steps=1)
    pretrained = getattr(trainer, "pretrained", None)
    if pretrained is not None:
        with torch.no_grad():  # else the distance and its gradient are 0
            for parameter in pretrained.bert.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    model = copy.deepcopy(trainer.model)
    variances = getattr(model, "miro_variances", None)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    _, seen = step_of(trainer)
    loss, gradients = both_by_hand(
        model, *seen, weights.get("coral_weight", 0.0), weights.get("miro_weight", 0.0), pretrained, variances
    )
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=1e-4)
    for name, parameter in trainer.model.named_parameters():
        step = (before[name] - parameter.detach()) / trainer.args.learning_rate
        torch.testing.assert_close(step, gradients[name], rtol=1e-3, atol=1e-4, msg=name)


def test_mixins_combine(tmp_path):
    class All(CORALMixin, MIROMixin, SWADMixin, ReweightedTrainer):
        pass

    shown = [{name: value for name, value in row.items() if name != "domain"} for row in data()]
    settings = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 1, "reweighting": "kl"}
    trainer = trainer_of(All, tmp_path, keywords={"eval_dataset": shown}, **settings)
    losses = iter([1.0, 2.0, 3.0, 2.0, 2.0, 2.0])
    trainer.validation_loss = lambda metrics: next(losses)
    trainer.train()
    assert trainer.swad_average.count > 0 and "miro_variances.b.0" in trainer.swad_average.mean


# --- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cls,keywords,message",
    [
        (CORALTrainer, {"num_domains": 0}, "num_domains=0"),
        (CORALTrainer, {"coral_weight": -1.0}, r"coral_weight=-1\.0"),
        (MIROTrainer, {"miro_weight": -1.0}, "miro_weight must be at least 0, not -1"),
    ],
)
def test_settings_that_are_refused(cls, keywords, message, tmp_path):
    with pytest.raises(SetupError, match=message):
        trainer_of(cls, tmp_path, keywords=keywords)


@pytest.mark.parametrize(
    "keywords,message",
    [
        (
            {"domain_column": "place"},
            "CORAL needs the column 'place'.*this batch has only input_ids, labels",
        ),
        ({"num_domains": 2}, "has domains from 0 to 2, but num_domains=2 allows 0 to 1"),
    ],
)
def test_columns_that_do_not_fit_are_told(keywords, message, tmp_path):
    with pytest.raises(SetupError, match=message):
        trainer_of(CORALTrainer, tmp_path, keywords=keywords).train()


def test_domains_are_checked_in_every_training(tmp_path):
    trainer = trainer_of(CORALTrainer, tmp_path)
    trainer.train()
    trainer.num_domains = 2
    with pytest.raises(SetupError, match="has domains from 0 to 2, but num_domains=2 allows 0 to 1"):
        trainer.train()


class Bag(torch.nn.Module):
    """A model that is none of transformers."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.EmbeddingBag(50, 8)
        self.classifier = torch.nn.Linear(8, 3)

    def forward(self, input_ids, labels=None):
        return {"logits": self.classifier(self.embedding(input_ids))}


def test_a_model_without_a_config_is_told_what_it_lacks(tmp_path):
    def losses(outputs, labels):
        return torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction="none")

    model, keywords = Bag(), {"per_sample_loss_fn": losses}
    with pytest.raises(
        SetupError, match=r"Bag has no config\.num_labels.*set model\.config = transformers\.PreTr"
    ):
        trainer_of(CORALTrainer, tmp_path, model, keywords)
    model.config = PreTrainedConfig(num_labels=3)
    start = parameters_of(model).clone()
    trainer = trainer_of(CORALTrainer, tmp_path, model, keywords)
    trainer.train()
    assert (parameters_of(model) - start).abs().max() > 0


def test_a_model_without_features_of_a_sample_is_told(tmp_path):
    with pytest.raises(SetupError, match="has no linear layer with 7 outputs"):
        model = tiny_bert()
        model.config.num_labels = 7
        classifier_of(model)
    with pytest.raises(SetupError, match="has no list of layers"):
        stages_of(torch.nn.Linear(2, 2))


def test_miro_needs_to_make_the_optimizer(tmp_path):
    model = tiny_bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(SetupError, match="pass optimizer_cls_and_kwargs"):
        trainer_of(MIROTrainer, tmp_path, model, {"optimizers": (optimizer, None)})


@pytest.mark.parametrize("mixin", [PenaltyMixin, CORALMixin, MIROMixin])
def test_penalties_stand_before_a_trainer_of_this_package(mixin, tmp_path):
    with pytest.raises(TypeError, match="Mixin must be listed before"):
        type("Wrong", (ReweightedTrainer, mixin), {})
    stock = type("Stock", (mixin, Trainer), {})
    with pytest.raises(TypeError, match=r"Stock adds a penalty.*derive it from ReweightedTrainer"):
        trainer_of(stock, tmp_path)
