import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, Trainer, TrainerCallback

from rgd_hf import ReweightedTrainer, rgd_surrogate, rgd_weights
from rgd_hf.divergences import divergences
from rgd_hf.trainer import NonFiniteLossError
from tests.helpers.tiny import (
    classification_data,
    gradients_of,
    parameters_of,
    relative_error,
    stack,
    tiny_bert,
    tiny_config,
)


def data_for(problem_type, n, seed=0):
    data = classification_data(n, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for example in data:
        if problem_type == "multi_label_classification":
            example["labels"] = torch.randint(0, 2, (3,), generator=generator).float()
        if problem_type == "regression":
            example["labels"] = torch.randn((), generator=generator)
    return data


def model_for(problem_type, **kwargs):
    return tiny_bert(num_labels=1 if problem_type == "regression" else 3, **kwargs)


def plain_losses(problem_type, logits, labels):
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)
    if problem_type == "regression":
        return (logits.squeeze(-1) - labels) ** 2
    return F.cross_entropy(logits, labels, reduction="none")


PROBLEM_TYPES = ["single_label_classification", "multi_label_classification", "regression"]


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
@pytest.mark.parametrize("divergence", sorted(divergences()))
def test_gradient_is_brute_force_autograd_through_the_surrogate(make_args, problem_type, divergence):
    data, tau = data_for(problem_type, 8), 0.9
    trainer = ReweightedTrainer(model_for(problem_type), make_args(), reweighting=divergence, tau=tau)
    trainer.model.train()
    trainer.compute_loss(trainer.model, stack(data)).backward()

    oracle, batch = model_for(problem_type), stack(data)
    losses = plain_losses(problem_type, oracle(input_ids=batch["input_ids"]).logits, batch["labels"])
    rgd_surrogate(losses, divergence, tau).mean().backward()
    assert relative_error(gradients_of(trainer.model), gradients_of(oracle)) < 1e-6


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_normalized_gradient_is_the_weighted_mean(make_args, problem_type):
    data = data_for(problem_type, 8)
    trainer = ReweightedTrainer(model_for(problem_type), make_args(), normalize_weights=True)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, stack(data))
    loss.backward()

    oracle, batch = model_for(problem_type), stack(data)
    losses = plain_losses(problem_type, oracle(input_ids=batch["input_ids"]).logits, batch["labels"])
    weights = rgd_weights(losses)
    expected = (weights / weights.sum() * losses).sum()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert relative_error(gradients_of(trainer.model), gradients_of(oracle)) < 1e-6


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_none_is_the_models_own_loss(make_args, problem_type):
    batch = stack(data_for(problem_type, 8))
    trainer = ReweightedTrainer(model_for(problem_type), make_args(), reweighting="none")
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    own = model_for(problem_type)(**batch).loss
    assert loss.item() == pytest.approx(own.item(), rel=1e-6)
    assert trainer.model.config.problem_type == problem_type, "a saved model must say how to read its outputs"


def train(args, data, model=None, callbacks=None, **kwargs):
    trainer = ReweightedTrainer(model or tiny_bert(), args, train_dataset=data, callbacks=callbacks, **kwargs)
    result = trainer.train()
    return trainer, result


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_update_does_not_depend_on_how_the_batch_is_cut(make_args, optim, normalize):
    data, start = classification_data(72), parameters_of(tiny_bert())
    runs = []
    for size, accumulation in ((32, 1), (8, 4)):
        args = make_args(
            optim=optim,
            learning_rate=0.5 if optim == "sgd" else 1e-3,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=-1,
            num_train_epochs=1,
            max_grad_norm=0.1,
            adam_epsilon=1e-3,
        )
        trainer, result = train(args, data, normalize_weights=normalize)
        assert trainer.state.global_step == 3, "the last step has only 8 of 32 samples"
        runs.append((parameters_of(trainer.model) - start, result.training_loss, trainer.state.log_history))
    (update, loss, history), (other_update, other_loss, other_history) = runs
    # One update agrees to 1e-6 (tested below); three let float32 noise grow.
    assert relative_error(other_update, update) < 5e-6
    assert other_loss == pytest.approx(loss, rel=1e-6)
    for key in (
        "loss",
        "grad_norm",
        "weight_mean",
        "weight_max",
        "effective_sample_size",
        "clipped_fraction",
    ):
        assert [h[key] for h in other_history if key in h] == pytest.approx(
            [h[key] for h in history if key in h], rel=1e-5
        )


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("size, accumulation", [(32, 1), (8, 4), (7, 5), (16, 2), (1, 30)])
def test_one_update_is_brute_force_however_the_batch_is_cut(make_args, size, accumulation, normalize):
    """30 samples, mostly with a smaller last micro-batch: the step is still one mean over all of them."""
    data = classification_data(30)
    args = make_args(
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        train_sampling_strategy="sequential",
    )
    trainer, result = train(args, data, normalize_weights=normalize)
    oracle, batch = tiny_bert(), stack(data)
    losses = F.cross_entropy(oracle(input_ids=batch["input_ids"]).logits, batch["labels"], reduction="none")
    weights = rgd_weights(losses)
    objective = (weights * losses).sum() / (weights.sum() if normalize else len(data))
    assert result.training_loss == pytest.approx(objective.item(), rel=1e-6)
    (rgd_surrogate(losses).mean() if not normalize else (weights * losses).sum() / weights.sum()).backward()
    expected = parameters_of(oracle) - 0.5 * gradients_of(oracle)
    assert (
        relative_error(parameters_of(trainer.model) - parameters_of(oracle), expected - parameters_of(oracle))
        < 1e-6
    )


