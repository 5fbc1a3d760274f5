"""The command line of a recipe: dataclasses as options, one optional YAML or JSON file, errors without tracebacks."""

import difflib
import os
import re
import sys
import time
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from transformers import HfArgumentParser, TrainingArguments

from rgd_hf.comparison.directions import is_greater_better
from rgd_hf.contrib import SetupError
from rgd_hf.hub.errors import HubError, find_failure
from rgd_hf.scripts.config_files import as_arguments, as_typed, read_settings
from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.processes import leave_process_group
from rgd_hf.scripts.ranges import check_ranges
from rgd_hf.training_args import ReweightingArguments, check_read, unread_settings
from rgd_hf.weightings import WEIGHTINGS
from rgd_hf.weightings.choice import by_losses_alone

USAGE = "accelerate launch %(prog)s [CONFIG.yaml|CONFIG.json] --option value ..."
EPILOG = "CONFIG holds the same options, `name: value`; options on the command line overrule it."
# Settings of `TrainingArguments` that the Trainer leaves to scripts, and what recipes do instead.
WITHOUT_EFFECT = {
    "do_train": "Leave it out: a recipe trains, and does not repeat a finished run.",
    "do_eval": "Leave it out: a recipe evaluates after training, and during it as --eval_strategy says.",
    "do_predict": "Leave it out: --save_predictions of the recipes for classification writes predictions.",
    "resume_from_checkpoint": "Leave it out: the same command resumes from the last checkpoint in its --output_dir.",
}
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def parse_args(
    dataclass_types: Sequence[type],
    argv: Sequence[str] | None = None,
    *,
    description: str,
    defaults: dict[str, Any] | None = None,
    usage: str = USAGE,
    epilog: str = EPILOG,
    moved: Mapping[str, str] | None = None,
) -> tuple[Any, ...]:
    """Fill dataclasses from `[CONFIG] --option value ...`; options overrule the file.

    Args:
        dataclass_types: one dataclass for every group of options; the docstring's first line titles the group.
        argv: the arguments after the program's name, `sys.argv[1:]` by default.
        description: what the recipe does, shown by `--help`.
        defaults: defaults that differ from those of the dataclasses, by field name.
        usage: the first line of `--help`.
        epilog: its last one.
        moved: options of earlier versions or of other recipes, without dashes, and a sentence on what to do instead.

    Returns:
        An instance of each dataclass, in order.

    Raises:
        UserError: an unknown option, a value that is not allowed, or a file that cannot be read.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(dataclass_types, description, usage, epilog)
    parser.moved = moved or {}
    defaults = defaults or {}
    if not set(defaults) <= set(parser.option_names()):
        raise TypeError(f"defaults for unknown options: {sorted(set(defaults) - set(parser.option_names()))}")
    parser.set_defaults(**defaults)
    if argv and not argv[0].startswith("-"):
        argv = [*_config_arguments(argv[0], parser), *argv[1:]]
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(
            argv, look_for_args_file=False, return_remaining_strings=True
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    if unknown:
        raise UserError(f"{parser.describe_unknown(unknown[0])} See --help.")
    for group in parsed:
        if isinstance(group, TrainingArguments):
            check_ranges(group)
    return tuple(parsed)


def check_option_names(
    dataclass_types: Sequence[type],
    names: Iterable[str],
    where: str,
    moved: Mapping[str, str] | None = None,
) -> None:
    """Check that a command line of `parse_args` has all these options.

    Args:
        dataclass_types: as `parse_args` takes them.
        names: names of options, without dashes.
        where: where they stand, for the message.
        moved: as `parse_args` takes it.

    Raises:
        UserError: one is not known; the message names the nearest that is.
    """
    parser = _Parser(dataclass_types, "")
    parser.moved = moved or {}
    known = set(parser.option_names())
    for name in names:
        if name not in known:
            raise UserError(f"{where}: {parser.describe_unknown(name)}")


def check_rule(reweighting: str) -> None:
    """Raise `UserError` for a rule of `rgd_hf.weightings` that needs a column, which recipes do not read."""
    if reweighting in WEIGHTINGS and reweighting not in by_losses_alone():
        raise UserError(
            f"--reweighting {reweighting} needs a column of its own (the group of each sample), which recipes do not "
            f"read: choose one of {listed(by_losses_alone())}, or train with it in a script of your own "
            "(docs/contrib.md shows how). With the training domains as groups, GroupDRO is --algorithm group_dro of "
            "recipes/domainbed.py."
        )


def run_recipe(main: Callable[[], Any]) -> None:
    """Call `main` and end the process: user and Hub errors as one line on stderr, anything else with its traceback."""
    script = Path(sys.argv[0])
    name = script.parent.name if script.stem == "__main__" else script.name
    try:
        main()
        leave_process_group()
    except (UserError, HubError, SetupError) as error:
        _say(f"{name}: error: {_without_worker(str(error))}")
        sys.exit(EXIT_USER_ERROR)
    except FloatingPointError as error:  # in the middle of a progress bar's line, as the next
        _say(f"\n{name}: error: {error}")
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        _say("\nInterrupted. The same command resumes from the last checkpoint.")
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        failure = find_failure(error)
        if failure is None:
            raise
        _say(f"\n{name}: error: {failure} Checkpoints are kept: the same command resumes from the last.")
        sys.exit(EXIT_USER_ERROR)


class _Parser(HfArgumentParser):
    moved: Mapping[str, str] = {}

    def __init__(
        self, dataclass_types: Sequence[type], description: str, usage: str = USAGE, epilog: str = EPILOG
    ):
        for cls in dataclass_types:
            title = (cls.__doc__ or cls.__name__).strip().splitlines()[0].rstrip(".").replace("`", "")
            cls._argument_group_name = title  # type: ignore[attr-defined]
        super().__init__(
            list(dataclass_types),  # type: ignore[arg-type]
            description=description,
            usage=usage,
            epilog=epilog,
            allow_abbrev=False,
        )
        self.hints = {name: hint for cls in dataclass_types for name, hint in get_type_hints(cls).items()}
        trains = any(issubclass(cls, TrainingArguments) for cls in dataclass_types)
        self.without_effect = WITHOUT_EFFECT if trains else {}
        for action in self._actions:
            if action.dest in self.without_effect:
                action.help = SUPPRESS
            elif action.option_strings[0].startswith("--no_") and not action.dest.startswith("no_"):
                action.help = f"Turns --{action.dest} off."
            elif action.dest == "reweighting":
                action.choices = by_losses_alone()
        if trains:  # the Trainer's own default pushes the model at every checkpoint, before there are results
            self.set_defaults(hub_strategy="end")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for argument in args or ():
            if argument.startswith("--") and _plain(argument) in self.without_effect:
                raise UserError(f"{self.describe_unknown(argument)} See --help.")
        found, unknown = super().parse_known_args(args, namespace)
        asked = getattr(found, "metric_for_best_model", None)
        if asked is not None and found.greater_is_better is None:
            found.greater_is_better = is_greater_better(asked)  # transformers knows that of losses alone
        if hasattr(found, "target_ess"):  # a script of one's own may have a `reweighting` of its own
            given = {_plain(argument): True for argument in args or () if argument.startswith("--")}
            check_read(given, found.reweighting, found.target_ess, dashes="--")
            # The recipe's own defaults of what the chosen rule does not read are none of the user's.
            for name in unread_settings(found.reweighting, found.target_ess) - given.keys():
                setattr(found, name, ReweightingArguments.__dataclass_fields__[name].default)
        return found, unknown

    def _check_value(self, action: Action, value: Any) -> None:
        if action.dest == "reweighting":  # which says more than that there is no such choice
            check_rule(value)
        super()._check_value(action, value)

    def error(self, message: str):
        message = re.sub(r"^argument (--\w+)(/--[\w-]+)*: ", r"\1: ", message)  # both spellings of a name
        raise UserError(f"{message}. See --help.")

    def check_value(self, name: str, text: str) -> None:
        """Raise `ArgumentError` where the option that fills `name` does not take `text`."""
        option = self.option(name)
        self._check_value(option, self._get_value(option, text))

    def option_names(self) -> list[str]:
        return [a.dest for a in self._actions if a.dest not in ("help", *self.without_effect)]

    def option(self, name: str) -> Action:
        """The option that fills the field `name`."""
        return next(action for action in self._actions if action.dest == name)

    def describe_unknown(self, name: str) -> str:
        """An error message for an unknown option, with the nearest known one."""
        plain = _plain(name)
        if plain in self.moved:
            return f"{name!r} is no option of this recipe: {self.moved[plain]}"
        if plain in self.without_effect:
            return f"{name!r} is no option of recipes. {self.without_effect[plain]}"
        near = difflib.get_close_matches(plain, self.option_names(), n=1)
        hint = f": did you mean {near[0]!r}?" if near else "."
        return f"unknown option {name!r}{hint}"


def _plain(argument: str) -> str:
    return argument.split("=")[0].lstrip("-").replace("-", "_")


def _config_arguments(filename: str, parser: _Parser) -> list[str]:
    """The settings of a configuration file as command-line arguments, so that both are checked alike."""
    settings = read_settings(filename)
    for name, value in [*settings.items()]:
        if name not in parser.option_names():
            raise UserError(f"{filename}: {parser.describe_unknown(str(name))}")
        if name == "report_to":  # the one option that takes lists from code alone
            parser.set_defaults(report_to=settings.pop(name) or "none")
        elif value is None:  # which no command line can say
            if type(None) not in get_args(parser.hints[name]):
                raise UserError(
                    f"{filename}: {name} cannot be null. Leave the line out for the default, {parser.get_default(name)!r}."
                )
            parser.set_defaults(**{name: None})
    typed = {name: as_typed(value, parser.option(name)) for name, value in settings.items()}
    for name, value in typed.items():
        for item in value if isinstance(value, list) else [value]:
            if item is not None and not isinstance(item, dict):
                try:
                    parser.check_value(name, str(item))
                except ArgumentError as error:
                    raise UserError(f"{filename}: {name}: {error.message}.") from error
    return as_arguments(typed)


def _without_worker(message: str) -> str:
    """The message alone, where a worker process of a DataLoader handed it on as the end of a traceback."""
    if re.match(r"Caught \w+ in DataLoader worker process", message) is None:
        return message
    return message.strip().splitlines()[-1].partition(": ")[2]


def _say(line: str) -> None:
    """Print an error once: other processes leave it to the first of their machine, which ends the launch."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(10)
    print(line, file=sys.stderr, flush=True)
