"""Settings of the Trainer: defaults, keywords beside arguments, and which are refused."""

import copy
import pickle
from dataclasses import dataclass, field, fields, make_dataclass

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import HfArgumentParser, TrainingArguments

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments, ReweightingArguments, RGDLoss
from rgd_hf.weightings import KL, WEIGHTINGS, Chi2, CVaR, RelativeKL
from rgd_hf.weightings.choice import option_names, unparsed
from tests.helpers.tiny import classification_data, parameters_of, tiny_bert


class TestSettings:
    def test_plain_arguments_get_the_defaults(self, make_args):
        args = ReweightedTrainer(tiny_bert(), make_args()).args
        assert (args.reweighting, args.tau, args.reweighting_level) == ("kl", 1.0, "auto")
        assert args.normalize_weights is False and args.reweighting_warmup_ratio == 0.0

    def test_a_keyword_overrides_the_arguments_and_leaves_them_alone(self, make_args):
        args = make_args(ReweightedTrainingArguments, reweighting="chi2", tau=2.0)
        trainer = ReweightedTrainer(tiny_bert(), args, tau=3.0)
        assert (trainer.args.reweighting, trainer.args.tau) == ("chi2", 3.0)
        assert args.tau == 2.0
        assert ReweightedTrainer(tiny_bert(), args).args.tau == 2.0

    def test_the_arguments_of_one_trainer_serve_another(self, make_args):
        first = ReweightedTrainer(tiny_bert(), make_args(), tau=3.0)
        assert ReweightedTrainer(tiny_bert(), first.args, reweighting="chi2").args.tau == 3.0

    def test_command_line(self, tmp_path):
        parser = HfArgumentParser(ReweightedTrainingArguments)
        (args,) = parser.parse_args_into_dataclasses(
            [
                "--output_dir",
                str(tmp_path),
                "--reweighting",
                "reverse_kl",
                "--tau",
                "2.5",
                "--normalize_weights",
            ]
        )
        assert (args.reweighting, args.tau, args.normalize_weights) == ("reverse_kl", 2.5, True)
        assert "ERM" in parser.format_help()
        with pytest.raises(SystemExit):
            parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), "--reweighting", "kld"])

    @pytest.mark.parametrize(
        "settings, message",
        [
            (
                {"reweighting": "kld"},
                ", ".join(map(repr, WEIGHTINGS)),
            ),
            ({"tau": -1.0}, "positive, finite"),
            ({"reweighting_level": "word"}, "'auto', 'sample', 'token'"),
            ({"reweighting_warmup_ratio": 1.5}, "between 0 and 1"),
            ({"reweighting_level": "token"}, "one loss per sample"),
        ],
    )
    def test_wrong_settings_are_refused_at_once(self, make_args, settings, message):
        with pytest.raises(ValueError, match=message):
            ReweightedTrainer(tiny_bert(), make_args(), **settings)
        if "token" not in settings.values():
            with pytest.raises(ValueError, match=message):
                make_args(ReweightedTrainingArguments, **settings)


# --- arguments with something of their own under a setting's name ---------------------------------------------------------


def arguments_with(name, value, way, make_args):
    """Plain arguments with `value` under `name`: a field, an attribute of the class or the object, or a property."""
    if way == "field":
        return make_args(
            make_dataclass("Own", [(name, object, field(default=value))], bases=(TrainingArguments,))
        )
    if way == "class attribute":
        return make_args(type("Own", (TrainingArguments,), {name: value}))
    if way == "property":
        return make_args(type("Own", (TrainingArguments,), {name: property(lambda self: value)}))
    args = make_args()
    setattr(args, name, value)
    return args


WAYS = ["field", "class attribute", "property", "attribute"]