@pytest.mark.parametrize(
    "optim",
    ["adafactor", "adagrad", "rmsprop", "adamw_torch", "adamw_torch_fused", "sgd", "nadam", "lion_32bit"],
)
@pytest.mark.parametrize("normalize", [False, True])
def test_every_optimizer_trains(make_args, optim, normalize):
    if optim == "lion_32bit":
        pytest.importorskip("bitsandbytes", reason="the Trainer's Lion comes from bitsandbytes")
    kwargs = {"normalize_weights": normalize}
    if optim == "nadam":  # the Trainer takes it as a class, not by name
        kwargs["optimizer_cls_and_kwargs"] = (torch.optim.NAdam, {"lr": 1e-3})
        optim = "sgd"
    before = parameters_of(tiny_bert())
    args = make_args(optim=optim, learning_rate=1e-3, max_steps=3)
    trainer, result = train(args, classification_data(24), **kwargs)
    after = parameters_of(trainer.model)
    assert (
        torch.isfinite(after).all() and not torch.equal(after, before) and math.isfinite(result.training_loss)
    )


def test_evaluation_is_plain_whatever_the_batch_size(make_args):
    data = classification_data(13)
    batch = stack(data)
    own = tiny_bert().eval()(**batch).loss.item()
    for size in (13, 4, 5, 1):
        trainer = ReweightedTrainer(
            tiny_bert(), make_args(per_device_eval_batch_size=size), eval_dataset=data
        )
        assert trainer.evaluate()["eval_loss"] == pytest.approx(own, rel=1e-6)


def test_evaluation_equals_the_stock_trainers(make_args):
    data, args = classification_data(16), make_args(per_device_eval_batch_size=8)
    stock = Trainer(tiny_bert(), args, eval_dataset=data)
    ours = ReweightedTrainer(tiny_bert(), args, eval_dataset=data)
    expected, found = stock.predict(data), ours.predict(data)
    assert found.metrics["test_loss"] == pytest.approx(expected.metrics["test_loss"], rel=1e-6)
    assert (found.predictions == expected.predictions).all() and (found.label_ids == expected.label_ids).all()
    no_labels = [{"input_ids": example["input_ids"]} for example in data]
    assert (ours.predict(no_labels).predictions == expected.predictions).all()


def test_training_logs_carry_the_weight_statistics(make_args):
    trainer, _ = train(make_args(max_steps=3), classification_data(24))
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 3
    for entry in logs:
        assert 1 <= entry["weight_mean"] <= entry["weight_max"] <= math.exp(0.5) + 1e-6
        assert 0.786 <= entry["effective_sample_size"] <= 1 and 0 <= entry["clipped_fraction"] <= 1
        assert entry["unweighted_loss"] < entry["loss"]
    json.dumps(logs)
    trainer, _ = train(make_args(), classification_data(16), reweighting="none")
    assert not any("weight_mean" in entry for entry in trainer.state.log_history)


def test_warm_up_starts_with_plain_steps(make_args):
    data = classification_data(32)
    common = {"max_steps": 4, "train_sampling_strategy": "sequential"}
    trainer, _ = train(make_args(**common), data, reweighting_warmup_ratio=0.5)
    means = [entry["weight_mean"] for entry in trainer.state.log_history if "weight_mean" in entry]
    assert means[:2] == [1.0, 1.0] and min(means[2:]) > 1


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


