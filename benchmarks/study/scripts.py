"""What a study asks of a script: `main(argv)`, which trains one model and returns its record, and its options.

A recipe is such a script, and so is `benchmarks/tables/baselines.py`. It is named by its path and imported from there:
`ARGUMENTS` are the dataclasses of its command line, `DEFAULTS` their defaults that it changes, `MOVED` options that it had once.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.offline import sources
from rgd_hf.scripts.cli import check_option_names, parse_args
from rgd_hf.scripts.config_files import as_arguments
from rgd_hf.scripts.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Script:
    """A script that trains one model.

    Attributes:
        path: as the study names it.
        main: its entry point.
        arguments: the dataclasses of its command line.
        defaults: defaults of its options, where they differ from those of the dataclasses.
        moved: options that it had once, and what to do instead.
    """

    path: str
    main: Callable[[list[str]], Any]
    arguments: Sequence[type]
    defaults: Mapping[str, Any]
    moved: Mapping[str, str]

    def knows(self, option: str) -> bool:
        """Whether it has an option of this name."""
        return any(option in cls.__dataclass_fields__ for cls in self.arguments)  # type: ignore[attr-defined]

    def check_names(self, options: Iterable[str], where: str) -> None:
        """Raise `UserError` for an option that it does not have; the message names the nearest that it has."""
        check_option_names(self.arguments, options, f"{where}: {self.path}", self.moved)

    def check_values(self, options: Mapping[str, Any]) -> None:
        """Raise `UserError` for a value that its command line would refuse."""
        arguments = as_arguments({**options, **_of_this_machine(options), "output_dir": "."})
        parse_args(self.arguments, arguments, description="", defaults=dict(self.defaults), moved=self.moved)

    def run(self, options: Mapping[str, Any], directory: str) -> dict[str, Any]:
        """Train, and return the record; files are left in the directory."""
        options = {**sources.resolve(options), **_of_this_machine(options)}
        return self.main(as_arguments({**options, "output_dir": directory}))


def _of_this_machine(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the device asks for beside a cell's options: the Trainer takes bf16 on a CPU only with `use_cpu`."""
    return {"use_cpu": True} if options.get("bf16") and not torch.accelerator.is_available() else {}


@cache
def load_script(path: str) -> Script:
    """Import a script from its path, which is looked for here and in the checkout.

    Raises:
        UserError: there is no such file, or it is no script that a study can call.
    """
    module = load_module(path)
    for needed in ("main", "ARGUMENTS"):
        if not hasattr(module, needed):
            raise UserError(
                f"the recipe {path!r} has no {needed}: a study calls main(argv), which trains one model and returns its "
                "record, and reads the dataclasses of its options in ARGUMENTS."
            )
    more = (getattr(module, name, {}) for name in ("DEFAULTS", "MOVED"))
    return Script(path, module.main, tuple(module.ARGUMENTS), *more)


@cache
def load_module(path: str) -> Any:
    """The module that a script is, see `load_script`."""
    places = [Path.cwd() / path, CHECKOUT / path]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(f"there is no recipe {path!r} (looked in {places[0].parent} and {places[1].parent}).")
    name = f"benchmarks.study._script_{found.stem}"
    spec = importlib.util.spec_from_file_location(name, found)
    if spec is None or spec.loader is None:
        raise UserError(f"the recipe {path!r} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
