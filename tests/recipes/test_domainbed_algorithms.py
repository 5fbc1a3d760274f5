"""CORAL, MIRO and SWAD against their formulas, and every algorithm through the Trainer."""

import copy

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from transformers import TrainerCallback

from rgd_hf import ReweightedTrainingArguments
from rgd_hf.scripts.domains import swad
from rgd_hf.scripts.domains.algorithms import ALGORITHMS
from rgd_hf.scripts.domains.backbones import Backbone, add_dropout, freeze_batch_norm, image_backbone
from rgd_hf.scripts.domains.coral import coral_penalty
from rgd_hf.scripts.domains.environments import DomainData, Environment, split
from rgd_hf.scripts.domains.experiment import Experiment
from rgd_hf.scripts.domains.features import classifier_of, recorded_inputs, stages_of
from rgd_hf.scripts.domains.miro import Variances, miro_penalty
from rgd_hf.scripts.domains.swad import LossValley, WeightAverage
from rgd_hf.scripts.domains.sweep import Job
from rgd_hf.scripts.domains.views import ImageView
from tests.helpers.tiny import parameters_of

torch.manual_seed(0)


# --- formulas ----------------------------------------------------------------------------------------------------------


def test_coral_penalty_is_numpys_means_and_covariances():
    groups = [torch.randn(n, 5, dtype=torch.float64) * n for n in (4, 6, 3)]
    pairs = []
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        x, y = groups[a].numpy(), groups[b].numpy()
        means = ((x.mean(0) - y.mean(0)) ** 2).mean()
        pairs.append(means + ((np.cov(x, rowvar=False) - np.cov(y, rowvar=False)) ** 2).mean())
    assert coral_penalty(groups).item() == pytest.approx(np.mean(pairs))
    assert coral_penalty(groups[:1]).item() == 0
    assert torch.isfinite(coral_penalty([groups[0][:1], groups[1]]))


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 5, 3), (2, 3)])
def test_miro_penalty_is_a_gaussian_log_likelihood(shape):
    features, frozen, variances = torch.randn(shape), torch.randn(shape), Variances([3])
    assert torch.allclose(variances.of(0), torch.full((3,), 0.1), atol=1e-6)
    with torch.no_grad():
        variances.b[0].copy_(torch.tensor([0.1, 1.0, -1.0]))
    spread = variances.of(0).reshape(1, 3, 1, 1) if len(shape) == 4 else variances.of(0)
    likelihood = torch.distributions.Normal(features, spread.sqrt().expand(shape)).log_prob(frozen)
    expected = -likelihood.mean() - np.log(2 * np.pi) / 2
    assert miro_penalty([features], [frozen], variances).item() == pytest.approx(expected.item(), rel=1e-5)


def paper_rule(losses, tolerance):
    """Algorithm 1 of SWAD, evaluation by evaluation, on the whole list: first and last segment of the average."""
    start, end, threshold = None, len(losses) - 1, None
    for i in range(len(losses)):
        if start is None:
            window = losses[i - swad.PATIENCE_TO_START + 1 : i + 1]
            if i + 1 >= swad.PATIENCE_TO_START and window[0] == min(window):
                start = i - swad.PATIENCE_TO_START + 1
                threshold = tolerance * sum(window) / swad.PATIENCE_TO_START
        elif i - swad.PATIENCE_TO_END + 1 >= start and threshold < min(
            losses[i - swad.PATIENCE_TO_END + 1 : i + 1]
        ):
            end = i - swad.PATIENCE_TO_END
            break
    return [] if start is None else list(range(start, end + 1))


@pytest.mark.parametrize("seed", range(40))
def test_loss_valley_is_the_paper_rule(seed):
    random = np.random.RandomState(seed)
    steps = np.arange(random.randint(1, 40))
    losses = (
        np.abs(steps - random.randint(1, 20)) * random.rand() * 0.2 + random.rand(len(steps)) * 0.5
    ).tolist()
    valley, taken = LossValley(1.2), []
    for number, loss in enumerate(losses):
        taken += valley.add(loss, number)
    taken += valley.finish()
    assert taken == paper_rule(losses, 1.2)


def test_falling_losses_have_no_valley():
    valley = LossValley(1.3)
    assert [valley.add(10.0 - n, n) for n in range(9)] == [[]] * 9 and valley.finish() == []


def test_weight_average_weighs_segments_by_their_steps():
    values = torch.randn(7, 3)
    whole, first, second = WeightAverage(), WeightAverage(), WeightAverage()
    for number, value in enumerate(values):
        (first if number < 2 else second).add({"w": value, "n": torch.tensor(number)})
    for part in (first, second):
        whole.add(part.mean, part.count)
    assert torch.allclose(whole.mean["w"], values.mean(0), atol=1e-6) and whole.mean["n"] == 6


# --- through the Trainer ----------------------------------------------------------------------------------------------


def tiny_backbone() -> Backbone:
    """With batch normalization, small enough for tests."""
    return image_backbone("test_resnet", pretrained=False)