@pytest.mark.parametrize("way", WAYS)
def test_what_the_users_arguments_have_under_a_settings_name_is_refused(way, make_args):
    args = arguments_with("tau", 0.05, way, make_args)
    # Beside a tau for the Trainer, too: the user's own code would find that one.
    for given in ({}, {"tau": 1.0}, {"reweighting": KL(tau=1.0)}):
        with pytest.raises(ValueError, match="attributes of its own named tau, "):
            ReweightedTrainer(tiny_bert(), args, **given)
    trainer = ReweightedTrainer(tiny_bert(), make_args())
    for name in ReweightingArguments.__dataclass_fields__:
        for value in (0.05, torch.tensor([1.0, 2.0, 3.0]), (1.0, 2.0, 3.0), "own"):
            with pytest.raises(ValueError, match=f"attributes of its own named {name}, .*rename them"):
                trainer.args = arguments_with(name, value, way, make_args)


@pytest.mark.parametrize("way", WAYS)
def test_the_remedies_for_a_settings_name_in_the_users_arguments_work(way, make_args):
    trainer = ReweightedTrainer(tiny_bert(), arguments_with("temperature", 0.05, way, make_args), tau=1.0)
    assert (trainer.args.temperature, trainer.weighting) == (0.05, KL(1.0))
    assert ReweightedTrainer(tiny_bert(), make_args(), tau=0.05).weighting == KL(0.05)
    assert ReweightedTrainer(tiny_bert(), make_args(ReweightedTrainingArguments, tau=0.05)).weighting == KL(
        0.05
    )


@pytest.mark.parametrize("way", ["field", "class attribute", "attribute"])
def test_an_attribute_that_says_what_the_trainer_is_told_is_accepted(way, make_args):
    args = arguments_with("tau", 3.0, way, make_args)
    trainer = ReweightedTrainer(tiny_bert(), args, tau=args.tau)
    assert (trainer.args.tau, trainer.weighting) == (3.0, KL(3.0))
    assert ReweightedTrainer(tiny_bert(), trainer.args).weighting == KL(3.0)
    for more in ({}, {"tau": 2.0}):  # said once, for one Trainer
        with pytest.raises(ValueError, match="named tau,"):
            ReweightedTrainer(tiny_bert(), args, **more)
    unset = arguments_with("class_weights", None, way, make_args)
    assert ReweightedTrainer(tiny_bert(), unset).args.class_weights is None
    with pytest.raises(ValueError, match="named class_weights,"):
        ReweightedTrainer(tiny_bert(), unset, class_weights=[1.0, 2.0, 3.0])


def test_an_attribute_that_its_class_sets_is_refused(make_args):
    class ContrastiveArguments(TrainingArguments):
        def __init__(self, *args, tau=0.05, **keywords):
            super().__init__(*args, **keywords)
            self.tau = tau

    with pytest.raises(ValueError, match="ContrastiveArguments has attributes of its own named tau,"):
        ReweightedTrainer(tiny_bert(), make_args(ContrastiveArguments))


def test_a_field_of_reweighting_with_another_default_is_a_setting(make_args):
    @dataclass
    class Arguments(ReweightingArguments, TrainingArguments):
        tau: float = 3.0

    assert ReweightedTrainer(tiny_bert(), make_args(Arguments)).weighting == KL(3.0)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda args: pickle.loads(pickle.dumps(args))])
def test_settings_of_arguments_that_a_trainer_had_are_settings_for_the_next(copied, make_args):
    args = make_args()
    first = ReweightedTrainer(tiny_bert(), args, tau=2.0)
    assert ReweightedTrainer(tiny_bert(), copied(first.args)).weighting == KL(2.0)
    older = copied(first.args)  # of a version with fewer settings
    del older.__dict__["_rgd_hf_names_are_settings"], older.fused_lm_head, older.reweighting_args
    assert ReweightedTrainer(tiny_bert(), older).weighting == KL(2.0)
    args.tau = 3.0  # as one may after the Trainer was made
    for given in (args, copied(args)):
        assert ReweightedTrainer(tiny_bert(), given).weighting == KL(3.0)
        assert ReweightedTrainer(tiny_bert(), given, tau=4.0).weighting == KL(4.0)


