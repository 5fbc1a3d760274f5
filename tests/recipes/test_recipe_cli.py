"""The command line of recipes: options, one file, errors that a user can act on."""

import importlib
import json
import sys
import weakref
from dataclasses import dataclass, field

import pytest
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from rgd_hf import ReweightedTrainingArguments
from rgd_hf.description import method_name
from rgd_hf.scripts.cli import parse_args, run_recipe
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.messages import say
from rgd_hf.scripts.training.plans import RunArguments
from rgd_hf.scripts.training.results import print_results
from rgd_hf.weightings import WEIGHTINGS
from rgd_hf.weightings.choice import by_losses_alone, option_names


@dataclass
class Things:
    """Things to choose."""

    count: int = field(default=1, metadata={"help": "how many"})
    rate: float = 0.5
    names: list[str] | None = None
    flag: bool = False
    options: dict | str | None = None
    some_thing: int = 0


def parse(*argv: str, **kwargs) -> Things:
    return parse_args([Things], list(argv), description="Choose.", **kwargs)[0]


@pytest.mark.parametrize("name", ["settings.yaml", "settings.yml", "settings.json"])
def test_command_line_overrules_the_file_and_the_file_the_defaults(tmp_path, name):
    path = tmp_path / name
    settings = {"count": 3, "rate": 0.25, "names": ["a", "b"], "flag": True}
    path.write_text(
        json.dumps(settings, indent="\t" if name.endswith("json") else None)
    )  # which YAML has no word for
    parsed = parse(str(path), "--count", "7", defaults={"rate": 9.0, "count": 9})
    assert parsed == Things(count=7, rate=0.25, names=["a", "b"], flag=True)


def test_yaml_numbers_in_scientific_notation_are_numbers(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("rate: 5e-5\nnames:\n  - x\n")
    assert parse(str(path)) == Things(rate=5e-5, names=["x"])


def test_null_in_a_file_is_none_and_not_the_default_of_the_recipe(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(f"output_dir: {tmp_path}\nsave_total_limit: null\n")
    defaults = {"save_total_limit": 1}
    parsed, default, again = (
        parse_args([ReweightedTrainingArguments], argv, description="", defaults=defaults)[0]
        for argv in ([str(path)], ["--output_dir", "x"], [str(path), "--save_total_limit", "3"])
    )
    assert (parsed.save_total_limit, default.save_total_limit, again.save_total_limit) == (None, 1, 3)


def test_values_of_a_file_mean_what_they_mean_on_the_command_line(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(
        f"output_dir: {tmp_path}\nsave_strategy: no\nbf16: no\nclass_weights: [1, 2.5]\nreport_to: [none]\n"
        "reweighting: relative_kl\nreweighting_args: {decay: 0.8}\nlr_scheduler_kwargs: {num_cycles: 2}\n"
        "optim_args: {eps: 1}\n"
    )
    parsed = parse_args([ReweightedTrainingArguments], [str(path)], description="")[0]
    assert (parsed.save_strategy, parsed.bf16, parsed.class_weights) == ("no", False, "1,2.5")
    assert parsed.reweighting_args == "decay=0.8" and parsed.lr_scheduler_kwargs == {"num_cycles": 2}
    assert parsed.optim_args == "eps=1" and parsed.report_to == []
    path.write_text(f"output_dir: {tmp_path}\nreport_to: null\n")
    assert parse_args([ReweightedTrainingArguments], [str(path)], description="")[0].report_to == []


@pytest.mark.parametrize(
    "metric, larger", [("mse", False), ("eval_rmse", False), ("f1", True), ("loss", False)]
)
def test_the_direction_of_a_metric_is_known_unless_it_is_given(metric, larger, tmp_path):
    argv = ["--output_dir", str(tmp_path), "--metric_for_best_model", metric]
    for more, expected in (([], larger), (["--greater_is_better", str(not larger)], not larger)):
        args = parse_args([ReweightedTrainingArguments], [*argv, *more], description="")[0]
        assert args.greater_is_better is expected


@pytest.mark.parametrize(
    "argv, allowed",
    [
        (["--per_device_train_batch_size", "0"], "at least 1, not 0"),
        (["--gradient_accumulation_steps", "0"], "at least 1, not 0"),
        (["--learning_rate", "-1"], "at least 0, not -1"),
        (["--label_smoothing_factor", "1.5"], "between 0 and 1"),
        (["--num_train_epochs", "0"], "train nothing"),
        (["--max_steps", "0"], "train nothing"),
        (["--seed", "-1"], "--seed must lie between 0 and 4294967295"),
        (["--compare", "--seeds", "0", "-1"], "--seeds must lie between 0 and 4294967295"),
    ],
)
def test_numbers_out_of_range_are_refused_before_training(argv, allowed, tmp_path):
    with pytest.raises(UserError, match=allowed):
        parse_args(
            [RunArguments, ReweightedTrainingArguments],
            ["--output_dir", str(tmp_path), *argv],
            description="",
        )


def test_recipes_push_when_all_is_done(tmp_path):
    args = parse_args([ReweightedTrainingArguments], ["--output_dir", str(tmp_path)], description="")[0]
    assert args.hub_strategy == "end"


def test_what_is_printed_is_the_text_as_it_is(capsys):
    say("a :smile: and [bold]text[/bold]")
    record = {"method": "[old]", "seconds": 1.0, "eval_accuracy": 0.5, "settings": {"seed": 0}}
    print_results(":cat: of [data]", record)
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("a :smile: and [bold]text[/bold]", ":cat: of [data]", "[old]"))


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("cuont: 3", "'cuont': did you mean 'count'"),
        ("count: many", "settings.yaml: count: invalid int value: 'many'"),
        ("rate: [fast]", "settings.yaml: rate: invalid float value: 'fast'"),
        ("just words", "name: value"),
        ("count: [", "not valid YAML"),
        ("count: 1\ncount: 2", "'count' is given twice"),
        ("count: null", "count cannot be null. Leave the line out for the default, 1"),
    ],
)
def test_a_wrong_file_is_named_with_its_problem(tmp_path, content, complaint):
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=complaint.replace("[", r"\[")):
        parse(str(path))


