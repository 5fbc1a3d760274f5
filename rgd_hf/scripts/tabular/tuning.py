"""Tuning by Optuna: the same number of trials for every method, scored on the validation split alone."""

from collections.abc import Callable
from typing import Any

import optuna
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.tabular.objectives import DIVERGENCE_NAMES
from rgd_hf.scripts.tabular.rivals import BOOSTING

_NETWORK_SPACE: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-4, 5e-3, log=True),
    "d_block": IntDistribution(32, 384, step=32),
    "n_blocks": IntDistribution(1, 4),
    "dropout": FloatDistribution(0.0, 0.5),
    "weight_decay": FloatDistribution(1e-6, 1e-1, log=True),
}
_BOOSTING_SPACE: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-2, 3e-1, log=True),
    "leaves": IntDistribution(4, 128, log=True),
    "min_leaf": IntDistribution(1, 100, log=True),
    "l2": FloatDistribution(1e-3, 1e1, log=True),
}


def search_space(name: str) -> dict[str, BaseDistribution]:
    """What is tuned for a method: a rival's name, or `network/objective`."""
    if name == "linear":
        return {"strength": FloatDistribution(1e-3, 1e2, log=True)}
    if name in BOOSTING:
        return _BOOSTING_SPACE
    objective = name.split("/")[1]
    space = dict(_NETWORK_SPACE)
    if objective in DIVERGENCE_NAMES:
        space["tau"] = FloatDistribution(0.1, 10.0, log=True)
    elif objective == "focal":
        space["gamma"] = FloatDistribution(0.5, 5.0, log=True)
    return space


def tune(name: str, validation_score: Callable[[dict[str, Any]], float], trials: int) -> dict[str, Any]:
    """The settings with the best validation score among `trials`, the first of which are the defaults.

    Args:
        name: of the method.
        validation_score: trains with the given settings; larger is better. Called on every process.
        trials: their number.

    Returns:
        The best settings; empty where the defaults won.

    Raises:
        UserError: no trial gave a score.
    """
    main = PartialState().is_main_process
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    best: tuple[float, dict[str, Any]] | None = None
    for number in range(trials):
        trial = study.ask(search_space(name)) if main and number else None
        settings = broadcast_object_list([trial.params if trial else {}])[0]
        try:
            score = validation_score(settings)
        except FloatingPointError:  # diverged: a bad trial, not a failed study
            score = float("-inf")
        if trial is not None and score > float("-inf"):
            study.tell(trial, score)
        elif trial is not None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        if score > float("-inf") and (best is None or score > best[0]):
            best = score, settings
    if best is None:
        raise UserError(f"all {trials} trials of {name} diverged: lower --learning_rate.")
    return best[1]
