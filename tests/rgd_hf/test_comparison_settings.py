"""What `compare` records of a run: what decides its result may not change, and what does not may."""

import copy
import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments, compare
from rgd_hf.comparison.run_settings import changed_settings, run_settings
from rgd_hf.weightings import KL, Chi2, GroupDRO, Weighting
from tests.helpers.tiny import classification_data, tiny_bert, tiny_config

DATA = classification_data(12)


@pytest.fixture
def make(make_args):
    """A Trainer of one step; `options` go to its arguments, but for those that the Trainer takes itself."""

    def make(seed=0, reweighting="kl", model=None, train=DATA, evaluation=DATA, trainer=None, **options):
        return ReweightedTrainer(
            model=tiny_bert() if model is None else model,
            args=make_args(ReweightedTrainingArguments, **{"seed": seed, "max_steps": 1, **options}),
            reweighting=reweighting,
            train_dataset=train,
            eval_dataset=evaluation,
            **(trainer or {}),
        )

    return make


def changed(first, second) -> str:
    """What differs between two Trainers; nothing does between two like the first."""
    before = run_settings(first())
    assert changed_settings(before, run_settings(first()), same_seed=True) == ""
    found = changed_settings(before, run_settings(second()), same_seed=True)
    # Lines of earlier versions had none of it.
    old = {name: before[name] for name in ("learning_rate", "train_dataset_rows", "model", "parameters")}
    assert changed_settings(old, run_settings(second()), same_seed=True) == ""
    return found


def sgd(rate):
    return lambda model: torch.optim.SGD(model.parameters(), rate)


def plain(losses):
    return 1 + losses


def exponential(losses):
    return torch.exp(losses)


exponential.__name__, exponential.__qualname__ = plain.__name__, plain.__qualname__


def power(exponent):
    def rule(losses):
        return losses.clamp(max=1) ** exponent

    return rule


def own_rule(factor):
    class Own(Weighting):
        """A rule of a user's."""

        name = "own"

        def weights(self, items):
            return items.losses * 2 if factor == 2 else items.losses + 1

    if factor == 3:
        Own.weights = lambda self, items: items.losses**3
    return Own()


@dataclass
class Listed(Weighting):
    """With a setting that is no single number."""

    factors: list

    def weights(self, items):
        return items.losses * self.factors[0]


class Gentle(ReweightedTrainer):
    def weigh(self, items, inputs):
        return 1 + items.losses


class Sharp(ReweightedTrainer):
    def weigh(self, items, inputs):
        return 1 + 9 * items.losses


Sharp.__name__ = Gentle.__name__


def squared(outputs, labels):
    return (outputs.logits.sum(-1) - labels) ** 2


def scaled(outputs, labels, factor):
    return factor * squared(outputs, labels)


def absolute(outputs, labels):
    return (outputs.logits.sum(-1) - labels).abs()


@pytest.mark.parametrize(
    "first, second, complaint",
    [
        ({"model": lambda: tiny_bert(0)}, {"model": lambda: tiny_bert(1)}, "initial_weights: another checkpoint"),
        (
            {"model": lambda: tiny_bert()},
            {"model": lambda: tiny_bert(classifier_dropout=0.5)},
            "model_config.classifier_dropout: None, now 0.5",
        ),
        ({"optim": lambda: sgd(0.1)}, {"optim": lambda: sgd(1.0)}, "optimizer"),
        ({"reweighting": lambda: plain}, {"reweighting": lambda: exponential}, "reweighting_code.python"),
        ({"reweighting": lambda: power(1)}, {"reweighting": lambda: power(8)}, "reweighting_code.values"),
        (
            {"loss": lambda: functools.partial(scaled, factor=1)},
            {"loss": lambda: functools.partial(scaled, factor=5)},
            "per_sample_loss_fn.values",
        ),
        ({"reweighting": lambda: own_rule(1)}, {"reweighting": lambda: own_rule(3)}, "reweighting_code.python"),
        ({"reweighting": lambda: Listed([1.0])}, {"reweighting": lambda: Listed([9.0])}, "reweighting_settings.factors"),
        (
            {"reweighting": lambda: GroupDRO(2)},
            {"reweighting": lambda: GroupDRO(2, within=KL())},
            "reweighting_settings.within",
        ),
        ({"class": lambda: Gentle}, {"class": lambda: Sharp}, "trainer_code.python"),
        ({"loss": lambda: squared}, {"loss": lambda: absolute}, "per_sample_loss_fn.name: 'squared', now 'absolute'"),
        ({"loss": lambda: None}, {"loss": lambda: absolute}, "per_sample_loss_fn.name: None, now 'absolute'"),
    ],
)  # fmt: skip
def test_what_decides_the_result_is_recorded(first, second, complaint, make):
    def build(given):
        model = given.get("model", tiny_bert)()
        trainer = {}
        if "loss" in given:
            trainer["per_sample_loss_fn"] = given["loss"]()
        if "optim" in given:
            trainer["optimizers"] = (given["optim"]()(model), None)
        made = make(model=model, reweighting=given.get("reweighting", lambda: "kl")(), trainer=trainer)
        if "class" in given:
            made.__class__ = given["class"]()
        return made

    assert complaint in changed(lambda: build(first), lambda: build(second))


