"""A user's overrides against every way to scale a step: the right step, the same however it is cut, or a refusal."""

import re

import pytest
import torch
from override_batches import SAMPLES, assert_same_gradient, data, unreduced
from override_cases import BY_ITSELF, CASES, CountsOtherwise, OwnLoss, StepsTwice
from torch.nn import functional as F
from transformers import Trainer

from rgd_hf import ReweightedTrainer, ReweightingMixin, rgd_weights
from rgd_hf.weightings import GroupDRO
from tests.helpers.tiny import (
    gradients_of,
    parameters_of,
    relative_error,
    stack,
    tiny_bert,
)

CLASS_WEIGHTS = [1.0, 3.0, 0.5]
CUTS = [(12, 1), (5, 3)]


SETTINGS = {
    "kl": {},
    "none": {"reweighting": "none"},
    "normalized": {"normalize_weights": True},
    "class weights": {"class_weights": CLASS_WEIGHTS},
    "sample weights, normalized": {"normalize_weights": True},
    "own losses": {"per_sample_loss_fn": unreduced},
}
EVERY_SETTING = pytest.mark.parametrize("setting", SETTINGS)


def objective_of(model, setting):
    """The weighted mean over all samples of the step, as the README states it."""
    batch = stack(data("sample weights" in setting))
    losses = F.cross_entropy(model(input_ids=batch["input_ids"]).logits, batch["labels"], reduction="none")
    weights = torch.ones(SAMPLES) if setting == "none" else rgd_weights(losses)
    reference = batch.get("sample_weight", torch.ones(SAMPLES))
    if setting == "class weights":
        reference = torch.tensor(CLASS_WEIGHTS)[batch["labels"]]
    items = (reference * weights).sum() if "normalized" in setting else reference.sum()
    return (reference * weights * losses).sum() / items


def gradient_taken(cls, make_args, setting, cut, **arguments):
    """What one step of plain SGD moved the parameters by, over the learning rate."""
    size, accumulation = cut
    args = make_args(
        max_steps=1,
        learning_rate=1e-2,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential",
        **arguments,
    )
    model = tiny_bert()
    start = parameters_of(model)
    trainer = cls(model, args, train_dataset=data("sample weights" in setting), **SETTINGS[setting])
    trainer.train()
    return (start - parameters_of(model)) / 1e-2


def expected_gradient(case, setting):
    model = tiny_bert()
    case.expected(lambda: objective_of(model, setting), model).backward()
    return gradients_of(model)


def left_of_ours(cls):
    return type(cls.__name__, (cls, ReweightedTrainer), {})


@EVERY_SETTING
@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.cls.__name__)
def test_an_override_in_front_takes_the_right_step_or_is_refused(case, cut, setting, make_args):
    refusal = case.refused if setting != "none" else None
    if cut[1] > 1:
        refusal = refusal or case.refused_cut
        if "normalized" in setting:
            refusal = refusal or case.refused_cut_normalized
    if case.refused and setting == "none":
        pytest.skip("as the stock Trainer, below")
    if refusal:
        with pytest.raises(NotImplementedError, match=refusal):
            gradient_taken(left_of_ours(case.cls), make_args, setting, cut)
        return
    found = gradient_taken(left_of_ours(case.cls), make_args, setting, cut)
    assert_same_gradient(found, expected_gradient(case, setting))


@pytest.mark.parametrize(
    "use",
    [lambda n: 1 / n, lambda n: n.item(), int, lambda n: max(n, 1), torch.tensor, torch.ones(()).div],
    ids=["divides", "item", "int", "max", "tensor", "div"],
)
def test_an_own_loss_that_needs_the_number_of_the_step_is_told_what_to_write(use, make_args):
    class Mine(ReweightedTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(**inputs).loss * use(num_items_in_batch)

    with pytest.raises(
        NotImplementedError, match=r"Mine\.compute_loss never .* None here.*rename"
    ) as refusal:
        Mine(tiny_bert(), make_args(), train_dataset=data()).train()
    assert "NoneType" in str(refusal.value.__cause__)


def fails_itself(trainer, *args):
    return len(3)


def fails_in_the_losses(trainer, *args):
    trainer.per_sample_loss_fn = lambda outputs, labels: outputs.loss / 2
    return super(type(trainer), trainer).compute_loss(*args)


@pytest.mark.parametrize(
    "fails, error", [(fails_itself, "'int' has no len"), (fails_in_the_losses, "'NoneType' and 'int'")]
)
def test_an_error_that_does_not_come_of_the_number_stays_the_users(fails, error, make_args):
    class Mine(ReweightedTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return fails(self, model, inputs)

    with pytest.raises(TypeError, match=error):
        Mine(tiny_bert(), make_args(), train_dataset=data()).train()


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if case.refused], ids=lambda case: case.cls.__name__)
def test_none_leaves_what_it_cannot_scale_to_the_stock_trainer(case, cut, make_args):
    if case.cls.__name__ == "LeavesTheLossOut":
        # Not the stock Trainer's step, which is too long by the number of micro-batches: the mean that was asked for.
        expected = expected_gradient(CASES[0], "none")
    else:
        stock = type(case.cls.__name__, (case.cls, Trainer), {})
        model = tiny_bert()
        start = parameters_of(model)
        args = make_args(
            max_steps=1,
            learning_rate=1e-2,
            per_device_train_batch_size=cut[0],
            gradient_accumulation_steps=cut[1],
            train_sampling_strategy="sequential",
        )
        stock(model, args, train_dataset=data()).train()
        expected = (start - parameters_of(model)) / 1e-2
    found = gradient_taken(left_of_ours(case.cls), make_args, "none", cut)
    assert torch.equal(found, expected) or relative_error(found, expected) < 1e-4


