"""Runs: every training of a plan is resumed or begun, recorded, and the last one pushed."""

import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import set_seed

from rgd_hf import ReweightedTrainingArguments, ReweightingArguments
from rgd_hf.batches.datasets import number_of_samples
from rgd_hf.checkpoints import last_checkpoint, passed_over
from rgd_hf.heads.classification import check_exclusive_classes
from rgd_hf.json_lines import write_json
from rgd_hf.loss_sources import HeadLosses
from rgd_hf.observers import HardExamples, WeightHistogram
from rgd_hf.processes import same_everywhere
from rgd_hf.scripts.errors import UserError, settings_explained
from rgd_hf.scripts.messages import say
from rgd_hf.scripts.processes import on_main_process
from rgd_hf.scripts.training.discarding import discard, own_files
from rgd_hf.scripts.training.hard_examples import TrainingSamples, list_hard_examples
from rgd_hf.scripts.training.plans import (
    ROWS,
    SETTINGS_NAME,
    Run,
    RunPlan,
    all_settings,
    recorded_runs,
    ways_out,
)
from rgd_hf.scripts.training.predictions import PredictionsMixin, write_predictions
from rgd_hf.scripts.training.pushing import Push, push
from rgd_hf.scripts.training.results import (
    OWN_FILES,
    compared,
    package_versions,
    read_results,
    recorded_settings,
    write_results,
)
from rgd_hf.training_args import with_settings
from rgd_hf.weightings.choice import weighting_of

Begin = Callable[[Mapping[str, int | None]], str | None]
"""What a training calls when nothing is left to check, on every process, with the numbers of samples that it has (see
`rows_of`; the same for every seed): it makes the directory ready and returns the checkpoint to resume from, or None."""


