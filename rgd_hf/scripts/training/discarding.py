"""What `--overwrite_output_dir` removes: all that runs wrote, and nothing that was there before them."""

import json
import shutil
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from rgd_hf.checkpoints import last_checkpoint
from rgd_hf.comparison.compare import SETTINGS_NAME
from rgd_hf.hub.push import model_files
from rgd_hf.scripts.training.hard_examples import HARD_EXAMPLES
from rgd_hf.scripts.training.plans import OWN_FILES, RunPlan, recorded_settings
from rgd_hf.scripts.training.predictions import PREDICTIONS
from rgd_hf.scripts.training.pushing import CARD_NAME
from rgd_hf.scripts.training.results import RESULTS_NAME, read_results

_BESIDE_THE_MODEL = (
    CARD_NAME, TRAINER_STATE_NAME, TRAINING_ARGS_NAME, f"_{TRAINING_ARGS_NAME}",
    "preprocessing.skops", "preprocessing_versions.json",
)  # fmt: skip


def discard(plan: RunPlan) -> None:
    """Remove the checkpoints, results, lists, models and cards of the plan's runs; files that no run wrote are kept."""
    model = Path(str(plan.settings.get("model_name_or_path"))).resolve()
    for directory in {plan.root, *(Path(str(run.args.output_dir)) for run in plan.runs)}:
        # The model that is trained on may be there; the run saves its own over it.
        written = [] if directory.resolve() == model else written_by_run(directory)
        for checkpoint in directory.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        left = (
            directory / RESULTS_NAME,
            directory / SETTINGS_NAME,
            *directory.glob(f"{PREDICTIONS}*.parquet"),
            *directory.glob(f"{HARD_EXAMPLES}.*"),
            *(directory / name for name in written),
        )
        for path in left:
            path.unlink(missing_ok=True)


def own_files(directory: Path) -> list[str]:
    """The names of the user's files, those in the directory of a run that begins; of one that is resumed as it recorded them."""
    before = recorded_settings(directory)
    if before is not None and last_checkpoint(directory) is not None:
        return before.get(OWN_FILES, [])
    names = {path.name for path in directory.iterdir() if path.is_file()} if directory.is_dir() else set()
    return sorted(names - {*written_by_run(directory)})


def written_by_run(directory: Path) -> list[str]:
    """The names of the model's files and of those beside them that the run in a directory wrote."""
    before, record = recorded_settings(directory), read_results(directory) or {}
    if before is None or not directory.is_dir():
        return []
    names = {*model_files(directory), *_BESIDE_THE_MODEL} - {*before.get(OWN_FILES, ())}
    if "files" in record:
        names &= {*record["files"]}
    if "files" not in record or OWN_FILES not in before or not _has_code(directory):
        names = {name for name in names if not name.endswith(".py")}  # else they may be the user's
    return sorted(names)


def _has_code(directory: Path) -> bool:
    """Whether the model in a directory brings code of its own."""
    config = directory / "config.json"
    return config.is_file() and "auto_map" in json.loads(config.read_text(encoding="utf-8"))