TRAINING_STEPS = [case for case in CASES if hasattr(case.cls, "training_step") and not case.refused]


@EVERY_SETTING
@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("case", TRAINING_STEPS, ids=lambda case: case.cls.__name__)
def test_a_training_step_behind_takes_the_right_step_or_is_refused(case, cut, setting, make_args):
    theirs = type(case.cls.__name__, (case.cls, Trainer), {})
    ours = type("Ours", (ReweightingMixin, theirs), {})
    if cut[1] > 1 and case.refused_cut:
        with pytest.raises(NotImplementedError, match=BY_ITSELF.format(case.cls.__name__)):
            gradient_taken(ours, make_args, setting, cut)
        return
    assert_same_gradient(gradient_taken(ours, make_args, setting, cut), expected_gradient(case, setting))


@EVERY_SETTING
def test_another_count_of_items_is_refused(setting, make_args):
    cls = left_of_ours(CountsOtherwise)
    with pytest.raises(
        NotImplementedError, match=r"CountsOtherwise\.get_batch_samples returns another number"
    ):
        gradient_taken(cls, make_args, setting, (4, 3))


class TestLossBehind:
    """The class's own `compute_loss` stands to the right of the mixin, where it would never be called."""

    class Theirs(OwnLoss, Trainer):
        pass

    class Ours(ReweightingMixin, Theirs):
        pass

    @pytest.mark.parametrize("settings", [{}, {"reweighting": "none", "class_weights": "balanced"}])
    def test_is_refused_when_it_is_made(self, settings, make_args):
        with pytest.raises(
            NotImplementedError, match=r"OwnLoss\.compute_loss .* Give Ours a method compute_per"
        ):
            self.Ours(tiny_bert(), make_args(), train_dataset=data(), **settings)

    @pytest.mark.parametrize("cut", CUTS, ids=str)
    def test_is_what_none_trains_on(self, cut, make_args):
        found = []
        for cls, settings in ((self.Theirs, {}), (self.Ours, {"reweighting": "none"})):
            args = make_args(per_device_train_batch_size=cut[0], gradient_accumulation_steps=cut[1])
            trainer = cls(tiny_bert(), args, train_dataset=data(), eval_dataset=data(), **settings)
            trainer.train()
            found.append((parameters_of(trainer.model), trainer.evaluate()["eval_loss"]))
        assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]

    def test_gives_way_to_losses_that_are_not_reduced(self, make_args):
        class Ported(self.Ours):
            def compute_per_sample_losses(self, model, inputs):
                outputs = model(input_ids=inputs["input_ids"])
                return unreduced(outputs, inputs["labels"]), outputs

        for cls, settings in ((Ported, {}), (self.Ours, {"per_sample_loss_fn": unreduced})):
            args = make_args(max_steps=1, learning_rate=1e-2, per_device_train_batch_size=SAMPLES)
            model = tiny_bert()
            start = parameters_of(model)
            cls(model, args, train_dataset=data(), **settings).train()
            assert_same_gradient((start - parameters_of(model)) / 1e-2, expected_gradient(CASES[0], "kl"))

    def test_scale_is_the_class_s_own(self, make_args):
        class Scaled(self.Theirs):
            loss_is_scaled_for_ga = False

        trainer = type("Ours", (ReweightingMixin, Scaled), {})(tiny_bert(), make_args(), reweighting="none")
        assert trainer.loss_is_scaled_for_ga is False

    @pytest.mark.parametrize("scaled", [True, False])
    def test_scale_may_be_set_on_the_object(self, scaled, make_args):
        class Scaled(self.Theirs):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.loss_is_scaled_for_ga = scaled

        ours = type("Ours", (ReweightingMixin, Scaled), {})
        # "kl" is no keyword at all, and the stock Trainer takes none.
        of_stock = gradient_taken(Scaled, make_args, "kl", (4, 3))
        assert relative_error(gradient_taken(ours, make_args, "none", (4, 3)), of_stock) < 1e-5