def train_runs(
    plan: RunPlan,
    build_trainer: Callable[[ReweightedTrainingArguments], PredictionsMixin],
    card: Mapping[str, Any],
    samples: TrainingSamples | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train, evaluate, save and document every run of a plan.

    Each run starts from the same seed. One that was interrupted resumes from its last checkpoint; one that is
    finished (the first of two, say) is not trained again. Every run leaves its model card, `all_results.json` and what
    `plan.options` ask for in its directory; a comparison leaves another `all_results.json` above them. Nothing is pushed
    but checkpoints (`--hub_strategy`): `push_runs` does that, after the results were shown.

    Args:
        plan: from `prepare_runs`.
        build_trainer: makes a new model and its trainer, of a class `(PredictionsMixin, ReweightedTrainer)`, for a run's
            training arguments.
        card: keywords for `Trainer.create_model_card`.
        samples: the training samples, for `--hard_examples`.
        facts: about the data, to be recorded with the metrics: `train_class_counts`, say.

    Returns:
        What `all_results.json` in the output directory holds. Of a run: `name`, `method`, `seconds`, the metrics, `facts`,
        `settings`, `versions` and the `files` in its directory. Of a comparison: `runs`, one of these each by its name,
        and `comparison` (see `results.compared`): those that the directory held before, and those of the plan.

    Raises:
        UserError: the settings of a run do not go with the model or the data; in a comparison before
            the first is trained. The data are not those of the run that is resumed, or of the others of a comparison.
            `--hard_examples` without `samples`.
    """
    if plan.options.hard_examples and samples is None:
        raise UserError("--hard_examples: this recipe lists none, leave it out.")

    def train(run: Run, begin: Begin) -> dict[str, Any]:
        name = plan.root.name if len(plan.runs) == 1 else f"{plan.root.name}-{run.name}"
        named = card if run.args.push_to_hub else {"model_name": name, **card}
        return {**_train_run(run, begin, plan, build_trainer, named, samples), **(facts or {})}

    return run_plan(plan, train)


def run_plan(plan: RunPlan, train: Callable[[Run, Begin], Mapping[str, Any]]) -> dict[str, Any]:
    """Do every run of a plan that is not finished, with a training of the recipe's own, and record it.

    Args:
        plan: from `prepare_runs`.
        train: takes a run and a function (see `Begin`), which it has to call once, as its last step before training; trains,
            leaves what it leaves in the directory of the run, and returns the metrics and what else is to be recorded.
            The seeds are set before.

    Returns:
        As `train_runs` does.

    Raises:
        UserError: the data are not those of the run that is resumed, or of the others of a comparison.
    """
    records: list[dict[str, Any]] = []
    for run in plan.runs:
        overwrites = plan.options.overwrite_output_dir and not records
        record = None if overwrites else same_everywhere(read_results(str(run.args.output_dir)))
        if record is None:
            record = _record_run(run, plan, train, overwrites)
        else:
            say("", f"{run.method}: finished before, results read from {run.args.output_dir}")
        records.append(record)
    if len(plan.runs) == 1:
        return records[0]
    every = same_everywhere(_with_recorded(records, plan))
    results = {"runs": {record["name"]: record for record in every}, "comparison": compared(every)}
    PartialState().wait_for_everyone()
    write_results(plan.root, results)
    return results


def _with_recorded(records: list[dict[str, Any]], plan: RunPlan) -> list[dict[str, Any]]:
    """These records, with those of the comparison that is in the output directory already: by seed, ERM first."""

    def key(record: Mapping[str, Any]) -> tuple[int, str]:
        return record["settings"]["seed"], record["method"]

    every = {key(record): record for record in (*recorded_runs(plan).values(), *records)}
    seeds = list(dict.fromkeys(seed for seed, _ in every))
    return sorted(
        every.values(),
        key=lambda record: (
            seeds.index(record["settings"]["seed"]),
            record["settings"]["reweighting"] != "none",
        ),
    )


def rows_of(trainer: Any) -> dict[str, int | None]:
    """The numbers of samples of a Trainer: `train` and `evaluation`, of all its evaluation sets together; None of streams."""
    evaluated = trainer.eval_dataset
    sets = [
        number_of_samples(each)
        for each in (evaluated.values() if isinstance(evaluated, dict) else [evaluated])
    ]
    known = [count for count in sets if count is not None]
    return {
        "train": number_of_samples(trainer.train_dataset),
        "evaluation": sum(known) if len(known) == len(sets) else None,
    }


def push_runs(plan: RunPlan) -> dict[str, Any]:
    """Push the last run of a trained plan to the Hub, with the results of all, if `--push_to_hub` asks for it.

    Returns:
        What `all_results.json` in the output directory holds, as `train_runs` does.

    Raises:
        HubError: the push failed; everything is kept.
    """
    PartialState().wait_for_everyone()
    results, run = read_results(plan.root) or {}, plan.runs[-1]
    if run.args.push_to_hub:
        reports = plan.options.push_data_reports
        on_main_process(lambda: push(Push(Path(str(run.args.output_dir)), run.args, results, reports)))
    return results


def _record_run(
    run: Run, plan: RunPlan, train: Callable[[Run, Begin], Mapping[str, Any]], overwrites: bool
) -> dict[str, Any]:
    directory = Path(str(run.args.output_dir))
    settings = all_settings(run, plan.settings)

    resumed = False

    def begin(rows: Mapping[str, int | None]) -> str | None:
        nonlocal resumed
        problem = None
        if PartialState().is_main_process:
            if overwrites:
                discard(plan)
            problem = _other_rows(rows, run, plan)
        problem = same_everywhere(problem)
        if problem is not None:
            raise UserError(problem)
        checkpoint = same_everywhere(last_checkpoint(directory))
        resumed = checkpoint is not None
        left = passed_over(directory)
        say(
            "",
            *([left] if left else []),
            f"{run.method}: " + (f"going on from {checkpoint}" if checkpoint else f"training in {directory}"),
        )
        settings[ROWS] = dict(rows)
        if PartialState().is_main_process:
            reports = {
                "hard_examples": plan.options.hard_examples,
                "save_predictions": plan.options.save_predictions,
                OWN_FILES: own_files(directory),
            }
            write_json(directory / SETTINGS_NAME, {**settings, **reports})
        return checkpoint

    started = time.perf_counter()
    set_seed(run.args.seed)
    found = dict(train(run, begin))
    if resumed:
        found.pop("train_loss", None)  # the Trainer's is of the steps since the checkpoint alone
    PartialState().wait_for_everyone()
    record = {
        "name": run.name,
        "method": run.method,
        "seconds": round(time.perf_counter() - started, 1),
        **found,
        "settings": settings,
        "versions": package_versions(),
        "files": sorted(path.name for path in directory.iterdir() if path.is_file()),
    }
    record = same_everywhere(record)
    write_results(directory, record)
    PartialState().wait_for_everyone()
    return record


def _other_rows(rows: Mapping[str, int | None], run: Run, plan: RunPlan) -> str | None:
    """Why a run with these numbers of samples must not be resumed or put beside the others in its directory, or None."""
    directories = [Path(str(other.args.output_dir)) for other in plan.runs if other is not run]
    others = {directory: recorded_settings(directory) for directory in directories if read_results(directory)}
    others |= {plan.root / name: record["settings"] for name, record in recorded_runs(plan).items()}
    own = Path(str(run.args.output_dir))
    if last_checkpoint(own) is not None:
        others = {own: recorded_settings(own), **others}
    for directory, before in others.items():
        found = (before or {}).get(ROWS)  # earlier versions did not record them
        if found is not None and found != rows:
            what = "an interrupted run" if directory == own else "a run to compare with"
            return (
                f"{directory} holds {what} on other data ({_in_words(found)}, now {_in_words(rows)}): did a file change? "
                f"Give the same data to go on. {ways_out(plan)}"
            )
    return None


def _in_words(rows: Mapping[str, int | None]) -> str:
    return ", ".join(f"{name}: {'unknown' if count is None else count} rows" for name, count in rows.items())


def _train_run(
    run: Run,
    begin: Begin,
    plan: RunPlan,
    build_trainer: Callable[[ReweightedTrainingArguments], PredictionsMixin],
    card: Mapping[str, Any],
    samples: TrainingSamples | None,
) -> dict[str, Any]:
    directory, options = str(run.args.output_dir), plan.options
    trainer = checked_trainer(build_trainer, run, plan)
    trainer.stop_on_non_finite_loss = True
    training = trainer.train(resume_from_checkpoint=begin(rows_of(trainer)))
    metrics = {**training.metrics, **trainer.evaluate()}
    if options.save_models:
        trainer.save_model(_internal_call=True)  # else it would be pushed now, before the results
    trainer.save_state()
    if options.save_predictions:
        files = write_predictions(trainer, directory)
        say("Predictions: " + ", ".join(map(str, files)))
    if options.hard_examples and samples is not None:
        list_hard_examples(trainer, options.hard_examples, samples, directory)
    trainer.create_model_card(**card)
    return metrics


def checked_trainer(
    build_trainer: Callable[[ReweightedTrainingArguments], Any], run: Run, plan: RunPlan
) -> Any:
    """The trainer of a run, with its observers; in a comparison ERM's shows whether the re-weighting goes with the model and
    the data too.

    Raises:
        UserError: the settings of the run, or of the last run of the plan, do not.
    """
    with settings_explained():
        trainer = build_trainer(run.args)
        source = trainer._loss_source()
        if trainer.args.label_smoothing_factor and isinstance(source, HeadLosses):
            # The Trainer warns, but results and card would say that losses were smoothed.
            check_exclusive_classes(source.head, source.model.config, "label_smoothing_factor")
        own, rule, given = trainer.args, trainer.weighting, trainer._given_rule is not None
        last = {f.name: getattr(plan.runs[-1].args, f.name) for f in fields(ReweightingArguments)}
        trainer.args = with_settings(own, last)
        trainer._set_weighting(weighting_of(trainer.args))
        trainer._check_set_up()
        trainer.args = own
        trainer._set_weighting(rule, given)  # an object, as GroupDRO is here, is not all in the arguments
    trainer.add_observer(WeightHistogram)
    if plan.options.hard_examples:
        trainer.add_observer(HardExamples)
    return trainer
