"""The stock Trainer and ours on the same regression, trained side by side."""

import pytest
from comparison import Run, assert_same_run
from regression_models import RegressionDataset, RegressionPreTrainedModel, squared_errors, surrogate_of
from transformers import Trainer, TrainingArguments

from rgd_hf import ReweightedTrainer

TAU = 5.0


def by_item(outputs, labels):
    y = outputs["output"] if isinstance(outputs, dict) else outputs[0]
    return squared_errors(y, labels)


NONE = {"reweighting": "none"}
NONE_BY_ITEM = {"reweighting": "none", "per_sample_loss_fn": by_item}
KL = {"reweighting": "kl", "tau": TAU, "per_sample_loss_fn": by_item}
OURS = pytest.mark.parametrize("ours", [NONE, NONE_BY_ITEM, KL], ids=["none", "none by item", "kl"])


def arguments(output_dir, **keywords):
    defaults = {"learning_rate": 0.1, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return TrainingArguments(str(output_dir), **defaults | keywords)


def trainers(tmp_path, ours, model=RegressionPreTrainedModel, keywords=dict, **args):
    """The stock Trainer (on the surrogate, for `kl`) and ours, on the same data."""
    reference = surrogate_of(model, TAU) if ours is KL else model
    data = {"train_dataset": RegressionDataset(), "eval_dataset": RegressionDataset(20, seed=1)}
    return (
        Trainer(reference(), arguments(tmp_path / "stock", **args), **data | keywords()),
        ReweightedTrainer(model(), arguments(tmp_path / "ours", **args), **data | keywords(), **ours),
    )


def assert_train_alike(stock, ours, same_loss, rtol=1e-5, **keywords):
    expected, found = (Run(t, t.train(**keywords), t.evaluate()) for t in (stock, ours))
    assert_same_run(expected, found, rtol, same_loss)