def test_a_scale_set_on_the_object_is_not_that_of_re_weighted_losses(make_args):
    class Scaled(Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.loss_is_scaled_for_ga = False

    ours = type("Ours", (ReweightingMixin, Scaled), {})
    found = gradient_taken(ours, make_args, "kl", (4, 3))
    assert_same_gradient(found, gradient_taken(ReweightedTrainer, make_args, "kl", (4, 3)))


def test_a_loss_scale_that_is_not_the_class_s_own_is_refused(make_args):
    class Mine(ReweightedTrainer):
        loss_is_scaled_for_ga = False

    with pytest.raises(ValueError, match=r"Mine\.loss_is_scaled_for_ga .* remove it"):
        Mine(tiny_bert(), make_args())


def test_a_sample_weight_that_nothing_reads_is_refused(make_args):
    cls = TestLossBehind.Ours
    trainer = cls(tiny_bert(), make_args(), train_dataset=data(sample_weight=True), reweighting="none")
    with pytest.raises(NotImplementedError, match=r"'sample_weight'.*remove or rename"):
        trainer.train()


def test_groups_that_nothing_reads_are_refused(make_args):
    with pytest.raises(NotImplementedError, match="cannot be re-weighted"):
        TestLossBehind.Ours(tiny_bert(), make_args(), reweighting=GroupDRO(num_groups=2))


class TestOrder:
    def test_the_trainer_to_the_left_is_refused(self):
        with pytest.raises(TypeError, match=r"Write class Wrong\(ReweightingMixin, Trainer\)"):

            class Wrong(Trainer, ReweightingMixin):
                pass

    def test_so_is_a_class_of_the_users(self):
        class Mine(Trainer):
            pass

        with pytest.raises(TypeError, match=r"Write class Wrong\(ReweightingMixin, Mine\)"):

            class Wrong(Mine, ReweightingMixin):
                pass

    def test_a_class_of_the_users_may_stand_to_the_left_of_ours(self, make_args):
        class Mine(Trainer):
            def compute_loss(self, *args, **kwargs):
                return super().compute_loss(*args, **kwargs)

        class Right(Mine, ReweightedTrainer):
            pass

        assert_same_gradient(
            gradient_taken(Right, make_args, "kl", (4, 3)), expected_gradient(CASES[0], "kl")
        )


def test_an_optimizer_that_steps_in_backward_does_not_accumulate(make_args):
    with pytest.raises(ValueError, match=r"optim=.*adalomo.*gradient_accumulation_steps=1"):
        ReweightedTrainer(tiny_bert(), make_args(optim="adalomo", gradient_accumulation_steps=2))
    ReweightedTrainer(tiny_bert(), make_args(optim="adalomo"), normalize_weights=True)


def test_two_steps_of_a_training_step_that_repeats_are_two_steps(make_args):
    """What counts the calls of one step is not left over for the next."""
    args = make_args(max_steps=3)
    trainer = left_of_ours(StepsTwice)(tiny_bert(), args, train_dataset=data(), normalize_weights=True)
    assert trainer.train().global_step == 3


PRIVATE = sorted(
    {
        name
        for cls in ReweightedTrainer.__mro__
        if cls.__module__.startswith("rgd_hf.")
        for name in vars(cls)
        if re.match("_[^_]", name) and not hasattr(Trainer, name)
    }
)


class TestPrivateNames:
    """A user's class that happens to have a private name of ours."""

    @pytest.mark.parametrize("name", PRIVATE)
    def test_are_refused_before_and_after_ours(self, name):
        message = rf"^Theirs has private names of \w+, .*: {name}\. Rename them in Theirs\.$"
        with pytest.raises(TypeError, match=message):
            type("Theirs", (ReweightedTrainer,), {name: None})
        theirs = type("Theirs", (Trainer,), {name: None})
        with pytest.raises(TypeError, match=message):
            type("Both", (ReweightingMixin, theirs), {})
        with pytest.raises(TypeError, match=message):
            type("Both", (theirs, ReweightedTrainer), {})

    def test_other_names_are_theirs(self):
        names = ["_own", "__mangled", *(name for name in vars(Trainer) if name.startswith("_get"))]
        type("Theirs", (ReweightedTrainer,), dict.fromkeys(names))
