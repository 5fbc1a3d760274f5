"""Training one network on encoded splits, with early stopping on the validation split."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rtdl_num_embeddings import compute_bins
from scipy.special import softmax
from transformers import set_seed

from rgd_hf import ReweightedTrainingArguments
from rgd_hf.batches.columns import SAMPLE_INDEX, SAMPLE_WEIGHT
from rgd_hf.class_weights import class_weights_of
from rgd_hf.observers import HardExamples, WeightHistogram
from rgd_hf.scripts.errors import UserError, settings_explained
from rgd_hf.scripts.tabular.batches import BatchLoader, TensorTable
from rgd_hf.scripts.tabular.configuration import TabularConfig
from rgd_hf.scripts.tabular.losses import loss_of
from rgd_hf.scripts.tabular.modeling import TabularModel
from rgd_hf.scripts.tabular.options import MAX_EMBEDDED_FEATURES, NetworkArguments
from rgd_hf.scripts.tabular.pretraining import pretrain
from rgd_hf.scripts.tabular.scores import selecting_score, validation_score
from rgd_hf.scripts.tabular.splits import Part, Splits
from rgd_hf.scripts.tabular.trainer import KeepBest, TabularTrainer, quiet, with_changes

MIN_STEPS_PER_EPOCH = 8
MIN_BATCH_SIZE = 16


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network and what it predicts.

    Attributes:
        model: with the weights of its best epoch.
        trainer: that trained it.
        best_epoch: the epoch of those weights.
        validation_score: the score that chose it, on the validation split, with the sign that makes larger better.
        test: predictions for the test split: probabilities `[rows, classes]`, or values `[rows]`.
    """

    model: TabularModel
    trainer: TabularTrainer
    best_epoch: float
    validation_score: float
    test: np.ndarray


def make_config(splits: Splits, network: str, sizes: NetworkArguments) -> TabularConfig:
    """The configuration of `network` for the encoded table."""
    target, x_num = splits.target, splits.train.x_num
    bins = None
    embeddings = "none" if network == "ft_transformer" else sizes.num_embeddings
    if embeddings == "auto":
        embeddings = "piecewise_linear" if x_num.shape[1] <= MAX_EMBEDDED_FEATURES else "none"
    if embeddings == "piecewise_linear" and x_num.shape[1]:
        bins = _bins(x_num, sizes.n_bins)
    of_target: dict[str, Any] = {"classes": list(target.classes)}
    if target.is_regression:
        y = splits.train.y
        of_target = {"problem_type": "regression", "target_mean": float(y.mean())}
        of_target["target_std"] = float(y.std()) or 1.0
    return TabularConfig(
        network=network,
        n_num_features=x_num.shape[1],
        cat_cardinalities=splits.preprocessor.cardinalities,
        n_blocks=sizes.n_blocks,
        d_block=sizes.d_block,
        dropout=sizes.dropout,
        k=sizes.k,
        num_embeddings=embeddings,
        d_embedding=sizes.d_embedding,
        bins=bins,
        columns=splits.preprocessor.columns,
        target=target.name,
        **of_target,
    )


