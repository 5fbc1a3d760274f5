"""The samples of one step with a user's code in it, and when two gradients are the same."""

import torch
from torch.nn import functional as F

from tests.helpers.tiny import classification_data, relative_error

SAMPLES = 12


def data(sample_weight=False):
    rows = classification_data(SAMPLES)
    for i, row in enumerate(rows):
        if sample_weight:
            row["sample_weight"] = torch.tensor(float(i % 3))
    return rows


def unreduced(outputs, labels):
    return F.cross_entropy(outputs.logits, labels, reduction="none")


def assert_same_gradient(found, expected):
    # The parameters are float32 numbers of size 1, of which the step of 1e-2 keeps some five digits.
    assert relative_error(found, expected) < 1e-4
