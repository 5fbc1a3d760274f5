"""Does re-weighting help on my data? Train each method from the same seeds; finished and interrupted runs resume."""

import json
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import Trainer, TrainerCallback, TrainerState, set_seed
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import denumpify_detensorize

from rgd_hf.checkpoints import last_checkpoint, passed_over
from rgd_hf.comparison.directions import direction_in
from rgd_hf.comparison.new_models import TrainedBefore
from rgd_hf.comparison.result import Comparison, comparison_of
from rgd_hf.comparison.run_settings import (
    changed_in_training,
    changed_settings,
    run_settings,
    with_changing,
)
from rgd_hf.description import method_name
from rgd_hf.json_lines import append_line, read_lines, write_json
from rgd_hf.overrides import all_overrides
from rgd_hf.processes import same_everywhere
from rgd_hf.trainer import ReweightingMixin
from rgd_hf.weightings.choice import as_weighting

RUNS_NAME = "runs.jsonl"
SETTINGS_NAME = "run_settings.json"

_MEASURED = {f"eval_{name}" for name in ("runtime", "samples_per_second", "steps_per_second")} | {"epoch"}
"""What `evaluate` adds that is no score."""

_OTHER_NAMES = (
    "give each function a name of its own (def), or other settings by functools.partial(function, name=value), or give objects "
    "of rgd_hf.weightings with different settings"
)


