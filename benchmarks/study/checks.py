"""Options of a study, checked as the recipes' command lines would: before hours are spent, not after."""

import domainbed
import glue
import imagenet
import tabular
from benchmarks.study.adapters import RECIPES
from benchmarks.study.cells import FINAL, TUNING, CannotRun, Cell, options_of
from benchmarks.study.study import BASELINE, Study
from rgd_hf.scripts.cli import as_arguments, parse_args
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.tabular.scores import CLASSIFICATION_SCORES, LOWER_IS_BETTER, REGRESSION_SCORES

DEFAULTS = {
    "glue": glue.DEFAULTS,
    "imagenet": imagenet.DEFAULTS,
    "tabular": tabular.DEFAULTS,
    "domainbed": domainbed.DEFAULTS,
}
SCORES = {"tabular": [s for s in (*CLASSIFICATION_SCORES, *REGRESSION_SCORES) if s not in LOWER_IS_BETTER]}


def check_options(study: Study, where: str) -> None:
    """Check the values of all options that the runs of a study are called with.

    What only the data can tell (whether files and columns exist, whether there are classes) is left to the first run.

    Args:
        study: read already, so that the names of its options are known.
        where: it was read from, for the message.

    Raises:
        UserError: a recipe would refuse a value; the message names data set and method.
    """
    for data in study.datasets.values():
        place = f"{where}: datasets: {data.name}"
        known = SCORES.get(data.recipe, [data.score])
        if data.score not in known:
            raise UserError(f"{place}: score: unknown {data.score!r}: choose among {', '.join(known)}.")
        for method in data.methods:
            for stage in (TUNING, FINAL):
                cell = Cell(data.name, method, stage, data.seeds[0], 1.0)
                try:
                    options = options_of(study, cell)
                    arguments = as_arguments({**options, "output_dir": "."})
                    parse_args(
                        RECIPES[data.recipe].arguments,
                        arguments,
                        description="",
                        defaults=DEFAULTS[data.recipe],
                    )
                except (UserError, CannotRun) as error:
                    remedy = f" Change it, or leave {method} out of the data set's `methods`."
                    raise UserError(
                        f"{place}: method {method}: {error}{remedy * (method != BASELINE)}"
                    ) from error
