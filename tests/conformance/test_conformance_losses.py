"""Ragged batches, where the stock Trainer is not exact, and losses that are not finite."""

import numpy as np
import pytest
from pairs import KL, NONE, NONE_BY_ITEM, TAU, arguments, assert_train_alike
from regression_models import RegressionDataset, RegressionModel, surrogate_of
from transformers import Trainer

from rgd_hf import ReweightedTrainer
from rgd_hf.trainer import NonFiniteLossError

# --- ragged batches: where the stock Trainer is not exact -------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 5, 10])
@pytest.mark.parametrize("length", [60, 53, 47, 41])
@pytest.mark.parametrize("ours", [NONE_BY_ITEM, KL], ids=["none by item", "kl"])
def test_ragged_accumulation_trains_as_the_full_batch_does(ours, length, size, tmp_path):
    """Updates of 20 samples, the last one of what is left, cut into micro-batches of which the last is ragged.

    The stock Trainer takes the mean of the micro-batches' means and would be wrong on ragged ones, so the reference
    has the whole batch of an update in one.
    """
    reference = surrogate_of(RegressionModel, TAU) if ours is KL else RegressionModel
    data = {"train_dataset": RegressionDataset(length), "eval_dataset": RegressionDataset(20, seed=1)}
    cut = arguments(
        tmp_path / "ours", per_device_train_batch_size=size, gradient_accumulation_steps=20 // size
    )
    whole = arguments(tmp_path / "stock", per_device_train_batch_size=20)
    stock = Trainer(reference(), whole, **data)
    trainer = ReweightedTrainer(RegressionModel(), cut, **data, **ours)
    assert_train_alike(stock, trainer, same_loss=ours is not KL)


# --- non-finite losses ------------------------------------------------------------------------------------------------


class BadAtStep(RegressionModel):
    """Its third forward pass in training is infinite."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, input_x, labels=None):
        self.calls += self.training
        if self.training and self.calls == 3:
            input_x = input_x * float("inf")
        return super().forward(input_x, labels)


def test_nan_filter_holds_for_the_models_own_loss(tmp_path):
    for keep in (True, False):
        logs = []
        for cls, keywords in ((Trainer, {}), (ReweightedTrainer, NONE)):
            trainer = cls(
                BadAtStep(),
                arguments(tmp_path, max_steps=5, logging_steps=1, logging_nan_inf_filter=keep),
                train_dataset=RegressionDataset(),
                **keywords,
            )
            trainer.train()
            logs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        np.testing.assert_allclose(*logs)


def test_a_non_finite_loss_stops_re_weighted_training(tmp_path):
    trainer = ReweightedTrainer(
        BadAtStep(), arguments(tmp_path, max_steps=5, save_steps=1), train_dataset=RegressionDataset(), **KL
    )
    with pytest.raises(NonFiniteLossError, match="step 3"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]
