"""What `--overwrite_output_dir` removes: all that runs wrote, and nothing that was there before them."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rgd_hf.checkpoints import last_checkpoint, step_of
from rgd_hf.comparison.compare import SETTINGS_NAME
from rgd_hf.hub.push import model_files
from rgd_hf.scripts.training.hard_examples import HARD_EXAMPLES
from rgd_hf.scripts.training.predictions import PREDICTIONS
from rgd_hf.scripts.training.pushing import CARD_NAME
from rgd_hf.scripts.training.results import OWN_FILES, RESULTS_NAME, read_results, recorded_settings

if TYPE_CHECKING:
    from rgd_hf.scripts.training.plans import RunPlan

_MODEL_SETTINGS = ("model_name_or_path", "weights")
_BESIDE_THE_MODEL = (
    CARD_NAME, TRAINER_STATE_NAME, TRAINING_ARGS_NAME, f"_{TRAINING_ARGS_NAME}",
    "preprocessing.skops", "preprocessing_versions.json",
)  # fmt: skip

_LISTS = {
    "hard_examples": (f"{HARD_EXAMPLES}.html", f"{HARD_EXAMPLES}.json"),
    "save_predictions": (f"{PREDICTIONS}.parquet",),
}
"""What the options leave behind, by the settings that ask for it."""


def discard(plan: "RunPlan") -> None:
    """Remove the checkpoints, results, lists, models and cards of the plan's runs; files that no run wrote are kept."""
    for directory in {plan.root, *(Path(str(run.args.output_dir)) for run in plan.runs)}:
        written = written_by_run(directory)
        for checkpoint in filter(_is_checkpoint, directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*")):
            if checkpoint.is_symlink():
                checkpoint.unlink()
            else:
                shutil.rmtree(checkpoint)
        for name in (RESULTS_NAME, SETTINGS_NAME, *written):
            (directory / name).unlink(missing_ok=True)


def lost_model(plan: "RunPlan", overwrite: bool) -> str | None:
    """Why runs of a plan must not begin from the model that the user names, which they would remove or save over; or None.

    Args:
        plan: from `prepare_runs`.
        overwrite: whether the runs discard what the output directory holds. A single run that does not may save over the
            model that it trains further: nothing else begins from it.
    """
    runs = {Path(str(run.args.output_dir)).resolve() for run in plan.runs}
    if not overwrite and (len(runs) == 1 or all(map(read_results, runs))):
        return None
    discarded = {plan.root.resolve(), *runs} if overwrite else set()
    for setting in _MODEL_SETTINGS:
        given = plan.settings.get(setting)
        model = Path(str(given)).resolve()
        if given is None or not model.exists():
            continue
        whole = model.is_dir()
        folder = model if whole else model.parent
        above = (model, *model.parents)
        lost = any(_is_checkpoint(path) and path.parent in discarded | runs for path in above)
        if plan.runs[0].args.save_total_limit:  # by which the Trainer deletes folders of all such names
            lost |= any(path.parent in runs and path.match(f"{PREFIX_CHECKPOINT_DIR}-*") for path in above)
        if folder in discarded:
            files = {*written_by_run(folder)} & {*model_files(folder)}
            lost |= bool(files) if whole else model.name in files
        if folder in runs and plan.options.save_models:
            lost |= whole or model.match("model*.safetensors")
        if lost:
            who = "--overwrite_output_dir or a run" if overwrite else "a run of the comparison"
            return (
                f"--{setting} {given} is in the output directory, where {who} would delete it or save another model over it. "
                "Copy it elsewhere and name the copy, or choose another --output_dir."
            )
    return None


def _is_checkpoint(path: Path) -> bool:
    """Whether a path is a checkpoint of the Trainer's, by its name."""
    return path.is_dir() and step_of(path) is not None


def own_files(directory: Path) -> list[str]:
    """The names of the user's files, those in the directory of a run that begins; of one that is resumed as it recorded them."""
    before = recorded_settings(directory)
    if before is not None and last_checkpoint(directory) is not None:
        return before.get(OWN_FILES, [])
    names = {path.name for path in directory.iterdir() if path.is_file()} if directory.is_dir() else set()
    return sorted(names - {*written_by_run(directory)})


def written_by_run(directory: Path) -> list[str]:
    """The names of the model's files, of those beside them and of lists that the run in a directory wrote."""
    before, record = recorded_settings(directory), read_results(directory) or {}
    if before is None or not directory.is_dir():
        return []
    of_sets = {path.name for path in directory.glob(f"{PREDICTIONS}_*.parquet")}
    lists = {
        name for asked, of in _LISTS.items() if "files" in record or before.get(asked, True) for name in of
    }
    names = {*model_files(directory), *_BESIDE_THE_MODEL, *of_sets, *lists} - {*before.get(OWN_FILES, ())}
    if "files" in record:
        names &= {*record["files"]}
    unknown = "files" not in record or OWN_FILES not in before
    if unknown:
        names -= of_sets  # they may be the user's
    if unknown or not _has_code(directory):
        names = {name for name in names if not name.endswith(".py")}  # so may these
    return sorted(names)


def _has_code(directory: Path) -> bool:
    """Whether the model in a directory brings code of its own."""
    config = directory / "config.json"
    return config.is_file() and "auto_map" in json.loads(config.read_text(encoding="utf-8"))
