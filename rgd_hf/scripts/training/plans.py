"""Plans: which trainings a recipe is asked for, in which directories, and whether what lies there allows them."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from rgd_hf import ReweightedTrainingArguments, ReweightingArguments
from rgd_hf.checkpoints import last_checkpoint
from rgd_hf.comparison.compare import SETTINGS_NAME
from rgd_hf.comparison.run_settings import TEXT_TOKENS
from rgd_hf.description import method_name
from rgd_hf.observers.hard_examples import HardExamples
from rgd_hf.processes import same_everywhere
from rgd_hf.scripts.cli import check_rule
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.messages import say
from rgd_hf.scripts.processes import on_main_process
from rgd_hf.scripts.ranges import check_seed
from rgd_hf.scripts.training.discarding import lost_model
from rgd_hf.scripts.training.hard_examples import HARD_EXAMPLES
from rgd_hf.scripts.training.predictions import PREDICTIONS
from rgd_hf.scripts.training.pushing import check_repository
from rgd_hf.scripts.training.results import (
    OWN_FILES,
    RESULTS_NAME,
    read_results,
    recorded_settings,
    settings_of,
)

ROWS = "rows"
"""The key under which the numbers of samples are recorded among the settings of a run."""

# The settings of re-weighting that plain training has too; all others belong to the rule that is compared with it.
SETTINGS_OF_ALL_METHODS = ("reweighting_level", "class_weights", "fused_lm_head")

# Settings that may change between an interruption and the next start: they decide what is reported, not what is trained.
REPORTING_SETTINGS = (
    "hub_", "push_to_hub", "logging_", "log_", "disable_tqdm", "report_to", "run_name", "project", "trackio_",
    "output_dir", "overwrite_output_dir", "compare", "seeds", "dataloader_num_workers", "dataloader_pin_memory", "ddp_", "hard_examples", "save_predictions",
    OWN_FILES,
)  # fmt: skip


@dataclass
class RunArguments:
    """Runs and where they are kept."""

    compare: bool = field(
        default=False,
        metadata={
            "help": "Train twice from the same seed, without re-weighting (ERM, in OUTPUT_DIR/erm) and with the chosen "
            "--reweighting (in OUTPUT_DIR/<reweighting>), and print both results."
        },
    )
    seeds: list[int] = field(
        default_factory=list,
        metadata={
            "help": "With --compare: train both from each of these seeds (e.g. 0 1 2 3 4), and print means, the paired "
            "difference with its 95 %% interval, and a verdict. If you add seeds later, only the new runs are trained; the "
            "table covers all seeds."
        },
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Discard the checkpoints, results and models of runs in the output directory and start again; they are kept until data, "
            "settings and model have been checked and the first run begins. A model to begin from that would be discarded or saved over "
            "is refused. Without it an interrupted run "
            "resumes from its last checkpoint, and a finished run is not repeated."
        },
    )
    save_predictions: bool = field(
        default=False,
        metadata={
            "help": "Write predictions.parquet into the run's directory: label, prediction, whether it is correct, "
            "plain loss, and probability of the predicted class, of each evaluation sample in order (one file per validation set)."
        },
    )
    hard_examples: int = field(
        default=0,
        metadata={
            "help": "Number of hard examples to list after training: the training samples with the largest mean weight, "
            "hard or mislabelled, in hard_examples.html and hard_examples.json in the run's directory. `index` is the row in the "
            "training data as given, from 0; in domainbed.py, the sample's number in its `domain`."
        },
    )
    push_data_reports: bool = field(
        default=False,
        metadata={
            "help": "With --push_to_hub, also push the files of --hard_examples and --save_predictions, which contain "
            "texts, images and labels of your data. They are not pushed by default."
        },
    )
    save_models: bool = field(
        default=True,
        metadata={"help": "Save the trained model; with false, only results and model card are saved."},
    )

    def __post_init__(self):
        if self.hard_examples < 0:
            raise UserError(f"--hard_examples must be at least 0, not {self.hard_examples}.")
        if self.seeds and not self.compare:
            raise UserError("--seeds goes with --compare: a single training takes --seed.")
        for seed in self.seeds:
            check_seed("seeds", seed)
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"--seeds must differ, which {' '.join(map(str, self.seeds))} do not.")


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: short, a directory's name: `"erm"`, `"kl"`.
        method: as tables call it: `"ERM"`, `"RGD (kl, tau=1)"`.
        args: its training arguments, with its own `output_dir`.
    """

    name: str
    method: str
    args: ReweightedTrainingArguments


