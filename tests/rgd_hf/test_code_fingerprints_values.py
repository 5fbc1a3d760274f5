"""Values in the fingerprints of a user's code: several of one name, and tensors of any size."""

import functools
import json

import numpy as np
import pytest
import torch
from torch import nn

from rgd_hf import ReweightedTrainer
from rgd_hf.comparison.code_fingerprints import changed_values, fingerprint
from rgd_hf.weightings import KL


def found_in(given):
    return json.loads(json.dumps(fingerprint(given)))


def layers(*values, base=object):
    """A class whose base classes have other values of the attribute that it has."""
    cls = base
    for value in values:
        cls = type("Layer", (cls,), {"p": value})
    return cls


def instance(cls, p):
    made = cls()
    made.p = p
    return made


def method(attribute, default):
    class Mine:
        def f(self, losses, p=default):
            return losses**p * self.p

    return instance(Mine, attribute).f


def function(default):
    return lambda losses, p=default: losses**p


def partial_of_a_partial(outer, inner, default):
    """One that Python does not join, as the inner one has an attribute."""
    made = functools.partial(function(default), p=inner)
    made.note = "kept"
    return functools.partial(made, p=outer)


def reading(value):
    return lambda losses: value


OF_ONE_NAME = {
    "keyword of a partial": lambda p, other: functools.partial(function(other), p=p),
    "default under a keyword": lambda p, other: functools.partial(function(p), p=other),
    "outer partial": lambda p, other: partial_of_a_partial(p, other, other),
    "inner partial": lambda p, other: partial_of_a_partial(other, p, other),
    "default under two partials": lambda p, other: partial_of_a_partial(other, other, p),
    "keyword over a method's default": lambda p, other: functools.partial(method(other, other), p=p),
    "method's default": lambda p, other: method(other, p),
    "attribute with the name of a method's default": method,
    "derived class": lambda p, other: layers(other, p),
    "class between": lambda p, other: layers(other, p, other),
    "base class": lambda p, other: layers(p, other),
    "object over its class": lambda p, other: instance(layers(other), p),
    "class under its object": lambda p, other: instance(layers(p), other),
    "derived Trainer": lambda p, other: layers(other, p, base=ReweightedTrainer),
    "base Trainer": lambda p, other: layers(p, other, base=ReweightedTrainer),
    "derived rule": lambda p, other: layers(other, p, base=KL)(),
    "base rule": lambda p, other: layers(p, other, base=KL)(),
    "keys that read alike": lambda p, other: reading({1: p, "1": other, "2": len}),
}
VALUES = {
    "number": (1, 2, 0),
    "list": ([1], [2], [0]),
    "tensor": (torch.ones(2), torch.zeros(2), torch.ones(3)),
    "library's class": (nn.ReLU, nn.SiLU, nn.GELU),
    "library's function": (nn.functional.relu, nn.functional.silu, nn.functional.elu),
    "builtin function": (torch.exp, torch.sigmoid, torch.tanh),
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("place", OF_ONE_NAME)
def test_of_several_values_of_one_name_each_counts(place, kind):
    build, (first, second, other) = OF_ONE_NAME[place], VALUES[kind]
    before = found_in(build(first, other))
    assert before == found_in(build(first, other))
    (name,) = changed_values(before, found_in(build(second, other)))
    assert name.split(" ")[0] in ("p", "value.1")


# --- tensors and arrays ---------------------------------------------------------------------------------------------


KINDS = {
    "tensor": torch.from_numpy,
    "array": lambda array: array,
    "tensor that is not contiguous": lambda array: torch.from_numpy(np.ascontiguousarray(array.T)).T,
    "array that is not contiguous": lambda array: np.ascontiguousarray(array.T).T,
}


@pytest.mark.parametrize("build", KINDS.values(), ids=KINDS)
def test_every_element_of_a_small_tensor_counts_and_every_column_of_a_large_one(build):
    small, large = np.random.rand(100, 100), np.random.rand(3000, 40).astype(np.float16)
    before = found_in(reading(build(small))), found_in(reading(build(large)))
    for place in np.random.permutation(small.size)[:100]:
        other = small.copy()
        other.flat[place] += 1
        assert changed_values(before[0], found_in(reading(build(other)))) == {"value"}
    for column in range(large.shape[1]):
        other = large.copy()
        other[:, column] += 1
        assert changed_values(before[1], found_in(reading(build(other)))) == {"value"}


@pytest.mark.parametrize("first", [np.float16(1.5), torch.tensor(1.5)], ids=["array", "tensor"])
def test_a_tensor_larger_than_the_memory_is_told_apart(first):
    """All its elements are one in memory; read whole, they would be 8 TB."""

    def of(value, *shape):
        is_an_array = isinstance(value, np.generic)
        return found_in(reading(np.broadcast_to(value, shape) if is_an_array else value.expand(shape)))

    before = of(first, 10**6, 10**6)
    assert before == of(first, 10**6, 10**6)
    double = np.float64(first) if isinstance(first, np.generic) else first.double()
    for other in (of(first + 1, 10**6, 10**6), of(first, 10**5, 10**7), of(double, 10**6, 10**6)):
        assert changed_values(before, other) == {"value"}


@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (0, 5), (10_000,), (10_001,), (3, 30_030), (7, 11, 13, 17)]
)
def test_tensors_of_every_shape_have_a_summary(shape):
    array = np.random.rand(*shape) if shape else np.array(0.5)
    for given in (array, torch.from_numpy(array)):
        dtype, *rest = found_in(reading(given))["values"]["value"]
        assert dtype.endswith("float64") and rest[:-2] == list(shape)