def compare(
    make_trainer: Callable[[int, Any], Trainer],
    *,
    seeds: Sequence[int],
    reweightings: Sequence[Any] = ("none", "kl"),
    metric: str = "eval_loss",
    greater_is_better: bool | None = None,
    output_dir: str | Path,
) -> Comparison:
    """Train every re-weighting from every seed and compare each with the first, paired by seed.

    Finished runs are lines of `runs.jsonl` in `output_dir`: the same call resumes after an interruption, and a call with
    more seeds or re-weightings trains only these; a run that was scored without `metric` is trained again. An interrupted run resumes from its last whole checkpoint, if its
    arguments save any (not with `save_only_model`), or begins anew; until it is finished, its sub-folder keeps its settings in `run_settings.json`. Under
    `accelerate launch` every process calls it.

    Example:
        ```python
        def make_trainer(seed, reweighting):
            args = TrainingArguments(output_dir="unused", seed=seed, num_train_epochs=3)
            model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
            return ReweightedTrainer(model=model, args=args, reweighting=reweighting, train_dataset=train, ...)

        print(compare(make_trainer, seeds=range(5), metric="eval_accuracy", output_dir="runs/compare"))
        ```

    Args:
        make_trainer: takes a seed and one of `reweightings`, and builds a new model and its Trainer with them. The global
            seeds are set before it is called, so that new layers are initialized the same for every method.
        seeds: random seeds, whole numbers; each method is trained once per seed. Two or more give an interval; five are a good start.
        reweightings: names, or weightings as `ReweightedTrainer` takes them; the first is the baseline of the differences.
            They are told apart by their names, which for a function is the name of its definition, with the settings of a
            `functools.partial`.
        metric: the metric to compare, as `trainer.evaluate()` names it.
        greater_is_better: whether a larger value of `metric` is better; by default what the words of its name say
            (`accuracy`, `f1`; `loss`, `error`, `perplexity`), or the arguments where it is their `metric_for_best_model`.
        output_dir: folder for the results (`runs.jsonl`) and for one sub-folder per run, which replaces the
            `output_dir` of its arguments.

    Returns:
        The comparison; `print` shows it.

    Raises:
        ValueError: `make_trainer` does not use the seed or re-weighting it is given, gives no `eval_dataset` or a model that an earlier run trained, `metric`
            is not among the metrics or does not say whether larger is better, there are fewer than two re-weightings or two of the same name, or `output_dir` holds
            runs with other settings (arguments, model, initial weights, optimizer, early stopping, code and what it reads), finished or interrupted, or a checkpoint whose settings are not known.
    """
    labels = _labels(reweightings)
    seeds = [operator.index(seed) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be one or more different numbers, not {seeds}.")
    folder = Path(output_dir)
    finished: dict[tuple[str, int], dict[str, Any]] | None = None
    methods: dict[str, str] = {}
    changing: set[tuple[str, str]] = set()

    def prepared(seed: int, label: str) -> tuple[Any, dict[str, Any]]:
        """A Trainer whose settings are those of the runs in the folder, and these settings."""
        nonlocal finished, greater_is_better
        set_seed(seed)
        trainer: Any = make_trainer(seed, labels[label])
        _check_trainer(trainer, seed, labels[label])
        if finished is None:  # only now the processes know each other
            lines = same_everywhere(read_lines(folder / RUNS_NAME))
            finished = {(line["reweighting"], line["seed"]): line for line in lines}
        if greater_is_better is None:
            greater_is_better = _direction(trainer, metric)
        others = [other for other in finished.values() if other["reweighting"] == label]
        # Of the main process: others may get their weights from it only when the model is wrapped.
        settings = same_everywhere(with_changing(run_settings(trainer), changing))
        _check_settings(settings, seed, others, folder)
        _check_method(method_name(trainer.args, trainer.weighting), label, methods)
        return trainer, settings

    # Of a finished run of theirs all settings were compared, for which the seed has to be the same.
    checked: set[str] = set()
    trained = TrainedBefore()
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        for label in labels:
            name = f"{label}, seed {seed}"
            run = _with_metric(finished, label, seed, metric)
            if run is None or label not in checked:
                trainer, settings = prepared(seed, label)
                run = _with_metric(finished, label, seed, metric)
                later = [other for other in seeds if _with_metric(finished, label, other, metric)]
                if run is None and label not in checked and later:
                    prepared(later[0], label)
                    trainer, settings = prepared(seed, label)  # from its own random state
                if later:
                    checked.add(label)
            if run is None:
                trained.check(trainer, name)
                trained.add(trainer, name)
                _say(f"{name}: run {len(runs) + 1} of {len(labels) * len(seeds)}")
                before = (finished or {}).get((label, seed))
                if before is not None:
                    _say(f"It was finished without {metric!r}, and is trained again.")
                place = folder / f"{_slug(label)}-seed{seed}"
                found = _train(trainer, settings, place, changing, anew=before is not None)
                run = {"reweighting": label, "seed": seed, **found}
                trained.add(trainer, name)
                if PartialState().is_main_process:
                    append_line(folder / RUNS_NAME, run)
                    # Its checkpoints are no longer those of an interrupted run.
                    (place / SETTINGS_NAME).unlink(missing_ok=True)
            if metric not in run["metrics"]:
                scores = sorted(set(run["metrics"]) - _MEASURED)
                raise ValueError(
                    f"evaluate() gave no {metric!r}, but {', '.join(scores)}: choose one of these, or return it from "
                    "compute_metrics; runs that lack it are then trained again."
                )
            runs.append(run)
    return comparison_of(runs, metric, greater_is_better)


def _with_metric(
    finished: Mapping[tuple[str, int], dict[str, Any]] | None, label: str, seed: int, metric: str
) -> dict[str, Any] | None:
    run = (finished or {}).get((label, seed))
    return run if run is not None and metric in run["metrics"] else None


def _train(
    trainer: Any, settings: dict[str, Any], folder: Path, changing: set[tuple[str, str]], anew: bool
) -> dict[str, Any]:
    """Train and evaluate one run; adds to `changing` the settings that its training changed."""
    trainer.args.output_dir = str(folder)
    checkpoint = None if anew else same_everywhere(last_checkpoint(folder))
    left = passed_over(folder)
    if left:
        _say(left)
    if checkpoint is not None:
        _check_interrupted(settings, folder)
        if not trainer.args.restore_callback_states_from_checkpoint:
            # Else early stopping would count its patience from 0.
            trainer.callback_handler.callbacks.insert(0, _RestoreStates(trainer.callback_handler))
    if PartialState().is_main_process:
        write_json(folder / SETTINGS_NAME, settings)
    started = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
        metrics = denumpify_detensorize(trainer.evaluate())
    finally:
        # Also of an interrupted run: the objects of a notebook are there in its next call.
        changing |= changed_in_training(settings, trainer)
        settings = with_changing(settings, changing)
        if PartialState().is_main_process:
            write_json(folder / SETTINGS_NAME, settings)
    return {
        "method": method_name(trainer.args, trainer.weighting),
        "metrics": {name: value for name, value in metrics.items() if isinstance(value, int | float)},
        "settings": settings,
        "seconds": round(time.perf_counter() - started, 1),
    }


class _RestoreStates(TrainerCallback):
    """Puts the states that a checkpoint has of callbacks into the user's own objects, before these see the training begin.

    With `restore_callback_states_from_checkpoint` the Trainer makes them anew, without what `state()` does not name.
    """

    def __init__(self, handler: CallbackHandler) -> None:
        self.handler = handler

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        saved: Any = state.stateful_callbacks
        for name, states in saved.items():
            same = [each for each in self.handler.callbacks if type(each).__name__ == name]
            # Of several callbacks of one name, every checkpoint adds the states to those before.
            states = states[-len(same) :] if isinstance(states, list) else [states]
            for callback, its in zip(same, states):
                for attribute, value in its.get("attributes", {}).items():
                    setattr(callback, attribute, value)


def _check_trainer(trainer: Any, seed: int, reweighting: Any) -> None:
    if not isinstance(trainer, ReweightingMixin):
        raise ValueError(
            f"make_trainer must return a Trainer of rgd_hf, such as ReweightedTrainer, not {type(trainer).__name__}: the "
            "baseline is that of the same class with reweighting='none'."
        )
    args: Any = trainer.args
    if args.seed != seed:
        raise ValueError(
            f"make_trainer was given seed={seed}, but its Trainer has args.seed={args.seed}. Pass it on, "
            "TrainingArguments(seed=seed), so that all methods see the same batches."
        )
    if isinstance(reweighting, str) and args.reweighting != reweighting:
        raise ValueError(
            f"make_trainer was given reweighting={reweighting!r}, but its Trainer has {args.reweighting!r}. Pass it on, "
            "ReweightedTrainer(reweighting=reweighting)."
        )
    if not isinstance(reweighting, str):
        asked, found = as_weighting(reweighting), trainer.weighting
        if type(found) is not type(asked) or found.get_config() != asked.get_config():
            raise ValueError(
                f"make_trainer was given the re-weighting {asked.method_name()}, but its Trainer has {found.method_name()}. Pass "
                "it on, ReweightedTrainer(reweighting=reweighting)."
            )
    if trainer.weighting.is_plain and trainer.weigh_override:
        raise ValueError(
            f"{trainer.weigh_override} weights losses under reweighting='none' too, so that it is no plain training: let make_trainer "
            "return a class without it for 'none', or leave 'none' out of reweightings."
        )
    if trainer.eval_dataset is None and not _evaluates_by_itself(trainer):
        raise ValueError(
            "make_trainer must give its Trainer an eval_dataset, on which the methods are compared: "
            "ReweightedTrainer(eval_dataset=...)."
        )


def _evaluates_by_itself(trainer: Any) -> bool:
    """Whether a class of the user's own may know what it is evaluated on."""
    for name in ("evaluate", "get_eval_dataloader"):
        overrides = all_overrides(trainer, ReweightingMixin, name)
        modules = [getattr(override.function, "__module__", "") for override in overrides]
        if not all(module.startswith("transformers.") for module in modules):
            return True
    return False


def _direction(trainer: Trainer, metric: str) -> bool:
    found = direction_in(trainer.args, metric)
    if found is None:
        raise ValueError(
            f"The name {metric!r} does not say whether a larger value is better: give compare(greater_is_better=True), or "
            "False."
        )
    return found


def _check_settings(
    now: Mapping[str, Any], seed: int, runs: Sequence[Mapping[str, Any]], folder: Path
) -> None:
    for run in runs:
        changed = changed_settings(run.get("settings", {}), now, same_seed=run["seed"] == seed)
        if changed:
            raise ValueError(
                f"{folder / RUNS_NAME} holds runs of {run['reweighting']!r} with other settings ({changed}). Give the same "
                "settings to resume, or another output_dir."
            )


def _check_interrupted(now: Mapping[str, Any], folder: Path) -> None:
    """Raise where the checkpoint in `folder` is not one of an interrupted run with these settings."""
    path = folder / SETTINGS_NAME
    before = same_everywhere(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None)
    if before is None:
        raise ValueError(
            f"{folder} holds a checkpoint, but no {SETTINGS_NAME}, which interrupted runs have, and {RUNS_NAME} has no line of "
            "it: it is that of a finished run, or of an earlier version of rgd_hf, and its settings are not known. Delete "
            f"{folder} to train this run again, or give another output_dir."
        )
    changed = changed_settings(before, now, same_seed=True)
    if changed:
        raise ValueError(
            f"{folder} holds an interrupted run with other settings ({changed}). Give the same settings to resume it, delete "
            "that folder to begin it again, or give another output_dir."
        )


def _labels(reweightings: Sequence[Any]) -> dict[str, Any]:
    """The re-weightings by their names.

    Raises:
        ValueError: there are fewer than two, or two cannot be told apart by their names.
    """
    names = [_label(reweighting) for reweighting in reweightings]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or len(names) < 2:
        raise ValueError(
            f"reweightings must be two or more different ones, not {names}."
            + (f" {', '.join(map(repr, twice))} is there more than once: {_OTHER_NAMES}." if twice else "")
        )
    return dict(zip(names, reweightings, strict=True))


def _label(reweighting: Any) -> str:
    if isinstance(reweighting, str):
        return reweighting
    if callable(reweighting) and not isinstance(reweighting, type):
        reweighting = as_weighting(reweighting)
    name = getattr(reweighting, "method_name", None)
    return str(name() if callable(name) else reweighting)


def _check_method(method: str, label: str, methods: dict[str, str]) -> None:
    """Add the name in the table of the re-weighting `label` to `methods`; raise where another has it."""
    for other in methods:
        if other != label and methods[other] == method:
            raise ValueError(
                f"The re-weightings {other!r} and {label!r} are both {method!r} in the table: {_OTHER_NAMES}, or leave one of "
                "them out. Finished runs are kept."
            )
    methods[label] = method


def _slug(label: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in label).strip("_")


def _say(line: str) -> None:
    if PartialState().is_main_process:
        print(line, flush=True)