def test_warm_up_survives_a_resume(make_args):
    data = classification_data(48)
    args = make_args(max_steps=6, save_strategy="steps", save_steps=2)
    settings = {"reweighting_warmup_ratio": 0.5}
    whole, _ = train(make_args(max_steps=6), data, **settings)
    train(args, data, callbacks=[Stop()], **settings)
    resumed = ReweightedTrainer(tiny_bert(seed=5), args, train_dataset=data, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(parameters_of(resumed.model), parameters_of(whole.model))


class Poison(TrainerCallback):
    def __init__(self, model, step):
        self.model, self.step = model, step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            nn.init.constant_(self.model.classifier.bias, math.nan)


def test_a_non_finite_loss_stops_the_run_and_keeps_the_last_checkpoint(make_args, tmp_path):
    args = make_args(max_steps=8, save_strategy="steps", save_steps=2, logging_steps=100)
    model = tiny_bert()
    trainer = ReweightedTrainer(
        model, args, train_dataset=classification_data(64), callbacks=[Poison(model, step=5)]
    )
    with pytest.raises(NonFiniteLossError, match="step 5,"):
        trainer.train()
    assert sorted(p.name for p in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


def test_with_none_a_non_finite_loss_stops_the_run_only_where_asked(make_args):
    for stops in (None, True):
        model = tiny_bert()
        trainer = ReweightedTrainer(
            model,
            make_args(max_steps=3),
            train_dataset=classification_data(24),
            callbacks=[Poison(model, step=2)],
            reweighting="none",
        )
        trainer.stop_on_non_finite_loss = stops
        if stops:
            with pytest.raises(NonFiniteLossError, match="step 2,"):
                trainer.train()
        else:
            assert trainer.train().global_step == 3


def test_labels_that_do_not_fit_are_named(make_args):
    data = classification_data(8, num_labels=5)
    data[0]["labels"] = torch.tensor(4)
    with pytest.raises(ValueError, match=r"labels from 0 to 4.*between 0 and 2"):
        train(make_args(max_steps=1, train_sampling_strategy="sequential"), data)
    with pytest.raises(ValueError, match="'labels' in every batch"):
        train(make_args(max_steps=1), [{"input_ids": example["input_ids"]} for example in data])


def test_a_sample_weight_column_survives_and_counts(make_args):
    """Weight 2 is the same as having the sample twice, weight 0 as not having it."""
    from datasets import Dataset

    data = classification_data(8)
    weight = [2.0, 0.0, 1.0, 1.0, 2.0, 0.0, 1.0, 1.0]
    rows = [{k: v.tolist() for k, v in example.items()} for example in data]
    columns = Dataset.from_list(
        [row | {"sample_weight": w, "note": "dropped"} for row, w in zip(rows, weight)]
    )
    repeated = [example for example, w in zip(data, weight) for _ in range(int(w))]
    for normalize in (False, True):
        found, _ = train(make_args(max_steps=1), columns, normalize_weights=normalize)
        expected, _ = train(make_args(max_steps=1), repeated, normalize_weights=normalize)
        start = parameters_of(tiny_bert())
        assert (
            relative_error(parameters_of(found.model) - start, parameters_of(expected.model) - start) < 1e-6
        )
    assert found.evaluate(columns)["eval_loss"] == pytest.approx(found.evaluate(data)["eval_loss"], rel=1e-6)
    assert found.predict(columns.remove_columns("labels")).predictions.shape == (8, 3)


def test_swapping_the_class_is_all_an_existing_script_needs(make_args):
    script = """
args = make_args()
trainer = Trainer(model=model, args=args, train_dataset=data, eval_dataset=data)
trainer.train()
metrics = trainer.evaluate()
trainer.save_model()
"""
    for cls in (Trainer, ReweightedTrainer):
        scope = {
            "Trainer": cls,
            "make_args": make_args,
            "model": tiny_bert(),
            "data": classification_data(16),
        }
        exec(script, scope)
        assert math.isfinite(scope["metrics"]["eval_loss"])


def test_masked_lm_is_known_or_named(make_args):
    model = AutoModelForMaskedLM.from_config(tiny_config())
    try:
        ReweightedTrainer(model, make_args())
    except NotImplementedError as error:
        assert "BertForMaskedLM" in str(error)


def test_the_gradient_is_that_of_the_sum_divided_at_last(make_args):
    """Bit by bit: published runs are given again exactly because these operations come in this order."""

    def gradients(objective):
        model, batch = tiny_bert().train(), stack(classification_data(12))
        losses = F.cross_entropy(model(batch["input_ids"]).logits, batch["labels"], reduction="none")
        objective(losses, rgd_weights(losses)).backward()
        return gradients_of(model)

    model = tiny_bert().train()
    ReweightedTrainer(model, make_args()).compute_loss(model, stack(classification_data(12))).backward()
    assert torch.equal(gradients_of(model), gradients(lambda losses, weights: (weights * losses).sum() / 12))
    assert not torch.equal(
        gradients_of(model), gradients(lambda losses, weights: (weights / 12 * losses).sum())
    )