@pytest.mark.parametrize(
    "argv, complaint",
    [
        (["--cuont", "3"], "unknown option '--cuont': did you mean 'count'"),
        (["--count", "x"], "^--count: invalid int value: 'x'"),
        (["--some-thing", "x"], "^--some_thing: invalid int value: 'x'"),
        (["nowhere.yaml"], "no configuration file 'nowhere.yaml'"),
        (["notes.txt"], "neither an option"),
    ],
)
def test_a_wrong_command_line_is_explained(argv, complaint):
    with pytest.raises(UserError, match=complaint):
        parse(*argv)


@pytest.mark.parametrize(
    "argv, allowed",
    [
        (["--reweighting", "entropy"], ", ".join(map(repr, by_losses_alone()))),
        (["--tau", "-1"], "positive"),
        (["--tau", "nan"], "finite"),
    ],
)
def test_settings_of_the_reweighting_say_what_is_allowed(argv, allowed, tmp_path):
    with pytest.raises(UserError, match=allowed):
        parse_args([ReweightedTrainingArguments], ["--output_dir", str(tmp_path), *argv], description="")


@pytest.mark.parametrize("name", by_losses_alone())
def test_settings_that_the_rule_does_not_read_are_refused_where_the_user_gave_them(name, tmp_path):
    rule, path = WEIGHTINGS[name], tmp_path / "settings.yaml"
    options = sorted(option_names() - {"reweighting", "reweighting_args"})
    argv = ["--output_dir", str(tmp_path), "--reweighting", name]
    for option in options:
        read = rule.is_plain or option in rule.options.values() or (name, option) == ("kl", "target_ess")
        path.write_text(f"output_dir: {tmp_path}\nreweighting: {name}\n{option}: 0.7\n")
        for given in ([*argv, f"--{option}", "0.7"], [*argv, f"--{option}=0.7"], [str(path)]):
            if read:
                found = parse_args([ReweightedTrainingArguments], given, description="")[0]
                assert getattr(found, option) == 0.7
            else:
                with pytest.raises(UserError, match=f"--{option} is no setting of '{name}'"):
                    parse_args([ReweightedTrainingArguments], given, description="")
    defaults = {option: 0.7 for option in options if option != "target_ess"}  # those of a recipe
    parse_args([ReweightedTrainingArguments], argv, description="", defaults=defaults)


def test_tau_with_target_ess_and_the_remedies_of_relative_kl(tmp_path):
    argv = ["--output_dir", str(tmp_path)]
    with pytest.raises(UserError, match=r"--tau is not read where --target_ess is set.*leave out one"):
        parse_args(
            [ReweightedTrainingArguments], [*argv, "--target_ess", "0.5", "--tau", "5"], description=""
        )
    relative = [*argv, "--reweighting", "relative_kl"]
    with pytest.raises(UserError, match=r"into --reweighting_args tau=\.\.\.,decay"):
        parse_args([ReweightedTrainingArguments], [*relative, "--tau", "5"], description="")
    args = parse_args(
        [ReweightedTrainingArguments], [*relative, "--reweighting_args", "tau=5"], description=""
    )[0]
    assert method_name(args) == "RGD (relative_kl, tau=5 mean losses)"


