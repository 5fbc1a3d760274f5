"""Fingerprints of a user's code: they tell apart what does something else, in whatever form, and nothing that does the same."""

import argparse
import functools
import json
import os
import subprocess
import sys
import types
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import EarlyStoppingCallback, TrainingArguments

from rgd_hf import ReweightedTrainer, compare
from rgd_hf.comparison.code_fingerprints import changed_values, fingerprint
from rgd_hf.comparison.run_settings import changed_settings, run_settings
from rgd_hf.weightings import KL, Function, GroupDRO, Weighting
from tests.helpers.tiny import classification_data, tiny_bert

CONSTANT = 0


class Called:
    def __init__(self, p):
        self.p = p

    def __call__(self, losses):
        return losses**self.p

    def method(self, losses):
        return losses * self.p

    def through_another(self, losses):
        return self.method(losses)


class Slotted:
    __slots__ = ("_p",)

    def __init__(self, p):
        self._p = p

    def __call__(self, losses):
        return losses**self._p


class Module(nn.Module):
    def __init__(self, smoothing=0.0, weights=(1.0, 2.0)):
        super().__init__()
        self.loss = nn.CrossEntropyLoss(torch.tensor(weights), label_smoothing=smoothing)

    def forward(self, outputs, labels):
        return self.loss(outputs, labels)


@dataclass
class Rule(Weighting):
    private: float = 1.0

    def __post_init__(self):
        self._exponent = self.private

    def weights(self, items):
        return items.losses**self._exponent


def ran(source, **names):
    """What `source` defines as `found`."""
    space = {"Weighting": Weighting, "dataclass": dataclass, "torch": torch, "__name__": "a_script", **names}
    exec(source, space)
    return space["found"]


def reads(value, source):
    """A function whose code does not change, of a global variable that does."""
    return ran(f"def found(losses):\n    return {source}", G=value)


def module(p):
    made = types.ModuleType("settings_of_mine")
    made.p, made.other = p, object()
    return made


def helped(p):
    """A function that calls another, which reads a constant."""
    return ran("def helper(x):\n    return x ** P\ndef found(losses):\n    return helper(losses)", P=p)


def decorated(p):
    def scale(function):
        @functools.wraps(function)
        def wrapper(losses):
            return p * function(losses)

        return wrapper

    @scale
    def rule(losses):
        return losses

    return rule


def based(body, derived="pass"):
    return ran(
        f"@dataclass\nclass Base(Weighting):\n    def weights(self, items):\n        return {body}\n"
        f"@dataclass\nclass Mine(Base):\n    {derived}\nfound = Mine()"
    )


def within(body):
    return ran(f"def found(losses):\n    return {body}")


def constant(p):
    def rule(losses):
        return losses + CONSTANT

    globals()["CONSTANT"] = p
    found = fingerprint(rule)
    return SimpleNamespace(found=found)


Pair = namedtuple("Pair", "function p")

KINDS = {
    "attribute of a callable object": Called,
    "attribute in a slot": Slotted,
    "bound method": lambda p: Called(p).method,
    "method that calls another": lambda p: Called(p).through_another,
    "partial": lambda p: functools.partial(pow, p),
    "partial of an object": lambda p: functools.partial(Called(p), losses=None),
    "keyword of a partial that is an object": lambda p: functools.partial(pow, other=Called(p)),
    "default": lambda p: lambda losses, p=p: losses**p,
    "keyword default": lambda p: lambda losses, *, p=p: losses**p,
    "closure": lambda p: lambda losses: losses**p,
    "object in a closure": lambda p, f=Called: (lambda made: lambda losses: made(losses))(f(p)),
    "nested function": lambda p: lambda losses: [x**p for x in losses],
    "decorator": decorated,
    "global variable": lambda p: reads(p, "losses ** G"),
    "attribute of a global object": lambda p: reads(Called(p), "losses ** G.p"),
    "method of a global object": lambda p: reads(Called(p), "G.method(losses)"),
    "arguments": lambda p: reads(argparse.Namespace(p=p), "losses ** G.p"),
    "module of settings": lambda p: reads(module(p), "losses ** G.p"),
    "global dict": lambda p: reads({"p": p}, "losses ** G['p']"),
    "global list": lambda p: reads([1, [p]], "losses ** G[1][0]"),
    "global set": lambda p: reads({"a", str(p)}, "losses * len(G)"),
    "tensor": lambda p: reads(torch.tensor([1.0, p, 3.0]), "losses * G"),
    "order of a tensor": lambda p: reads(torch.tensor([1.0, p, 3.0 - p]), "losses * G"),
    "array": lambda p: reads(np.array([1, p]), "losses * G[1]"),
    "numpy scalar": lambda p: reads(np.float32(p), "losses * G"),
    "helper's constant": helped,
    "function of a library": lambda p: reads([torch.exp, torch.sigmoid][p - 1], "G(losses)"),
    "several functions": lambda p: reads(Pair(Called(p), 3), "G[0](losses)"),
    "loss module": lambda p: Module(smoothing=p / 10),
    "class weights of a loss module": lambda p: Module(weights=(1.0, float(p))),
    "private attribute of a rule": Rule,
    "within groups": lambda p: GroupDRO(2, within=Called(p)),
    "code within groups": lambda p: GroupDRO(2, within=within(f"losses ** {p}")),
    "library's function within groups": lambda p: GroupDRO(2, within=[torch.exp, torch.sigmoid][p - 1]),
    "rule within groups": lambda p: GroupDRO(2, within=based(f"items.losses ** {p}")),
    "base class": lambda p: based(f"items.losses ** {p}"),
    "attribute of the class": lambda p: based("items.losses ** self.p", f"p = {p}"),
    "property": lambda p: ran(
        f"class C:\n    @property\n    def p(self):\n        return {p}\n"
        "    def __call__(self, losses):\n        return losses * self.p\nfound = C()"
    ),
    "static method": lambda p: ran(
        f"class C:\n    @staticmethod\n    def f(x):\n        return x ** {p}\nfound = C.f"
    ),
    "class method": lambda p: ran(
        f"class C:\n    @classmethod\n    def f(cls, x):\n        return x ** cls.p\nC.p = {p}\nfound = C.f"
    ),
    "method under a library's decorator": lambda p: ran(
        "class C:\n    @torch.no_grad()\n    def f(self, losses):\n        return losses * P\nfound = C().f",
        P=p,
    ),
    "method of a class under a library's decorator": lambda p: ran(
        f"class C:\n    @torch.no_grad()\n    def __call__(self, losses):\n        return losses * {p}\nfound = C()"
    ),
    "library's static method": lambda p: type(
        "T", (ReweightedTrainer,), {"loss": staticmethod([nn.functional.relu, nn.functional.silu][p - 1])}
    ),
    "Trainer": lambda p: type("T", (ReweightedTrainer,), {"weigh": reads(p, "losses ** G")}),
}


