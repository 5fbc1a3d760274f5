"""What the recipe does to a model before it trains: batch normalization, dropout, class weights."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from helpers.domains import blobs, experiment, run, tiny_backbone
from rgd_hf.contrib.features import classifier_of, recorded_inputs
from rgd_hf.scripts.domains.backbones import add_dropout, freeze_batch_norm
from rgd_hf.scripts.domains.environments import split
from rgd_hf.scripts.training.plans import RunPlan
from rgd_hf.scripts.training.runs import checked_trainer
from rgd_hf.weightings import KL, GroupDRO, Uniform


def test_balanced_class_weights_count_the_training_domains(tmp_path):
    trainer = experiment().make_trainer(run(tmp_path, "none", class_weights="balanced").args)
    training = [place for place, environment in enumerate(blobs().environments) if environment.name != "grey"]
    labels = np.concatenate([np.arange(24)[split(24, 0, place)[0]] % 2 for place in training])
    expected = compute_class_weight("balanced", classes=np.arange(2), y=labels)
    assert trainer._loss_source().class_weights.tolist() == pytest.approx(expected.tolist())
    assert trainer.train().global_step == 4


def test_group_dro_has_the_training_domains_as_groups_and_the_reweighting_within(tmp_path):
    trainer = experiment("group_dro", group_step_size=0.1).make_trainer(run(tmp_path, "kl", tau=2.0).args)
    rule = trainer.weighting
    assert isinstance(rule, GroupDRO) and isinstance(rule.within, KL) and rule.within.tau == 2
    assert (rule.num_groups, rule.step_size, rule.names) == (2, 0.1, ["dark", "light"])
    trainer.train()
    weights = rule.state["group_weights"]
    assert weights.sum().item() == pytest.approx(1) and weights[0] != weights[1]


def test_a_checked_plan_keeps_group_dro_and_the_rule_within(tmp_path):
    exp = experiment("group_dro")
    runs = (run(tmp_path / "erm", "none"), run(tmp_path / "kl", "kl", tau=2.0))
    for chosen, within in zip(runs, (Uniform, KL), strict=True):
        trainer = checked_trainer(exp.make_trainer, chosen, RunPlan(tmp_path, runs, {}, exp.options))
        rule = trainer.weighting
        assert isinstance(rule, GroupDRO) and type(rule.within) is within and rule.names == ["dark", "light"]
        trainer.train()
        assert "group_weight_dark" in trainer.weighting.logs()


def test_batch_norm_statistics_stay_while_its_scales_learn():
    model = tiny_backbone().build(2)
    freeze_batch_norm(model)
    norm = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    before = norm.running_mean.clone()
    model.train()
    loss = model(pixel_values=torch.randn(4, 3, 32, 32)).logits.square().mean()
    loss.backward()
    assert torch.equal(norm.running_mean, before) and norm.weight.grad is not None and model.training


def test_dropout_drops_features_in_training_alone():
    model = tiny_backbone().build(2)
    classifier = classifier_of(model)
    torch.nn.init.ones_(classifier.weight)
    images = torch.randn(64, 3, 32, 32)
    model.eval()
    with recorded_inputs(classifier) as plain:
        logits = model(pixel_values=images).logits
    add_dropout(model, 0.5)
    assert torch.equal(model(pixel_values=images).logits, logits)
    classifier.train()  # the other layers stay as they were, so that only the features change
    with recorded_inputs(classifier) as dropped:
        model(pixel_values=images)
    kept = dropped[0][plain[0] != 0] != 0
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.1)
    torch.testing.assert_close(dropped[0][plain[0] != 0][kept], 2 * plain[0][plain[0] != 0][kept])
