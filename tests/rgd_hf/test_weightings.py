"""Rules by name, as objects and as functions: one and the same, in the step, in settings and in words."""

import dataclasses
import functools
import inspect
import math

import pytest
import torch
from huggingface_hub import ModelCard
from torch.nn import functional as F
from transformers import HfArgumentParser

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments, RGDLoss, rgd_weights
from rgd_hf.description import method_name
from rgd_hf.items import Items
from rgd_hf.weightings import (
    KL,
    WEIGHTINGS,
    Chi2,
    CVaR,
    Focal,
    Function,
    GroupDRO,
    TargetESS,
    Uniform,
    Weighting,
    WeightsError,
)
from rgd_hf.weightings.choice import by_losses_alone, settings_of, weighting_of
from tests.helpers.tiny import classification_data, parameters_of, relative_error, stack, tiny_bert, tiny_gpt2

OTHER_SETTINGS = {
    "kl": KL(tau=2.5),
    "target_ess": TargetESS(0.7),
    "focal": Focal(0.5),
    "cvar": CVaR(0.25),
    "group_dro": GroupDRO(3, step_size=0.5, column="domain"),
}


def log_weights(losses):
    """Weights that grow with the logarithm of the loss."""
    return (1 + losses).log1p()


def trained(make_args, data=None, cls=ReweightedTrainer, training=None, **kwargs):
    trainer = cls(
        tiny_bert(),
        make_args(ReweightedTrainingArguments, **(training or {})),
        train_dataset=data or classification_data(24),
        **kwargs,
    )
    trainer.train()
    return trainer


def card_of(trainer):
    trainer.create_model_card()
    return ModelCard.load(f"{trainer.args.output_dir}/README.md").text


# --- a row, and what every rule says of itself ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_rule_says_what_it_is(name):
    rule = OTHER_SETTINGS.get(name) or WEIGHTINGS[name]()
    assert WEIGHTINGS[name].name == name and rule.title and rule.method_name().startswith(rule.title)
    documented = inspect.getdoc(type(rule)) or ""
    assert rule.is_plain or ("Source:" in documented and rule.citations()), "a rule names its source"
    for field in dataclasses.fields(rule):
        holders = [cls for cls in type(rule).__mro__ if field.name in vars(cls).get("__annotations__", {})]
        assert f"{field.name}:" in (holders[0].__doc__ or ""), f"{field.name} is not explained"
    assert len(rule.describe("sample")) > 40


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_settings_make_an_equal_rule(name, tmp_path):
    """The arguments of a run hold the whole rule, also those that were made of an object."""
    for rule in filter(None, [OTHER_SETTINGS.get(name), WEIGHTINGS[name](**needed(name))]):
        args = ReweightedTrainingArguments(output_dir=str(tmp_path), **settings_of(rule))
        assert weighting_of(args) == rule
        assert weighting_of(args).get_config() == rule.get_config()


def needed(name):
    return {"num_groups": 2} if name == "group_dro" else {}