def different(first, second) -> bool:
    one, other = (json.loads(json.dumps(fingerprint(each))) for each in (first, second))
    code = {
        name for name in {*one, *other} if name.startswith("python ") and one.get(name) != other.get(name)
    }
    return bool(code or changed_values(one, other))


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_something_else_is_told_apart(kind):
    build = KINDS[kind]
    assert not different(build(1), build(1))
    assert different(build(1), build(2))
    if not isinstance(build(1), Weighting | type):
        assert different(Function(build(1)), Function(build(2)))


SAME = """
import functools, random, time
BEGAN, UNREAD, NUMBER = time.time(), random.random(), 0
class Config:
    def __init__(self):
        self.p, self.run = 2, random.random()
CONFIG, CACHE, KEYS = Config(), {object(): 1}, {"a", "b", "c", "d"}
class Loss:
    def __init__(self, rule):
        self.rule, self.calls, self.library = rule, 0, random.Random()
    def __call__(self, losses, mode="mean"):
        "%s"
        self.calls += 1
        if mode in {"a", "b", "c", "d", "e"} and mode in KEYS:
            return UNREAD_NAME(losses)
        return self.rule(losses) ** CONFIG.p + len(CACHE)
@functools.lru_cache
def cached(x):
    return x + len(__name__)
def counting(losses):
    global NUMBER
    NUMBER += 1
    return cached(losses)
rules = [lambda losses, p=p: losses ** p for p in range(3)]
found = Loss(functools.partial(counting, *rules))
NUMBER = random.random()
"""