@dataclass(frozen=True)
class RunPlan:
    """What will be trained, checked against what the output directory holds.

    Attributes:
        root: the output directory.
        runs: the trainings, in order; more than one is a comparison, below `root`.
        settings: the recipe's own settings, recorded with the results.
        options: what the runs leave behind.
        finished: whether all is trained, and to be pushed to the Hub: `push_runs` is what is left to do.
    """

    root: Path
    runs: tuple[Run, ...]
    settings: Mapping[str, Any]
    options: RunArguments
    finished: bool = False


def prepare_runs(
    args: ReweightedTrainingArguments, run_args: RunArguments, settings: Mapping[str, Any]
) -> RunPlan:
    """Decide what to train and make sure that nothing in the output directory is lost. Call it before loading data.

    Nothing is discarded yet, also with `--overwrite_output_dir`: `runs.run_plan` does that when the first run begins.

    Args:
        args: training arguments; `output_dir` is the directory of all runs.
        run_args: whether to compare, whether to overwrite, what to save.
        settings: the recipe's own settings (see `results.settings_of`).

    Raises:
        UserError: the rule needs more than losses; the directory holds a finished run that is not to be pushed, one with
            other settings, or one that cannot leave what is asked for any more (`--hard_examples`,
            `--save_predictions`); the runs would remove the model that they begin from, or save over it; or a model is to
            be pushed to the Hub, but not to be saved.
        HubError: it may not be pushed.
    """
    check_rule(args.reweighting)
    if args.push_to_hub and not run_args.save_models:
        raise UserError("--push_to_hub needs the saved model: leave out --save_models false.")
    runs = tuple(plan_runs(args, run_args.compare, run_args.seeds))
    plan = RunPlan(Path(str(args.output_dir)), runs, settings, run_args)
    problem = None
    if PartialState().is_main_process:
        problem = _conflict(plan)
    problem = same_everywhere(problem)
    if problem is not None:
        raise UserError(problem)
    if args.push_to_hub:
        on_main_process(lambda: check_repository(plan.runs[-1].args))
    return replace(plan, finished=same_everywhere(_is_left_to_push(plan)))


def plan_runs(args: ReweightedTrainingArguments, compare: bool, seeds: Sequence[int] = ()) -> list[Run]:
    """The runs that `args` ask for: one in `output_dir`, or with `compare` ERM and the re-weighted one below it.

    Args:
        args: training arguments.
        compare: whether to compare with ERM.
        seeds: seeds of a comparison; by default the one of `args`.

    Raises:
        UserError: `compare` without a re-weighting to compare ERM with.
    """
    if not compare:
        return [Run("erm" if args.reweighting == "none" else args.reweighting, method_name(args), args)]
    if args.reweighting == "none":
        raise UserError(
            "--compare trains ERM and a re-weighting: choose one with --reweighting kl (or chi2, reverse_kl)."
        )
    repository = args.hub_model_id or Path(str(args.output_dir)).name
    runs = []
    for seed in seeds or [args.seed]:
        ending = f"-seed{seed}" if seeds else ""
        for name, method in (("erm", as_erm(args)), (args.reweighting, args)):
            changed = copy.copy(method)
            changed.output_dir = str(Path(str(args.output_dir)) / f"{name}{ending}")
            changed.seed = seed
            # Only one model goes to the Hub, the last: all would land in the same repository.
            changed.push_to_hub = False
            runs.append(Run(f"{name}{ending}", method_name(changed), changed))
    last = runs[-1].args
    last.push_to_hub, last.hub_model_id = args.push_to_hub, repository
    return runs


def as_erm(args: ReweightedTrainingArguments) -> ReweightedTrainingArguments:
    """A copy of `args` for plain training, where what belongs to their rule has its default."""
    plain = copy.copy(args)
    for field_of_rule in fields(ReweightingArguments):
        if field_of_rule.name not in SETTINGS_OF_ALL_METHODS:
            setattr(plain, field_of_rule.name, field_of_rule.default)
    plain.reweighting = "none"
    return plain