@pytest.mark.parametrize("name", by_losses_alone())
def test_the_formula_is_that_of_the_weights(name):
    rule = OTHER_SETTINGS.get(name) or WEIGHTINGS[name]()
    formula = rule.formula()
    if formula is None:
        assert rule.compares_items or rule.state
        return
    losses = torch.tensor([0.1, 0.3, 0.7, 1.5, 4.0])
    known = {"exp": math.exp, "log": math.log, "min": min, "max": max}
    found = torch.tensor([float(eval(formula, known | {"loss": loss})) for loss in losses.tolist()])
    torch.testing.assert_close(found, rule.weights(Items(losses, torch.ones(5))), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", by_losses_alone())
def test_no_weight_lies_outside_of_the_bounds(name):
    rule = WEIGHTINGS[name]()
    losses = torch.tensor([0.0, 1e-3, 0.5, 1.0, 3.0, 50.0])
    low, high = rule.bounds() or (0.0, math.inf)
    weights = rule.weights(Items(losses, torch.ones(6)))
    assert weights.min() >= low - 1e-6 and weights.max() <= high + 1e-4


def no_weights(losses):
    raise AssertionError("asked for the weights of nothing")


def of_masked_tokens(outputs, labels):
    masked = labels != -100
    return F.cross_entropy(outputs["logits"][masked], labels[masked], reduction="none")


@pytest.mark.parametrize("rule", [*by_losses_alone(), no_weights])
def test_a_micro_batch_without_any_item_has_a_loss_of_0(rule, make_args):
    """As of a function that returns the losses of the masked tokens alone, where none is masked."""
    model = tiny_gpt2().train()
    trainer = ReweightedTrainer(model, make_args(), per_sample_loss_fn=of_masked_tokens, reweighting=rule)
    loss = trainer.compute_loss(
        model, {"input_ids": torch.ones(2, 3).long(), "labels": torch.full((2, 3), -100)}
    )
    assert loss == 0
    loss.backward()
    assert not any(p.grad.any() for p in model.parameters())


# --- three ways to choose one ----------------------------------------------------------------------------------------------


def as_function(losses):
    return rgd_weights(losses, "kl", 3.0)


def as_function_of_both(losses, reference):
    assert reference.shape == losses.shape
    return rgd_weights(losses, "kl", 3.0)


WAYS = [
    {"reweighting": "kl", "tau": 3.0},
    {"reweighting": KL(tau=3.0)},
    {"reweighting": as_function},
    {"reweighting": as_function_of_both},
    {"reweighting": functools.partial(rgd_weights, divergence="kl", tau=3.0)},
]


@pytest.mark.parametrize("normalize", [False, True])
def test_all_ways_train_the_same(make_args, normalize):
    cut = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    trainers = [trained(make_args, training=cut, normalize_weights=normalize, **way) for way in WAYS]
    first, *others = trainers
    logged = ["weight_mean", "weight_max", "effective_sample_size", "unweighted_loss", "loss"]
    for other in others:
        assert torch.equal(parameters_of(other.model), parameters_of(first.model))
        for expected, found in zip(first.state.log_history, other.state.log_history, strict=True):
            assert [found.get(key) for key in logged] == [expected.get(key) for key in logged]


def test_an_object_is_kept_and_named_in_the_arguments(make_args):
    args, rule = make_args(ReweightedTrainingArguments, target_ess=0.5), Chi2(tau=3.0)
    trainer = ReweightedTrainer(tiny_bert(), args, reweighting=rule)
    assert trainer.weighting is rule
    found = trainer.args
    assert (found.reweighting, found.tau, found.target_ess) == ("chi2", 3.0, None)
    assert (args.reweighting, args.tau, args.target_ess) == ("kl", 1.0, 0.5), (
        "the caller's arguments were changed"
    )
    trainer.args.tau = 4.0  # as a hyper-parameter search does
    assert trainer.weighting == Chi2(tau=4.0)


def test_a_rule_by_its_name_and_settings_on_the_command_line(tmp_path):
    parser = HfArgumentParser(ReweightedTrainingArguments)
    line = [
        "--output_dir",
        str(tmp_path),
        "--reweighting",
        "group_dro",
        "--reweighting_args",
        "num_groups=3,column=domain",
    ]
    (args,) = parser.parse_args_into_dataclasses(line)
    assert weighting_of(args) == GroupDRO(3, column="domain")


@dataclasses.dataclass
class Ramp(Weighting):
    """Weights rise in a straight line, up to a limit.

    Args:
        limit: largest weight.
        unit: what a card calls it.
    """

    limit: float = 2.0
    unit: str = "nat"

    def weights(self, items):
        return (1 + items.losses).clamp(max=self.limit)

    def formula(self):
        return f"min(1 + loss, {self.limit:g})"


def test_a_rule_of_ones_own_in_card_settings_and_pickled_arguments(make_args, tmp_path):
    trainer = trained(make_args, reweighting=Ramp(limit=1.5))
    assert all(log["weight_max"] <= 1.5 for log in trainer.state.log_history if "loss" in log)
    text = card_of(trainer)
    assert "rule `Ramp` (limit = 1.5, unit = nat)" in text and "by `min(1 + loss, 1.5)` of its own" in text
    assert "Weights rise in a straight line, up to a limit." in text and "| `limit` | `1.5` |" in text
    assert "Citation of the method" not in text
    torch.save(trainer.args, tmp_path / "training_args.bin")
    args = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert method_name(args) == "Ramp (limit=1.5, unit=nat)"
    assert args.to_dict()["reweighting"].endswith("test_weightings.Ramp")
    again = ReweightedTrainer(tiny_bert(), args, reweighting=Ramp(limit=1.5))
    assert again.weighting == Ramp(limit=1.5)
    with pytest.raises(ValueError, match=r"pass it to the Trainer again, .*reweighting=Ramp"):
        ReweightedTrainer(tiny_bert(), args)


def test_a_function_in_card_and_table(make_args):
    trainer = trained(make_args, reweighting=log_weights)
    text = card_of(trainer)
    assert "a function of the author's own, `test_weightings.log_weights`" in text
    assert "Weights that grow with the logarithm of the loss." in text and "Plain training" not in text
    assert "| mean weight |" in text and "| `reweighting` | `test_weightings.log_weights` |" in text
    assert method_name(trainer.args) == "log_weights"
    partial = Function(functools.partial(rgd_weights, tau=2.0))
    assert partial.method_name() == "rgd_weights (tau=2)"


@pytest.mark.parametrize(
    ("choice", "error", "said"),
    [
        (KL, TypeError, r"the class KL: pass an object of it, KL\(\.\.\.\)"),
        (3.0, TypeError, "not 3.0"),
    ],
    ids=["class", "number"],
)
def test_what_is_no_rule_is_named(make_args, choice, error, said):
    with pytest.raises(error, match=said):
        ReweightedTrainer(tiny_bert(), make_args(), reweighting=choice)


def test_settings_that_nothing_would_read_are_refused(make_args):
    with pytest.raises(ValueError, match=r"tau is for rules that are chosen by name"):
        ReweightedTrainer(tiny_bert(), make_args(), reweighting=KL(tau=3.0), tau=1.0)
    with pytest.raises(ValueError, match="Pass an object or a function to the Trainer instead"):
        make_args(ReweightedTrainingArguments, reweighting=KL(tau=3.0))
    with pytest.raises(ValueError, match="names alpha, but 'kl' has none of its own"):
        make_args(ReweightedTrainingArguments, reweighting_args="alpha=1")
    with pytest.raises(ValueError, match="needs num_groups"):
        make_args(ReweightedTrainingArguments, reweighting="group_dro")
    with pytest.raises(ValueError, match="'alpha' does not"):
        make_args(ReweightedTrainingArguments, reweighting_args="alpha")


# --- functions: which items they see, and what they may return -------------------------------------------------------------


def relative(losses):
    return losses / losses.mean()


@pytest.mark.parametrize("level", ["sample", "token"])
def test_a_function_that_compares_sees_the_items_that_count_alone(level):
    losses = torch.tensor([[1.0, 0.0, 3.0], [2.0, 0.0, 0.0]])
    reference = torch.tensor([[1.0, 0.0, 2.0], [1.0, 0.0, 0.0]])
    if level == "sample":
        losses, reference = losses[:, 0], torch.tensor([1.0, 0.0])
    found = Function(relative).weights(Items(losses, reference))
    expected = torch.ones_like(losses)
    expected[reference > 0] = relative(losses[reference > 0])
    torch.testing.assert_close(found, expected)


def test_a_function_may_need_several_items():
    top = Function(lambda losses: (losses >= losses.topk(2).values[-1]).float())
    found = top.weights(Items(torch.tensor([1.0, 5.0, 3.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])))
    assert found.tolist() == [0.0, 1.0, 1.0, 1.0]


def test_an_infinite_weight_of_an_item_that_does_not_count_leaves_no_trace(make_args):
    def inverse(losses):
        return 1 / losses

    data = classification_data(8)
    for example, weight in zip(data, [1.0, 0.0] * 4, strict=True):
        example["sample_weight"] = torch.tensor(weight)
    found = trained(make_args, data, reweighting=inverse, training={"max_steps": 1})
    expected = trained(make_args, data[::2], reweighting=inverse, training={"max_steps": 1})
    start = parameters_of(tiny_bert())
    assert relative_error(parameters_of(found.model) - start, parameters_of(expected.model) - start) < 1e-5


def test_weights_are_detached_for_the_user():
    losses = torch.tensor([0.5, 2.0], requires_grad=True)
    weights = Function(lambda x: x * scale).weights(Items(losses, torch.ones(2)))
    assert not weights.requires_grad


scale = torch.tensor(2.0, requires_grad=True)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (
            lambda losses: losses[:3],
            r"<lambda> returned weights of shape \[3\] for losses of shape \[8\].*step 1\)",
        ),
        (lambda losses: losses.mean(), r"returned weights of shape \[\] for losses"),
        (lambda losses: 1.0, "<lambda> returned float instead of a tensor"),
        (lambda losses: losses + 0j, "complex weights"),
    ],
    ids=["too few", "reduced", "number", "complex"],
)
def test_wrongly_shaped_weights_stop_at_once(make_args, returned, said):
    with pytest.raises(WeightsError, match=said):
        trained(make_args, reweighting=returned)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_weights_that_cannot_be_used_stop_before_the_next_checkpoint(make_args, tmp_path, bad):
    calls = []

    def sometimes(losses, reference):
        calls.append(None)
        return torch.full_like(losses, bad if len(calls) == 5 else 1.0)

    saving = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2, "logging_steps": 100}
    with pytest.raises(
        WeightsError, match=r"function .*sometimes returned a negative, NaN or infinite.* step 5,"
    ):
        trained(make_args, classification_data(64), reweighting=sometimes, training=saving)
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-4",
    ]