def test_what_does_the_same_is_the_same_in_every_process():
    here = json.loads(json.dumps(fingerprint(ran("\n\n" + SAME % "Other words."))))
    code = f"import json, sys\n{SAME % 'Words.'}\nsys.path[:0] = {sys.path!r}\n"
    code += (
        "from rgd_hf.comparison.code_fingerprints import fingerprint\nprint(json.dumps(fingerprint(found)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    there = json.loads(done.stdout)
    assert there == here and here["values"]["__call__.CONFIG.p"] == 2 and len(json.dumps(here)) < 1500


def test_the_words_of_a_rule_and_what_a_trainer_logs_do_not_count():
    assert not different(based("items.losses", "title = 'A'"), based("items.losses", "title = 'B'"))
    logs = [
        type("T", (ReweightedTrainer,), {"log": reads(p, "G"), "weigh": within("losses")}) for p in (1, 2)
    ]
    assert not different(*logs)
    assert fingerprint(KL()) is fingerprint(ReweightedTrainer) is fingerprint(None) is None


# --- in a comparison ------------------------------------------------------------------------------------------------


class Counting:
    """A loss function that is changed by training, in all ways."""

    def __init__(self, gamma=1.0):
        self.gamma, self.calls, self.seen, self.by_size = gamma, 0, [], {}

    def __call__(self, outputs, labels):
        losses = nn.functional.cross_entropy(outputs.logits, labels, reduction="none") ** self.gamma
        self.calls += 1
        self.seen.append(self.calls)
        self.by_size[self.calls] = len(labels)
        self.last = losses.detach()
        return losses


@dataclass
class CountingRule(Weighting):
    """Another one, as a rule."""

    factors: list
    by_size: dict

    def weights(self, items):
        self.by_size[len(self.by_size)] = len(items.losses)
        self._last = items.losses
        return items.losses * self.factors[0]


def builder(make_args, loss, cut=None, cls=TrainingArguments, callbacks=lambda: (), **options):
    def make_trainer(seed, reweighting):
        data = classification_data(12)
        trainer = ReweightedTrainer(
            model=tiny_bert(seed),
            args=make_args(cls, **{"seed": seed, "max_steps": 2, **options}),
            reweighting=reweighting,
            train_dataset=data,
            eval_dataset=data,
            per_sample_loss_fn=loss,
            callbacks=[*callbacks()],
        )
        if cut == (seed, reweighting):
            evaluate = trainer.evaluate
            trainer.evaluate = lambda: (evaluate(), (_ for _ in ()).throw(KeyboardInterrupt))
        return trainer

    return make_trainer


@pytest.mark.parametrize("anew", [False, True])
def test_what_training_changes_in_an_object_does_not_keep_it_from_resuming(anew, make_args, tmp_path):
    """Shared by the runs; in the next call it is there as it was left, or made anew."""
    options = {"save_strategy": "steps", "save_steps": 1}
    made = Counting(), CountingRule([2.0], {})
    given = {"seeds": [0, 1], "output_dir": tmp_path / "c"}
    with pytest.raises(KeyboardInterrupt):
        compare(builder(make_args, made[0], (1, "none"), **options), reweightings=["none", made[1]], **given)
    for _ in range(2):
        made = (Counting(), CountingRule([2.0], {})) if anew else made
        found = compare(builder(make_args, made[0], **options), reweightings=["none", made[1]], **given)
    assert len(found.runs) == 4 and len((tmp_path / "c" / "runs.jsonl").read_text().splitlines()) == 4
    for loss, rule, complaint in (
        (Counting(2.0), made[1], r"per_sample_loss_fn\.values\.gamma: 1\.0, now 2\.0"),
        (made[0], CountingRule([3.0], {}), r"reweighting_settings\.factors"),
    ):
        with pytest.raises(ValueError, match=complaint):
            compare(builder(make_args, loss, **options), reweightings=["none", rule], **given)


@pytest.mark.parametrize("seeds", [[0, 1], [1, 0], [2, 1, 0]])
def test_a_finished_run_is_checked_before_others_are_trained(seeds, make_args, tmp_path):
    """Values may depend on the seed: only a run of the same seed tells that they changed."""
    given = {"output_dir": tmp_path / "c"}
    compare(builder(make_args, Called(1).method_of_losses), seeds=[0], **given)
    lines = (tmp_path / "c" / "runs.jsonl").read_text()
    with pytest.raises(ValueError, match=r"values\.p: 1, now 2"):
        compare(builder(make_args, Called(2).method_of_losses), seeds=seeds, **given)
    assert (tmp_path / "c" / "runs.jsonl").read_text() == lines
    assert len(compare(builder(make_args, Called(1).method_of_losses), seeds=seeds, **given).runs) == 2 * len(
        seeds
    )


def method_of_losses(self, outputs, labels):
    return nn.functional.cross_entropy(outputs.logits, labels, reduction="none") * self.p


Called.method_of_losses = method_of_losses


@dataclass
class OwnArguments(TrainingArguments):
    projector_lr: float = 0.01
    seed_ratio: float = 0.5
    log_scale: float = 1.0
    optimizer: float = 0.0
    trainer: float = 0.0


@pytest.mark.parametrize("name", ["projector_lr", "seed_ratio", "log_scale", "optimizer", "trainer"])
def test_arguments_of_ones_own_are_settings_whatever_they_are_called(name, make_args):
    before, now = (
        run_settings(builder(make_args, None, cls=OwnArguments, **{name: value})(0, "kl"))
        for value in (0.1, 0.2)
    )
    shown = f"{name} (argument)" if name in ("optimizer", "trainer") else name
    assert changed_settings(before, now, same_seed=True) == f"{shown}: 0.1, now 0.2"
    same = run_settings(builder(make_args, None, cls=OwnArguments, **{name: 0.1}, logging_steps=7)(0, "kl"))
    assert changed_settings(before, same, same_seed=True) == ""


def test_the_patience_of_early_stopping_is_a_setting(make_args):
    options = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}

    def settings(*callbacks):
        return run_settings(builder(make_args, None, callbacks=lambda: callbacks, **options)(0, "kl"))

    before = settings(EarlyStoppingCallback(3))
    assert "'early_stopping_patience': 20" in changed_settings(
        before, settings(EarlyStoppingCallback(20)), same_seed=True
    )
    assert "callbacks" in changed_settings(before, settings(), same_seed=True)
    stopped = EarlyStoppingCallback(3)
    stopped.early_stopping_patience_counter = 2
    assert changed_settings(before, settings(stopped), same_seed=True) == ""