@pytest.mark.parametrize(
    "first, second",
    [
        ({"class_weights": [1.0, 2.0, 3.0]}, {"class_weights": [3.0, 2.0, 1.0]}),
        ({"normalize_weights": False}, {"normalize_weights": True}),
        ({"tau": 1.0}, {"tau": 3.0}),
        ({"reweighting_warmup_ratio": 0.0}, {"reweighting_warmup_ratio": 0.5}),
    ],
)
def test_settings_given_beside_plain_arguments_are_recorded(first, second, make_args):
    def build(given):
        return ReweightedTrainer(tiny_bert(), make_args(max_steps=3), train_dataset=DATA, **given)

    (name,) = first
    assert name in changed(lambda: build(first), lambda: build(second))


def test_the_settings_of_an_adapter_are_recorded(make):
    peft = pytest.importorskip("peft")

    def adapted(alpha):
        options = peft.LoraConfig(
            task_type="SEQ_CLS", r=2, lora_alpha=alpha, target_modules=["query", "value"]
        )
        torch.manual_seed(0)
        return make(model=peft.get_peft_model(tiny_bert(), options))

    found = changed(lambda: adapted(2), lambda: adapted(8))
    assert found == "model_config.peft.default.lora_alpha: 2, now 8"


def test_a_configuration_that_training_writes_into_may_be_shared_by_runs(make, tmp_path):
    config = tiny_config()

    def build(seed, reweighting):
        return make(
            seed,
            reweighting,
            BertForSequenceClassification(config),
            save_strategy="steps",
            save_steps=1,
        )

    given = {"seeds": [0, 1], "output_dir": tmp_path / "c"}
    found = compare(build, **given)
    assert config.problem_type is not None
    assert compare(build, **given).scores == found.scores
    config = tiny_config()
    assert compare(build, **given).scores == found.scores