def blobs(count=24, classes=2, size=16):
    """Three domains of noise with a bright half, on the left or on the right, at different brightness."""
    environments = []
    for number, name in enumerate(["dark", "grey", "light"]):
        random = np.random.RandomState(number)
        labels = np.arange(count) % classes
        images = random.randint(0, 60, (count, size, size, 3)) + 40 * number
        for image, label in zip(images, labels, strict=True):
            half = slice(0, size // 2) if label else slice(size // 2, size)
            image[:, half] += 100
        environments.append(Environment(name, images.astype(np.uint8), labels))
    return DomainData(tuple(environments), ("right", "left"), "image")


def experiment(tmp_path, **kwargs):
    data, backbone = blobs(), tiny_backbone()
    settings = {"max_steps": 4, "eval_steps": 2, "per_device_train_batch_size": 3, "learning_rate": 1e-3}
    args = ReweightedTrainingArguments(
        output_dir=str(tmp_path),
        eval_strategy="steps",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        lr_scheduler_type="constant",
        **(settings | kwargs),
    )
    views = [ImageView(e, 32, backbone.mean, backbone.std) for e in data.environments]
    return Experiment(data, views, backbone, args, "from_scratch", True, None)


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_every_algorithm_runs_and_can_be_repeated(algorithm, tmp_path):
    reweighting = {"erm": "chi2", "coral": "reverse_kl"}.get(algorithm, "kl")
    job = Job(algorithm, reweighting, 0, 0, ("grey",))
    first, again = (experiment(tmp_path).train(job) for _ in range(2))
    steps = [4] if algorithm == "swad" else [2, 4]
    assert [point["step"] for point in first["checkpoints"]] == steps
    splits = {"dark_out", "grey_in", "grey_out", "light_out"}
    names = {f"{split}_{metric}" for split in splits for metric in ("accuracy", "ece", "loss")}
    assert set(first["checkpoints"][-1]) == names | {"step"}
    assert first["checkpoints"] == again["checkpoints"]
    plain = experiment(tmp_path).train(Job(algorithm, "none", 0, 0, ("grey",)))
    assert plain["checkpoints"] != first["checkpoints"]


def test_accumulated_batches_hold_all_domains(tmp_path):
    record = experiment(tmp_path, gradient_accumulation_steps=2).train(Job("coral", "kl", 0, 0, ("dark",)))
    assert record["checkpoints"][-1]["step"] == 4


def trainer_of(tmp_path, algorithm, **kwargs):
    exp = experiment(tmp_path, **kwargs)
    names = {"learning_rate": 1e-3, "batch_size": 3, "weight_decay": 0.0, "dropout": 0.0}
    own = {name: default for name, (default, _) in ALGORITHMS[algorithm].hyper_parameters.items()}
    return exp._trainer(Job(algorithm, "none", 0, 0, ("grey",)), names | own)


def test_balanced_class_weights_count_the_training_domains(tmp_path):
    trainer = trainer_of(tmp_path, "erm", class_weights="balanced")
    training = [place for place, environment in enumerate(blobs().environments) if environment.name != "grey"]
    labels = np.concatenate([np.arange(24)[split(24, 0, place)[0]] % 2 for place in training])
    expected = compute_class_weight("balanced", classes=np.arange(2), y=labels)
    assert trainer._loss_source().class_weights.tolist() == pytest.approx(expected.tolist())
    assert trainer.train().global_step == 4


def test_penalty_is_added_to_the_plain_objective(tmp_path):
    trainer, plain = trainer_of(tmp_path, "coral"), trainer_of(tmp_path, "erm")
    batch = next(iter(plain.get_train_dataloader()))
    trainer.model.train()
    plain.model.train()
    pooled = []
    plain.model.timm_model.get_classifier().register_forward_pre_hook(lambda _, x: pooled.append(x[0]))
    expected = plain.compute_loss(plain.model, dict(batch))
    penalty = coral_penalty([pooled[0][batch["domain"] == d] for d in range(2)])
    found = trainer.compute_loss(trainer.model, dict(batch))
    assert penalty > 0 and found.item() == pytest.approx((expected + penalty).item(), rel=1e-5)
    trainer.hyper_parameters = {"coral_weight": 2.0}
    assert trainer.compute_loss(trainer.model, dict(batch)).item() == pytest.approx(
        (expected + 2 * penalty).item(), rel=1e-5
    )


def test_miro_keeps_the_pretrained_model_and_learns_variances(tmp_path):
    trainer = trainer_of(tmp_path, "miro")
    frozen = parameters_of(trainer.pretrained).clone()
    start = [b.detach().clone() for b in trainer.model.miro_variances.b]
    assert len(start) == len(stages_of(trainer.model)) > 1
    trainer.train()
    assert torch.equal(parameters_of(trainer.pretrained), frozen)
    assert all(not torch.equal(b, old) for b, old in zip(trainer.model.miro_variances.b, start, strict=True))
    rates = {group["lr"] for group in trainer.optimizer.param_groups}
    assert rates == {1e-3, 1e-2}


def test_swad_returns_the_mean_of_the_steps_in_its_valley(tmp_path):
    trainer = trainer_of(tmp_path, "swad", max_steps=10)
    seen = []

    class Keep(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            seen.append(copy.deepcopy(trainer.model.state_dict()))

    trainer.add_callback(Keep())
    # Losses of the five evaluations: the valley starts with the second.
    losses = iter([2.0, 1.0, 1.1, 1.2, 1.1])
    add = trainer.valley.add
    trainer.valley.add = lambda loss, segment: add(next(losses), segment)
    trainer.train()
    assert trainer.finish()
    for name, value in trainer.model.state_dict().items():
        if value.is_floating_point():
            mean = torch.stack([state[name] for state in seen[2:]]).mean(0)
            assert torch.allclose(value, mean, atol=1e-5), name


def test_swad_without_a_valley_keeps_the_last_model(tmp_path):
    trainer = trainer_of(tmp_path, "swad")
    trainer.train()
    last = parameters_of(trainer.model).clone()
    assert trainer.finish() and torch.equal(parameters_of(trainer.model), last)


def test_batch_norm_statistics_stay_while_its_scales_learn(tmp_path):
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
