"""Wrong labels for a network to learn from, and smoothed ones."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.tabular.columns import Target
from rgd_hf.scripts.tabular.label_noise import with_label_noise
from rgd_hf.scripts.tabular.losses import cross_entropies, loss_of
from rgd_hf.scripts.tabular.splits import PreparedTable


@pytest.fixture
def prepared():
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"a": draw.normal(size=400), "y": draw.integers(0, 4, 400)})
    target = Target("y", ("p", "q", "r", "s"))
    return PreparedTable("made", frame, frame["y"].to_numpy(), target, [{"name": "a", "kind": "numeric"}])


def test_noise_replaces_the_asked_share_of_training_labels_by_other_classes(prepared):
    splits = prepared.split(3)
    noisy = with_label_noise(splits, 0.25)
    wrong = noisy.train.y != splits.train.y
    assert wrong.sum() == round(0.25 * len(splits.train)) and set(noisy.train.y) == {0, 1, 2, 3}
    assert noisy.validation is splits.validation and noisy.test is splits.test
    assert np.array_equal(with_label_noise(prepared.split(3), 0.25).train.y, noisy.train.y)
    other = prepared.split(4)
    assert not np.array_equal(with_label_noise(other, 0.25).train.y != other.train.y, wrong)
    assert with_label_noise(splits, 0.0) is splits
    with pytest.raises(UserError, match="between 0 and 1"):
        with_label_noise(splits, 1.0)


def test_smoothing_is_for_training_alone():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1])
    loss = loss_of(is_regression=False, label_smoothing=0.1)
    plain = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(loss({"logits": logits}, labels), plain)
    smoothed = loss({"logits": logits.clone().requires_grad_()}, labels)
    expected = 0.9 * plain - 0.1 * logits.log_softmax(dim=1).mean(dim=1)
    torch.testing.assert_close(smoothed.detach(), expected)
    torch.testing.assert_close(cross_entropies(logits, labels), plain)