OPTIONS = sorted(option_names() - {"reweighting", "reweighting_args"})


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", sorted(WEIGHTINGS))
def test_a_setting_that_the_rule_does_not_read_is_refused(name, option, make_args):
    rule = WEIGHTINGS[name]
    needed = {"num_groups": 2} if name == "group_dro" else {}
    read = rule.is_plain or option in rule.options.values() or (name, option) == ("kl", "target_ess")
    args = make_args(ReweightedTrainingArguments, reweighting=name, reweighting_args=unparsed(needed))
    for given, more in ((args, {}), (make_args(), {"reweighting": name, "reweighting_args": needed})):
        if read:
            assert getattr(ReweightedTrainer(tiny_bert(), given, **{option: 0.5}, **more).args, option) == 0.5
            continue
        with pytest.raises(
            ValueError, match=f"{option} is no setting of '{name}', which would ignore it"
        ) as why:
            ReweightedTrainer(tiny_bert(), given, **{option: 0.5}, **more)
        others = str(why.value).partition("reweighting ")[2].rstrip(").").split(", ")
        for other in others:  # what the message offers
            ReweightedTrainer(tiny_bert(), make_args(), reweighting=other, **{option: 0.5})
    settings = {"reweighting": name, "reweighting_args": unparsed(needed), option: 0.25}
    if read:
        assert getattr(make_args(ReweightedTrainingArguments, **settings), option) == 0.25
    else:
        with pytest.raises(ValueError, match=option):
            make_args(ReweightedTrainingArguments, **settings)


def test_the_remedy_for_a_setting_that_is_not_read_works(make_args):
    with pytest.raises(ValueError, match=r"go into reweighting_args tau=\.\.\.,decay=\.\.\."):
        ReweightedTrainer(tiny_bert(), make_args(), reweighting="relative_kl", tau=3.0)
    trainer = ReweightedTrainer(
        tiny_bert(), make_args(), reweighting="relative_kl", reweighting_args="tau=3.0"
    )
    assert trainer.weighting.tau == 3.0


def test_tau_beside_target_ess_is_refused_as_it_would_be_ignored(make_args):
    with_ess = make_args(ReweightedTrainingArguments, target_ess=0.5)
    for given, more in (
        (make_args(), {"target_ess": 0.5}),
        (with_ess, {}),
        (with_ess, {"reweighting": "kl"}),
    ):
        with pytest.raises(ValueError, match="tau is not read where target_ess is set"):
            ReweightedTrainer(tiny_bert(), given, tau=5.0, **more)
    with pytest.raises(ValueError, match="tau is not read where target_ess is set"):
        RGDLoss(tiny_bert(), "kl", tau=5.0, target_ess=0.5)
    assert ReweightedTrainer(tiny_bert(), with_ess, tau=5.0, target_ess=None).weighting == KL(5.0)


@pytest.mark.parametrize("name", sorted(WEIGHTINGS))
def test_rules_of_other_settings_have_other_names(name):
    """A comparison tells methods apart by them."""
    rule = WEIGHTINGS[name]
    needed = {"num_groups": 2} if name == "group_dro" else {}
    plain = rule(**needed).method_name()
    for each in fields(rule):
        value = getattr(rule(**needed), each.name)
        if isinstance(value, float):
            assert rule(**needed | {each.name: value * 0.5 + 0.1}).method_name() != plain, each.name


# --- arguments and functions that are set, or given together ---------------------------------------------------------------


def steps_taken(trainer):
    trainer.train()
    return trainer.state.global_step, trainer.weighting.get_config(), parameters_of(trainer.model)


@pytest.mark.parametrize(
    "given, expected",
    [({}, KL()), ({"reweighting": "chi2", "tau": 2.0}, Chi2(2.0)), ({"reweighting": CVaR(0.3)}, CVaR(0.3))],
)
def test_plain_arguments_that_are_set_later_are_as_those_given(given, expected, make_args):
    first, second = make_args(max_steps=2), make_args(max_steps=3)
    settings = given | {"model_init": lambda: tiny_bert(), "train_dataset": classification_data(16)}
    trainer = ReweightedTrainer(None, first, **settings)
    trainer.train()
    trainer.args = second
    second.learning_rate = 0.1  # what is set on them counts, too
    found = steps_taken(trainer)
    wanted = steps_taken(ReweightedTrainer(None, second, **settings))
    assert found[:2] == wanted[:2] == (3, expected.get_config())
    assert torch.equal(found[2], wanted[2])
    assert not hasattr(second, "tau")