# --- a class that overrides `weigh` -----------------------------------------------------------------------------------------


class Doubled(ReweightedTrainer):
    def weigh(self, items, inputs):
        return 2 * super().weigh(items, inputs)


class Wrong(ReweightedTrainer):
    def weigh(self, items, inputs):
        return -items.losses


def test_an_overridden_weigh_is_told_of_and_watched(make_args):
    trainer = trained(make_args, cls=Doubled, reweighting="none")
    text = card_of(trainer)
    assert "`test_weightings.Doubled.weigh`" in text
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["weight_mean"] for log in logs] == [2.0, 2.0]
    assert [log["loss"] for log in logs] == pytest.approx([2 * log["unweighted_loss"] for log in logs])
    with pytest.raises(WeightsError, match=r"Wrong\.weigh returned a negative.*step 1,"):
        trained(make_args, cls=Wrong)


# --- the loss function for the stock Trainer ---------------------------------------------------------------------------------


def test_the_loss_function_takes_all_ways_too():
    model, batch = tiny_bert(), stack(classification_data(8))
    labels = batch.pop("labels")
    outputs = model(**batch)
    losses = F.cross_entropy(outputs.logits, labels, reduction="none")
    expected = (rgd_weights(losses, "kl", 3.0) * losses).mean()
    for way in WAYS:
        torch.testing.assert_close(RGDLoss(model, **way)(outputs, labels), expected)
    with pytest.raises(ValueError, match="use ReweightedTrainer"):
        RGDLoss(model, reweighting=GroupDRO(2))


def test_plain_training_is_the_only_rule_that_is_plain():
    assert [name for name, rule in WEIGHTINGS.items() if rule.is_plain] == ["none"] and Uniform().is_plain