def test_weights_that_differ_in_the_last_bits_are_the_same(make):
    model = tiny_bert()
    before = run_settings(make(model=copy.deepcopy(model)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-7)
    assert changed_settings(before, run_settings(make(model=model)), same_seed=True) == ""
    with torch.no_grad():
        model.classifier.weight.mul_(1.01)
    assert "initial_weights" in changed_settings(before, run_settings(make(model=model)), same_seed=True)


def test_another_checkpoint_of_the_same_size_is_not_mixed_in_and_a_moved_one_is(make, tmp_path):
    for seed, name in enumerate(("a", "b")):
        tiny_bert(seed).save_pretrained(tmp_path / name)
    tiny_bert(0).save_pretrained(tmp_path / "moved")

    def loads(name):
        return lambda seed, reweighting: make(
            seed, reweighting, AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
        )

    given = {"seeds": [0, 1], "output_dir": tmp_path / "c"}
    found = compare(loads("a"), **given)
    with pytest.raises(ValueError, match="initial_weights"):
        compare(loads("b"), **given)
    assert compare(loads("moved"), **given).scores == found.scores
    del given["output_dir"]
    assert compare(loads("b"), **given, output_dir=tmp_path / "other").scores != found.scores


def test_sizes_and_new_layers_may_depend_on_the_seed(make, tmp_path):
    data = classification_data(31)

    def build(seed, reweighting):
        kept = np.random.default_rng(seed).random(len(data)) < 0.8
        parts = [[one for one, keep in zip(data, kept) if keep is np.bool_(which)] for which in (True, False)]
        parts = [parts[0], {"a": parts[1], "b": parts[1][:seed]}] if seed else parts
        return make(seed, reweighting, tiny_bert(seed), *parts)

    given = {"metric": "epoch", "greater_is_better": True, "output_dir": tmp_path / "c"}
    for seeds in ([0], [0], [1, 0], [0, 1, 2]):
        compare(build, seeds=seeds, **given)
    lines = [json.loads(line) for line in (tmp_path / "c" / "runs.jsonl").read_text().splitlines()]
    assert len({line["settings"]["train_dataset_rows"] for line in lines}) > 1 and len(lines) == 6
    data.extend(classification_data(9))
    with pytest.raises(ValueError, match="_dataset_rows"):
        compare(build, seeds=[0, 1], **given)


def test_losses_and_schedules_may_be_made_of_the_seed(make, tmp_path):
    def build(seed, reweighting):
        model, mean = tiny_bert(), float(np.random.default_rng(seed).random())
        optimizer = torch.optim.SGD(model.parameters(), 0.1 + 0.1 * seed)

        def shifted(outputs, labels, start=seed):
            return squared(outputs, labels + mean + start)

        return make(
            seed, reweighting, model, trainer={"per_sample_loss_fn": shifted, "optimizers": (optimizer, None)}
        )

    given = {"output_dir": tmp_path / "c"}
    found = compare(build, seeds=[0, 1], **given)
    assert compare(build, seeds=[0, 1], **given).scores == found.scores
    compare(build, seeds=[0, 1, 2], **given)


def test_what_another_release_of_a_library_adds_is_no_other_setting(make):
    def build():
        model = tiny_bert()
        return make(model=model, trainer={"optimizers": (torch.optim.SGD(model.parameters(), 0.1), None)})

    now = run_settings(build())
    for extend in (lambda s: s["model_config"], lambda s: s["optimizer"]["groups"]["0"]):
        other = copy.deepcopy(now)
        extend(other)["an_option_of_tomorrow"] = False
        assert (
            changed_settings(now, other, same_seed=True) == changed_settings(other, now, same_seed=True) == ""
        )


def test_weights_that_are_not_finite_are_left_out(make):
    def build():
        model = tiny_bert()
        model.mask = torch.nn.Parameter(torch.full((3, 2), -float("inf")))
        model.gap = torch.nn.Parameter(torch.full((3,), float("nan")))
        return make(model=model)

    assert changed_settings(run_settings(build()), run_settings(build()), same_seed=True) == ""


def test_parameters_among_the_options_of_an_optimizer_are_not_recorded(make):
    def build():
        model = tiny_bert()
        options = {"params": list(model.parameters()), "lr": 0.5}
        return make(model=model, trainer={"optimizer_cls_and_kwargs": (torch.optim.SGD, options)})

    assert run_settings(build())["optimizer"] == {"class": "SGD", "lr": 0.5}


def test_code_counts_by_what_it_does(make):
    def counting(start):
        calls = start

        def rule(losses):
            nonlocal calls
            calls += 1
            return losses

        return rule

    def in_set(losses):
        """One docstring."""
        return losses if "a" in {"a", "b", "c"} else -losses

    told = type(in_set)(in_set.__code__.replace(co_firstlineno=7), {**globals()}, "in_set")
    for first, second in ((counting(1), counting(5)), (in_set, told)):
        before, now = (run_settings(make(reweighting=each)) for each in (first, second))
        assert changed_settings(before, now, same_seed=True) == ""
    before, now = (run_settings(make(reweighting=each)) for each in (plain, exponential))
    code = before["reweighting_code"]
    before["reweighting_code"] = {"name": code["name"], "python 3.0": "of another version's bytecode"}
    assert changed_settings(before, now, same_seed=True) == ""


@pytest.mark.parametrize("ignored", [KL(tau=3.0), Chi2(tau=2.0), power(2), functools.partial(power(2))])
def test_a_trainer_that_ignores_a_rule_object_is_refused(ignored, make, tmp_path):
    def ignores(seed, reweighting):
        return make(seed, reweighting if isinstance(reweighting, str) else Chi2(tau=1.0))

    with pytest.raises(ValueError, match=r"its Trainer has RGD \(chi2, tau=1\).*reweighting=reweighting"):
        compare(ignores, seeds=[0], reweightings=["none", ignored], output_dir=tmp_path / "c")

    def copies(seed, reweighting):
        return make(seed, copy.deepcopy(reweighting))

    found = compare(copies, seeds=[0], reweightings=["none", ignored], output_dir=tmp_path / "c")
    assert len(found.scores) == 2


@pytest.mark.parametrize("seeds", [np.arange(2), list(np.arange(2)), torch.arange(2), range(2), (0, 1)])
def test_seeds_are_whole_numbers_of_any_kind(seeds, make, tmp_path):
    given = {"output_dir": tmp_path / "c", "seeds": seeds}
    found = compare(make, **given)
    assert [*found.scores["ERM"]] == [0, 1] and {type(seed) for seed in found.scores["ERM"]} == {int}
    assert compare(make, **given).scores == found.scores
    assert len(Path(tmp_path / "c" / "runs.jsonl").read_text().splitlines()) == 4


def test_seeds_that_are_no_whole_numbers_are_refused(make, tmp_path):
    with pytest.raises(TypeError, match="integer"):
        compare(make, seeds=[0.5], output_dir=tmp_path / "c")


def test_a_class_that_weighs_by_itself_is_no_baseline(make, tmp_path):
    def weighs(seed, reweighting):
        made = make(seed, reweighting)
        made.__class__ = Gentle
        return made

    with pytest.raises(ValueError, match="weigh weights losses under reweighting='none' too"):
        compare(weighs, seeds=[0], output_dir=tmp_path / "c")


def test_rules_within_groups_are_told_apart_and_ignoring_them_is_refused(make, tmp_path):
    data = [{**row, "group": i % 2} for i, row in enumerate(DATA)]
    rules = [GroupDRO(2), GroupDRO(2, within=KL())]
    found = compare(
        lambda seed, rule: make(seed, rule, train=data),
        seeds=[0],
        reweightings=rules,
        output_dir=tmp_path / "c",
    )
    assert [*found.scores] == ["GroupDRO (step size=0.01)", "GroupDRO (step size=0.01, RGD (kl, tau=1))"]
    with pytest.raises(ValueError, match=r"its Trainer has GroupDRO \(step size=0.01\)\. Pass it on"):
        compare(
            lambda seed, rule: make(seed, GroupDRO(2), train=data),
            seeds=[0],
            reweightings=rules,
            output_dir=tmp_path / "d",
        )
