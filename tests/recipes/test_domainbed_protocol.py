"""Splits, batches and calibration against the rules as they are written."""

import hashlib

import numpy as np
import pytest

from rgd_hf.scripts.domains.batches import DomainSampler, Draw, TrainingDomains
from rgd_hf.scripts.domains.environments import (
    DomainData,
    Environment,
    check_environments,
    check_held_out,
    seed_hash,
    split,
)
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.training.calibration import confidence_of, expected_calibration_error


@pytest.mark.parametrize("count,trial,position", [(5, 0, 0), (37, 0, 1), (1670, 2, 3)])
def test_split_is_a_brute_force_reading_of_the_rule(count, trial, position):
    # DomainBed: seed = md5 of the arguments' tuple; shuffle all keys; the first int(0.2 n) are out, the others in.
    seed = int(hashlib.md5(str((trial, position)).encode("utf-8")).hexdigest(), 16) % 2**31
    keys = list(range(count))
    np.random.RandomState(seed).shuffle(keys)
    n_out = int(count * 0.2)
    inside, outside = split(count, trial, position)
    assert outside.tolist() == keys[:n_out] and inside.tolist() == keys[n_out:]


def test_split_depends_on_trial_and_environment():
    splits = {(t, p): tuple(split(40, t, p)[1]) for t in range(3) for p in range(3)}
    assert len(set(splits.values())) == 9


def environment(name, labels):
    return Environment(name, np.zeros((len(labels), 2, 2, 3), np.uint8), np.array(labels, dtype=np.int64))


def data(**labels):
    return DomainData(tuple(environment(n, v) for n, v in labels.items()), ("cat", "dog"), "image")


@pytest.mark.parametrize(
    "bad,message",
    [
        (data(photo=[0, 1] * 5), "found 1 domain"),
        (data(photo=[0, 1] * 5, sketch=[]), "'sketch' have no images"),
        (data(photo=[0, 1] * 5, sketch=[0] * 9), "'sketch' has no image of the class.*'dog'"),
        (data(photo=[0, 1] * 5, sketch=[0, 1]), "'sketch' have too few samples"),
    ],
)
def test_domains_that_do_not_fit_are_named(bad, message):
    with pytest.raises(UserError, match=message):
        check_environments(bad)


def test_unknown_held_out_domain_lists_the_names():
    both = data(photo=[0, 1] * 5, sketch=[0, 1] * 5)
    check_held_out(["sketch"], both)
    for names, message in (
        (["art"], "no domain 'art'; domains: 'photo', 'sketch'"),
        ([], "one of 'photo', 'sketch', not none"),
        (["photo", "photo"], "not 'photo', 'photo'"),
        (["photo", "sketch"], "leaves no domain to train on"),
    ):
        with pytest.raises(UserError, match=message):
            check_held_out(names, both)


def draws(positions, trial=0, per_domain=4, batches=6):
    splits = [np.arange(100) + 1000 * position for position in positions]
    drawn = list(DomainSampler(splits, positions, trial, per_domain, batches))
    return {p: [(d.sample, d.seed) for d in drawn if d.domain == k] for k, p in enumerate(positions)}, drawn


def test_batches_are_per_domain_and_the_same_whatever_is_held_out():
    without_one, drawn = draws([0, 2])
    assert [d.domain for d in drawn] == ([0] * 4 + [1] * 4) * 6
    without_none, _ = draws([0, 1, 2])
    assert without_one[0] == without_none[0] and without_one[2] == without_none[2]
    assert draws([0, 2], trial=1)[0][0] != without_one[0]
    larger, _ = draws([0], per_domain=8, batches=3)
    assert larger[0] == without_one[0]


def test_training_samples_are_numbered_through_the_splits():
    class View:
        def sample(self, number, seed):
            return {"number": number, "seed": seed}

    splits = [np.array([5, 0, 3]), np.array([2, 9])]
    domains = TrainingDomains([View(), View()], splits, np.zeros(5))
    places = [(0, 5), (0, 0), (0, 3), (1, 2), (1, 9)]
    assert [domains.place(index) for index in range(5)] == places and len(domains) == 5
    for index, (domain, sample) in enumerate(places):
        expected = {"number": sample, "domain": domain, "sample_index": index}
        assert domains[Draw(domain, sample, 7)] == {**expected, "seed": 7}
        assert domains[index] == {**expected, "seed": None}


def test_calibration_error_by_hand():
    confidence, correct = np.array([0.95, 0.9, 0.6, 0.55]), np.array([True, False, True, True])
    # Ten bins: 0.95 right | 0.9 wrong | 0.6 and 0.55 right -> (0.05 + 0.9 + 0.4 + 0.45) / 4, bins (0.5, 0.6].
    assert expected_calibration_error(confidence, correct, bins=10) == pytest.approx((0.05 + 0.9 + 0.85) / 4)
    assert expected_calibration_error(np.ones(3), np.ones(3, dtype=bool)) == 0
    np.testing.assert_allclose(confidence_of(np.log([[0.25, 0.75], [0.9, 0.1]])), [0.75, 0.9])


def test_seed_hash_is_that_of_a_tuple():
    assert seed_hash(0, 1) == int(hashlib.md5(b"(0, 1)").hexdigest(), 16) % 2**31