def _bins(x_num: np.ndarray, n_bins: int) -> list[list[float]]:
    """Edges of each feature's bins at its quantiles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a feature of 0 and 1 has one bin
        edges = compute_bins(torch.from_numpy(x_num), n_bins=max(2, min(n_bins, len(x_num) - 2)))
    return [e.tolist() for e in edges]


def make_table(part: Part, config: TabularConfig, device: torch.device) -> TensorTable:
    """A split with its labels on the device; the target of a regression is standardized."""
    if config.problem_type == "regression":
        labels = torch.from_numpy((part.y - config.target_mean) / config.target_std).float()
    else:
        labels = torch.from_numpy(part.y)
    return TensorTable({**part.features(), "labels": labels}, device)


def batch_size_for(rows: int, asked: int) -> int:
    """`asked`, or the power of two that leaves a small table `MIN_STEPS_PER_EPOCH` steps an epoch."""
    small = 2 ** int(math.log2(max(rows // MIN_STEPS_PER_EPOCH, MIN_BATCH_SIZE)))
    return min(asked, max(small, MIN_BATCH_SIZE))


def train_network(
    splits: Splits,
    network: str,
    sizes: NetworkArguments,
    args: ReweightedTrainingArguments,
    record_examples: bool = False,
    before_training: Callable[[], Any] | None = None,
) -> TrainedNetwork:
    """Train `network` on the training split until the validation score stops rising.

    Args:
        splits: the encoded table.
        network: one of `NETWORKS`.
        sizes: sizes of the network.
        args: learning rate, epochs, seed, weighting and so on; a small table gets smaller batches. The best epoch is chosen by
            `metric_for_best_model`, a name of `scores.CLASSIFICATION` or `scores.REGRESSION` or "loss"; by default accuracy or
            RMSE.
        record_examples: whether to observe `HardExamples`, by the row of the training split.
        before_training: called when all is checked, before the first step.

    Raises:
        UserError: the settings do not go with the table.
        NonFiniteLossError: a loss was NaN or infinite.
    """
    score = selecting_score(splits.target.is_regression, args)
    set_seed(args.seed)
    smoothing, weights_of_classes = args.label_smoothing_factor, args.class_weights
    config = make_config(splits, network, sizes)
    model = TabularModel(config, splits.preprocessor)
    batch_size = batch_size_for(len(splits.train) // args.world_size, args.per_device_train_batch_size)
    args = with_changes(
        args,
        reweighting_level="sample",
        label_smoothing_factor=0.0,  # it is in the loss
        class_weights=None,  # a column has them
        per_device_train_batch_size=batch_size,
    )
    if sizes.pretrain_epochs:
        pretrain(model, splits, sizes, args)
    train = make_table(splits.train, config, args.device)
    if weights_of_classes is not None:
        if splits.target.is_regression:
            raise UserError("--class_weights weights classes, but this is a regression.")
        with settings_explained():
            of_class = class_weights_of(weights_of_classes, len(splits.target.classes), train, "labels")
        train = TensorTable({**train.columns, SAMPLE_WEIGHT: of_class[splits.train.y]}, args.device)
    if record_examples:
        train = TensorTable({**train.columns, SAMPLE_INDEX: torch.arange(len(train))}, args.device)
    keep_best = KeepBest(score, sizes.patience)
    with settings_explained():
        trainer = quiet(
            TabularTrainer(
                model=model,
                args=args,
                train_dataset=train,
                eval_dataset=make_table(splits.validation, config, args.device),
                compute_metrics=lambda prediction: _score_of(prediction, config, score),
                callbacks=[keep_best],
                per_sample_loss_fn=loss_of(splits.target.is_regression, smoothing),
            )
        )
    trainer.add_observer(WeightHistogram)
    if record_examples:
        trainer.add_observer(HardExamples)
    if before_training is not None:
        before_training()
    trainer.train()
    if not keep_best.weights:
        raise UserError(
            f"training ended after {trainer.state.global_step} steps, before its first evaluation (--eval_delay {args.eval_delay:g}), "
            "so that there is no best epoch: give a smaller one, or leave it out."
        )
    return TrainedNetwork(
        model, trainer, keep_best.best_epoch, keep_best.best[0], predict(model, splits.test, args)
    )


def _score_of(prediction: Any, config: TabularConfig, name: str) -> Mapping[str, float]:
    logits, labels = prediction.predictions.astype(np.float64), prediction.label_ids
    if not np.isfinite(logits).all():
        return {} if name == "loss" else {name: math.nan}
    if config.problem_type == "regression":
        labels, logits = (
            values * config.target_std + config.target_mean for values in (labels, logits[:, 0])
        )
        return validation_score(name, labels, logits)
    return validation_score(name, labels, softmax(logits, axis=1))


@torch.no_grad()
def predict(model: TabularModel, part: Part, args: ReweightedTrainingArguments) -> np.ndarray:
    """Probabilities `[rows, classes]`, or values `[rows]` in the target's units; every process predicts all rows."""
    model.eval()
    table = TensorTable(part.features(), args.device)
    batches = BatchLoader(table, args.eval_batch_size)
    logits = torch.cat([model(**batch).logits.double().cpu() for batch in batches])
    if model.config.problem_type == "regression":
        return logits[:, 0].numpy() * model.config.target_std + model.config.target_mean
    return logits.softmax(dim=1).numpy()