def test_arguments_with_settings_that_are_set_later_are_taken_as_they_are(make_args):
    trainer = ReweightedTrainer(tiny_bert(), make_args(), tau=2.0)
    args = make_args(ReweightedTrainingArguments, tau=3.0)
    trainer.args = args
    assert trainer.args is args and trainer.weighting == KL(3.0)
    trainer.args.tau = 4.0
    assert trainer.weighting == KL(4.0)


def test_none_undoes_a_setting_of_the_arguments(make_args):
    args = make_args(ReweightedTrainingArguments, target_ess=0.5, class_weights="1,2,3")
    trainer = ReweightedTrainer(tiny_bert(), args, target_ess=None, class_weights=None)
    assert (trainer.args.class_weights, trainer.weighting) == (None, KL())
    assert args.class_weights == "1,2,3" and ReweightedTrainer(tiny_bert(), args).args.target_ess == 0.5
    relative = make_args(ReweightedTrainingArguments, reweighting="relative_kl", reweighting_args="decay=0.5")
    assert ReweightedTrainer(tiny_bert(), relative, reweighting_args=None).weighting == RelativeKL()


@pytest.mark.parametrize("rule", ["chi2", CVaR(0.3)], ids=["name", "object"])
def test_none_is_no_setting_that_a_rule_does_not_read(rule, make_args):
    trainer = ReweightedTrainer(tiny_bert(), make_args(), reweighting=rule, target_ess=None, tau=None)
    assert trainer.args.target_ess is None and trainer.args.tau == 1.0


@pytest.mark.parametrize(
    "choice", [KL(tau=3.0), KL, lambda losses: losses], ids=["object", "class", "function"]
)
def test_a_rule_object_in_the_arguments_is_sent_to_the_trainer(choice, make_args):
    shown = r"reweighting=KL\(tau=3\.0\)\)" if isinstance(choice, KL) else r"reweighting=\.\.\.\)"
    message = rf"reweighting is the name of a rule\. Pass an object .* ReweightedTrainer\(\.\.\., {shown}"
    with pytest.raises(ValueError, match=message):
        make_args(ReweightedTrainingArguments, reweighting=choice)
    args = make_args(ReweightedTrainingArguments)
    trainer = ReweightedTrainer(tiny_bert(), args, train_dataset=classification_data(16))
    args.reweighting = choice
    with pytest.raises(ValueError, match=message):
        trainer.train()
    with pytest.raises(ValueError, match=message):
        ReweightedTrainer(tiny_bert(), args)
    assert ReweightedTrainer(tiny_bert(), args, reweighting=KL(tau=3.0)).weighting == KL(3.0)


def own_losses(outputs, labels):
    return cross_entropy(outputs.logits, labels, reduction="none")


def reduced(outputs, labels, num_items_in_batch=None):
    return cross_entropy(outputs.logits, labels)


class OwnLosses(ReweightedTrainer):
    def compute_per_sample_losses(self, model, inputs):
        outputs = model(inputs["input_ids"])
        return own_losses(outputs, inputs["labels"]), outputs


@pytest.mark.parametrize("reweighting", ["kl", "none"])
@pytest.mark.parametrize(
    "cls, given, name",
    [
        (ReweightedTrainer, {"per_sample_loss_fn": own_losses}, "per_sample_loss_fn"),
        (OwnLosses, {}, "OwnLosses.compute_per_sample_losses"),
    ],
)
def test_a_function_that_would_never_be_called_is_refused(cls, given, name, reweighting, make_args):
    settings = given | {"reweighting": reweighting, "train_dataset": classification_data(16)}
    message = f"both {name} and compute_loss_func, which would never be called.*Leave compute_loss_func out"
    with pytest.raises(ValueError, match=message):
        cls(tiny_bert(), make_args(), compute_loss_func=reduced, **settings)
    trainer = cls(tiny_bert(), make_args(), **settings)
    trainer.compute_loss_func = reduced
    with pytest.raises(ValueError, match=message):
        trainer.train()
    trainer.compute_loss_func = None
    trainer.train()