def all_settings(run: Run, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is recorded with: the recipe's own settings, the training arguments the user chose, and the number of processes."""
    always = (
        "reweighting",
        "tau",
        "seed",
        "learning_rate",
        "num_train_epochs",
        "per_device_train_batch_size",
    )
    chosen = {**{name: getattr(run.args, name) for name in always}, **settings_of(run.args)}
    return {**settings, **chosen, "world_size": run.args.world_size}


def recorded_runs(plan: RunPlan) -> dict[str, Any]:
    """The records of the comparison that the output directory holds, by the names of its runs."""
    return (read_results(plan.root) or {}).get("runs", {})


def ways_out(plan: RunPlan) -> str:
    """What to do where the output directory holds what the runs of a plan must not replace unasked."""
    if lost_model(plan, overwrite=True):
        return "Choose another --output_dir."
    return "Choose another --output_dir, or give --overwrite_output_dir to discard it and start again."


def _conflict(plan: RunPlan) -> str | None:
    """Why these runs must not be trained in these directories, or None."""
    if plan.root.exists() and not plan.root.is_dir():
        return f"the output directory {plan.root} is a file. Choose another --output_dir."
    if plan.options.overwrite_output_dir:
        return lost_model(plan, overwrite=True)
    if _is_finished(plan) and not _is_left_to_push(plan):
        return f"the output directory {plan.root} already holds a finished run ({RESULTS_NAME}). {ways_out(plan)}"
    for run in plan.runs:
        problem = _conflict_of_run(run, plan)
        if problem is not None:
            return problem
    if len(plan.runs) == 1:
        return None
    return _conflict_of_comparison(plan) or lost_model(plan, overwrite=False)


def _conflict_of_run(run: Run, plan: RunPlan) -> str | None:
    directory, options = Path(str(run.args.output_dir)), plan.options
    finished, checkpoint = (directory / RESULTS_NAME).is_file(), last_checkpoint(directory)
    if not finished and checkpoint is None:
        return None
    before = recorded_settings(directory)
    if before is None:  # a checkpoint of the Hub, or of another script
        say(
            f"note: {directory} holds a checkpoint, but no {SETTINGS_NAME}: it is resumed with the settings that are given now, "
            "whatever it was begun with."
        )
        before = {}
    elif changed := _changed(before, run, plan.settings):
        return (
            f"{directory} holds a run with other settings ({changed}). Give the same settings to resume it or to push it. "
            f"{ways_out(plan)}"
        )
    count = options.hard_examples
    if not finished and count and not (Path(str(checkpoint)) / f"{HardExamples.name}.safetensors").is_file():
        return (
            f"{directory} holds an interrupted run that kept no hard examples, and --hard_examples lists those of a whole "
            f"training. Leave out --hard_examples to resume it. {ways_out(plan)}"
        )
    wanting = []
    # Earlier versions did not record how many were asked for.
    listed = (directory / f"{HARD_EXAMPLES}.json").is_file() and count <= before.get("hard_examples", count)
    if finished and count and not listed:
        wanting.append(f"--hard_examples {count}")
    predicted = before.get("save_predictions", True) and any(directory.glob(f"{PREDICTIONS}*.parquet"))
    if finished and options.save_predictions and not predicted:
        wanting.append("--save_predictions")
    if wanting:
        return (
            f"{directory} holds a finished run without what {' and '.join(wanting)} would have written, and only a training "
            f"writes it. Leave that out to use the results as they are. {ways_out(plan)}"
        )
    return None


def _conflict_of_comparison(plan: RunPlan) -> str | None:
    """Why runs cannot be added to the comparison that the output directory holds, or None."""
    by_rule = {run.args.reweighting: run for run in plan.runs}
    for name, record in recorded_runs(plan).items():
        run = by_rule.get(record["settings"]["reweighting"])
        changed = run and _changed({**record["settings"], "seed": run.args.seed}, run, plan.settings)
        if changed:
            return (
                f"{plan.root} holds a comparison whose run {name} has other settings ({changed}). Give the same settings to "
                f"add to it. {ways_out(plan)}"
            )
    return None


def _is_finished(plan: RunPlan) -> bool:
    """Whether the output directory holds results that this plan does not add to; seeds are added to a comparison."""
    results = read_results(plan.root)
    return results is not None and not (len(plan.runs) > 1 and "runs" in results)


def _is_left_to_push(plan: RunPlan) -> bool:
    """Whether all of the plan is trained, and to be pushed to the Hub."""
    files = [
        Path(str(run.args.output_dir)) / name for run in plan.runs for name in (RESULTS_NAME, SETTINGS_NAME)
    ]
    asked = plan.runs[-1].args.push_to_hub and not plan.options.overwrite_output_dir
    return asked and all(path.is_file() for path in (plan.root / RESULTS_NAME, *files))


def _changed(before: Mapping[str, Any], run: Run, settings: Mapping[str, Any]) -> str:
    """The settings of `run` that decide its result and differ from those recorded `before`, in words."""
    now = json.loads(json.dumps(all_settings(run, settings), default=str))
    # Earlier versions left text tokens out, and recorded an enumeration by its name.
    unknown = TEXT_TOKENS if ROWS not in before else ()
    changed = [
        name
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
        and before.get(name) != str(getattr(run.args, name, None))
        and name not in (ROWS, *unknown)
        and not name.startswith(REPORTING_SETTINGS)
    ]
    return "; ".join(f"{name}: {before.get(name)!r}, now {now.get(name)!r}" for name in changed)