def test_rules_that_need_a_column_are_not_offered(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_args([ReweightedTrainingArguments], ["--help"], description="")
    shown = capsys.readouterr().out
    assert "relative_kl" in shown and "group_dro" not in shown
    path = tmp_path / "settings.yaml"
    path.write_text(f"output_dir: {tmp_path}\nreweighting: group_dro\n")
    for argv in ([str(path)], ["--output_dir", str(tmp_path), "--reweighting", "group_dro"]):
        with pytest.raises(UserError, match=r"needs a column.*script of your own"):
            parse_args([ReweightedTrainingArguments], argv, description="")


@pytest.mark.parametrize(
    "argv, instead",
    [
        (
            ["--resume_from_checkpoint", "x"],
            "'--resume_from_checkpoint' is no option .* same command resumes",
        ),
        (["--do-train", "false"], "'--do-train' is no option .* a recipe trains"),
        (["--do_eval"], "'--do_eval' .* evaluates after training"),
        (["--do_predict=true"], "--save_predictions"),
    ],
)
def test_options_that_recipes_do_not_read_are_refused_and_hidden(argv, instead, tmp_path, capsys):
    types = [ReweightedTrainingArguments]
    with pytest.raises(UserError, match=instead):
        parse_args(types, argv, description="")
    name = argv[0].split("=")[0].lstrip("-").replace("-", "_")
    path = tmp_path / "settings.yaml"
    path.write_text(f"{name}: true\n")
    with pytest.raises(UserError, match=f"settings.yaml: '{name}' is no option of recipes"):
        parse_args(types, [str(path)], description="")
    with pytest.raises(SystemExit):
        parse_args(types, ["--help"], description="")
    assert f"--{name}" not in capsys.readouterr().out


USABLE = {
    "prediction_loss_only": ("true", "false"),
    "eval_do_concat_batches": ("false", "true"),
    "label_names": ("foo", "labels"),
    "length_column_name": ("len", "length"),
    "train_sampling_strategy": ("group_by_length", "random"),
    "data_seed": ("7", None),
    "eval_delay": ("1000", "1"),
}
FOLLOWED = {
    "glue": {"train_sampling_strategy", "data_seed", "eval_delay"},
    "imagenet": {"data_seed", "eval_delay"},
}


@pytest.mark.parametrize("recipe", ["glue", "imagenet", "tabular", "domainbed"])
def test_what_cannot_be_followed_is_refused_before_data_are_read(recipe, tmp_path):
    """A value that changes nothing passes, and the recipe goes on to ask for what is missing."""
    main = importlib.import_module(recipe).main
    missing = {
        "glue": ("--task_name", "none"),
        "imagenet": ("--data_dir", str(tmp_path / "none")),
        "tabular": ("--num_train_epochs", "5"),
        "domainbed": ("--max_steps", "4", "--eval_steps", "2", "--held_out", "a"),
    }
    argv = [*missing[recipe], "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    for name, values in USABLE.items():
        for value in filter(None, values):
            with pytest.raises(UserError) as told:
                main([*argv, f"--{name}", value])
            refused = (
                f"--{name} {value}".lower() in str(told.value).replace("['", "").replace("']", "").lower()
            )
            assert refused == (value == values[0] and name not in FOLLOWED.get(recipe, ())), told.value


def test_a_script_of_ones_own_may_have_options_of_these_names():
    @dataclass
    class Own:
        """Own."""

        do_eval: bool = False

    assert parse_args([Own], ["--do_eval"], description="") == (Own(do_eval=True),)


def test_a_default_for_an_unknown_option_is_a_mistake_in_the_recipe():
    with pytest.raises(TypeError, match="warmup"):
        parse(defaults={"warmup": 1})


@pytest.mark.parametrize(
    "error, code, line",
    [
        (UserError("no such task"), 2, "glue.py: error: no such task\n"),
        (FloatingPointError("loss is nan in step 3"), 2, "\nglue.py: error: loss is nan in step 3\n"),
        (KeyboardInterrupt(), 130, "\nInterrupted. The same command resumes from the last checkpoint.\n"),
    ],
)
def test_user_errors_are_one_line_and_an_exit_code(error, code, line, monkeypatch, capsys):
    def main():
        raise error

    monkeypatch.setattr(sys, "argv", ["recipes/glue.py"])
    with pytest.raises(SystemExit) as stopped:
        run_recipe(main)
    assert stopped.value.code == code
    assert capsys.readouterr().err == line


def test_a_recipe_that_is_done_leaves_its_process_group(tmp_path):
    """Or a thread of it may abort the process while the interpreter ends."""

    def main():
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        model = DistributedDataParallel(nn.Linear(2, 2))
        model.itself = model  # what only the garbage collector finds
        found.append(weakref.ref(model))

    found = []
    run_recipe(main)
    assert not distributed.is_initialized() and found[0]() is None


def test_help_shows_the_recipes_own_options_with_defaults(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--help", defaults={"count": 5})
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Things to choose:" in shown and "how many (default: 5)" in shown and "CONFIG" in shown


def test_help_of_an_inverted_flag_says_that_it_turns_the_other_off(capsys):
    with pytest.raises(SystemExit):
        parse_args([RunArguments, ReweightedTrainingArguments], ["--help"], description="")
    shown = " ".join(capsys.readouterr().out.split())
    for name in ("save_models", "fused_lm_head"):
        assert f"--no-{name.replace('_', '-')} Turns --{name} off." in shown
