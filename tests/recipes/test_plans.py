"""What runs are planned, and which checkpoint a run goes on from."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import pytest
from transformers import SchedulerType

from rgd_hf import ReweightedTrainingArguments
from rgd_hf.checkpoints import last_checkpoint, passed_over
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.training.discarding import discard
from rgd_hf.scripts.training.plans import RunArguments, RunPlan, all_settings, plan_runs, prepare_runs
from rgd_hf.scripts.training.results import read_results, settings_of, write_results


@pytest.fixture
def args(tmp_path) -> ReweightedTrainingArguments:
    return ReweightedTrainingArguments(
        output_dir=str(tmp_path / "out"), use_cpu=True, tau=2.5, hub_token="secret"
    )


def test_one_run_stays_in_the_output_directory(args):
    (run,) = plan_runs(args, compare=False)
    assert (run.name, run.method, run.args) == ("kl", "RGD (kl, tau=2.5)", args)


def test_runs_are_called_by_their_method(args):
    args.reweighting, args.normalize_weights = "focal", True
    (run,) = plan_runs(args, compare=False)
    assert (run.name, run.method) == ("focal", "Focal loss (gamma=2, mean-one weights)")


def test_a_comparison_differs_in_the_method_alone(args):
    args.push_to_hub = True
    plain, reweighted = plan_runs(args, compare=True)
    assert (plain.name, plain.method) == ("erm", "ERM") and reweighted.method == "RGD (kl, tau=2.5)"
    differing = {
        field.name
        for field in dataclasses.fields(args)
        if getattr(plain.args, field.name) != getattr(reweighted.args, field.name)
    }
    assert differing == {"output_dir", "reweighting", "tau", "push_to_hub", "hub_model_id"}
    assert not plain.args.push_to_hub and reweighted.args.hub_model_id == "out"
    assert args.reweighting == "kl" and args.output_dir.endswith("out")


@pytest.mark.parametrize(
    "rule, of_rule",
    [
        ("relative_kl", {"reweighting_args": "decay=0.9"}),
        ("kl", {"tau": 2.5}),
        ("kl", {"target_ess": 0.9}),
        ("focal", {"focal_gamma": 3.0}),
        ("tilted", {"tilt": 2.0}),
        ("cvar", {"cvar_fraction": 0.3}),
    ],
)
def test_erm_of_a_comparison_has_no_settings_of_the_rule_and_keeps_the_others(rule, of_rule, tmp_path):
    of_rule |= {"normalize_weights": True, "reweighting_warmup_ratio": 0.2, "reweighting_stop_ratio": 0.9}
    of_all = {"class_weights": "1,2", "reweighting_level": "sample", "fused_lm_head": False}
    args = ReweightedTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, reweighting=rule, **of_rule, **of_all
    )
    plain, reweighted = plan_runs(args, compare=True)
    assert plain.method == "ERM" != reweighted.method
    assert {name: getattr(plain.args, name) for name in of_all} == of_all
    recorded, chosen = settings_of(plain.args), settings_of(reweighted.args)
    assert not set(of_rule) & set(recorded) and set(of_rule) <= set(chosen)


def test_comparing_erm_with_itself_is_refused(args):
    args.reweighting = "none"
    with pytest.raises(UserError, match="--reweighting kl"):
        plan_runs(args, compare=True)


def test_settings_are_what_differs_from_the_defaults_without_tokens(args):
    settings = settings_of(args)
    assert settings["tau"] == 2.5 and "hub_token" not in settings and "weight_decay" not in settings
    assert json.loads(json.dumps(settings)) == settings


def test_secrets_alone_are_left_out():
    @dataclasses.dataclass
    class Arguments:
        eos_token: str | None = None
        pad_token: str | None = None
        hub_token: str | None = None
        service_token: str | None = None
        lr_scheduler_type: str = "linear"

    given = Arguments("<end>", "<pad>", "secret", "secret", SchedulerType.COSINE)
    expected = {"eos_token": "<end>", "pad_token": "<pad>", "lr_scheduler_type": "cosine"}
    assert settings_of(given) == expected and type(settings_of(given)["lr_scheduler_type"]) is str


@pytest.mark.parametrize("seeds", [None, [0, 1]], ids=["single", "comparison"])
@pytest.mark.parametrize(
    "place, setting",
    [
        *((place, "model_name_or_path") for place in (
            ".", "base", "checkpoint-4", "checkpoint-4/base", "checkpoint-best", "erm-seed0", "erm-seed0/base", "erm-seed0/checkpoint-4",
            "erm-seed0/checkpoint-best", "kl-seed1/checkpoint-2", "kl-seed7", "../elsewhere",
        )),
        *((place, "weights") for place in (
            "model.safetensors", "pretrained.pth", "erm-seed0/model.safetensors", "kl-seed0/pretrained.pth", "kl-seed1/checkpoint-4/w.pth",
        )),
    ],
)  # fmt: skip
def test_a_model_that_runs_would_remove_or_save_over_is_refused(place, setting, seeds, tmp_path):
    """What would become of it is tried: refused is what would be lost, but for a single run that trains it further."""
    compare, names = seeds is not None, ("model.safetensors", "config.json")
    for (overwrite, recorded), saves in itertools.product(
        [(False, False), (True, False), (True, True)], [False, True]
    ):
        root = tmp_path / "out"
        model = root / place
        for name in names if setting == "model_name_or_path" else [""]:
            (model / name).parent.mkdir(parents=True, exist_ok=True)
            (model / name).write_text("base")
        folder = model if model.is_dir() else model.parent
        if recorded:
            (folder / "run_settings.json").write_text(json.dumps({"own_files": []}))
        args = ReweightedTrainingArguments(output_dir=str(root), use_cpu=True, save_total_limit=1)
        options = RunArguments(
            compare=compare, seeds=seeds or [], overwrite_output_dir=overwrite, save_models=saves
        )
        settings = {setting: str(model)}
        refused = False
        try:
            prepare_runs(args, options, settings)
        except UserError as error:
            refused = "Copy it elsewhere" in str(error)
        plan = RunPlan(root, tuple(plan_runs(args, compare, seeds or [])), settings, options)
        if overwrite:
            discard(plan)
        for run in plan.runs:
            directory = Path(run.args.output_dir)
            for old in directory.glob("checkpoint-*"):  # as `save_total_limit` does
                shutil.rmtree(old)
            for path in [directory / "checkpoint-4", directory][: 1 + saves]:
                path.mkdir(parents=True, exist_ok=True)
                (path / "model.safetensors").write_text("trained")
        left = [model / name for name in names] if setting == "model_name_or_path" else [model]
        lost = any(not path.is_file() or path.read_text() != "base" for path in left)
        assert refused == (lost and (overwrite or compare)), (overwrite, saves, recorded)
        shutil.rmtree(root)


@pytest.mark.parametrize(
    "name", ["hard_examples.json", "hard_examples.html", "predictions.parquet", "predictions_matched.parquet"]
)
def test_lists_are_discarded_where_the_run_recorded_that_it_wrote_them(name, args, tmp_path):
    root = tmp_path / "out"
    plan = RunPlan(root, tuple(plan_runs(args, compare=False)), {}, RunArguments(overwrite_output_dir=True))
    for mine, asked, finished, listed in itertools.product([False, True], repeat=4):
        root.mkdir()
        (root / name).touch()
        settings = {"own_files": [name] * mine, "hard_examples": 4 * asked, "save_predictions": asked}
        (root / "run_settings.json").write_text(json.dumps(settings))
        if finished:
            write_results(root, {"files": [name] * listed})
        discard(plan)
        wrote = listed if finished else asked and name != "predictions_matched.parquet"  # of any name
        assert [path.name for path in root.iterdir()] == [name] * (mine or not wrote)
        shutil.rmtree(root)


def test_a_comparison_that_is_finished_saves_over_nothing(args, tmp_path):
    settings = {"model_name_or_path": str(tmp_path / "out" / "erm")}
    for run in plan_runs(args, compare=True):
        record = {"settings": json.loads(json.dumps(all_settings(run, settings), default=str))}
        write_results(run.args.output_dir, record)
    assert len(prepare_runs(args, RunArguments(compare=True), settings).runs) == 2


def checkpoint(root, step, state='{"global_step": 1}', files=("optimizer.pt", "scheduler.pt")):
    """A checkpoint with empty `files`; names that end with a slash are folders."""
    folder = root / f"checkpoint-{step}"
    folder.mkdir()
    for name in files:
        (folder / name).mkdir() if name.endswith("/") else (folder / name).touch()
    if state is not None:
        (folder / "trainer_state.json").write_text(state)
    return str(folder)


def test_half_written_checkpoints_are_passed_over(tmp_path):
    assert last_checkpoint(tmp_path / "nowhere") is None and passed_over(tmp_path / "nowhere") is None
    checkpoint(tmp_path, 9)
    whole = checkpoint(tmp_path, 10)
    assert passed_over(tmp_path) is None
    checkpoint(tmp_path, 11, '{"glo')
    checkpoint(tmp_path, 12, None)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == whole
    assert "checkpoint-11, checkpoint-12 in" in passed_over(tmp_path) and "older" in passed_over(tmp_path)


@pytest.mark.parametrize(
    "files, whole",
    [
        (["optimizer.pt", "scheduler.pt"], True),
        (["optimizer.bin", "scheduler.pt", "pytorch_model_fsdp.bin"], True),  # FSDP, FULL_STATE_DICT
        (["optimizer_0/", "scheduler.pt", "pytorch_model_fsdp_0/"], True),  # FSDP, SHARDED_STATE_DICT
        (["optimizer.pt_0", "scheduler.pt"], True),  # SageMaker
        (["rank0-of-4-optimizer.pt", "scheduler.pt"], True),  # FSDP on XLA
        (["global_step3/", "latest"], True),  # DeepSpeed, whose engine has the schedule
        (["model.safetensors"], False),  # save_only_model
        (["model.safetensors", "pytorch_model_fsdp_0/"], False),
        (["optimizer.pt"], False),
        (["scheduler.pt"], False),
    ],
)
def test_a_checkpoint_without_optimizer_and_schedule_is_passed_over(files, whole, tmp_path):
    path = checkpoint(tmp_path, 3, files=files)
    assert last_checkpoint(tmp_path) == (path if whole else None)
    assert (passed_over(tmp_path) is None) == whole


def test_results_are_written_whole(tmp_path):
    assert read_results(tmp_path) is None
    write_results(tmp_path / "deep", {"eval_accuracy": 0.5})
    assert read_results(tmp_path / "deep") == {"eval_accuracy": 0.5}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["all_results.json"]
