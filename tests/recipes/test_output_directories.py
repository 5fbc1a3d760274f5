"""What an output directory holds is kept, added to, resumed or refused, and never taken for something else."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
from transformers import Trainer

import demo
import glue
import tabular
from helpers.recipes import changed, output_of, sentences
from rgd_hf.hub.errors import HubError
from rgd_hf.scripts.errors import UserError


@pytest.fixture
def short(tiny_run) -> list[str]:
    """Two steps, with a checkpoint after each."""
    return changed(
        tiny_run, num_train_epochs=None, max_steps=2, eval_strategy="no", save_strategy="steps", save_steps=1
    )


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def interrupt(folder: Path) -> None:
    """Leave `folder` as if the run had been killed before its results were written."""
    (folder / "all_results.json").unlink()


@pytest.mark.parametrize(
    "options, error, complaint",
    [
        (["--train_file", "typo.csv"], UserError, "there is no file 'typo.csv'"),
        (["--class_weights", "1,2,3"], UserError, "lists 3 weights"),
        (["--push_to_hub"], HubError, "cannot be pushed to"),
    ],
)
def test_nothing_is_discarded_before_the_first_run_begins(options, error, complaint, short):
    glue.main([*short, "--save_predictions"])
    before = content(output_of(short))
    with pytest.raises(error, match=complaint):
        glue.main([*short, *options, "--overwrite_output_dir"])
    assert content(output_of(short)) == before
    again = glue.main([*short, "--overwrite_output_dir", "--tau", "3"])
    assert again["settings"]["tau"] == 3 and not list(output_of(short).glob("*.parquet"))


def test_the_model_of_a_discarded_run_goes_with_it_and_the_users_files_stay(short):
    folder, mine = (
        output_of(short),
        (
            *("vocab_of_mine.txt", "notes.txt", "README.txt", "hard_examples.csv", "predictions_old.parquet"),
            *("analysis.py", "my.model", "predictions_reviewed.parquet", "checkpoint-notes.txt"),
        ),
    )
    folder.mkdir()
    for name in mine[:5]:
        (folder / name).write_text("mine")
    glue.main([*short, "--save_predictions", "--hard_examples", "4"])
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-best")
    short += [
        "--save_total_limit",
        "9",
    ]  # the recipe's is 1, and the Trainer counts all folders of such names
    saved = {path.name for path in folder.iterdir()} - {*mine}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "trainer_state.json"} <= saved
    assert {"predictions.parquet", "hard_examples.json", "hard_examples.html"} <= saved
    for name in mine[5:]:  # while nothing runs
        (folder / name).write_text("mine")
    (folder / "adapter_config.json").write_text("{}")  # not of the run either, though a model may have one
    glue.main([*short, "--overwrite_output_dir", "--save_models", "false"])
    left = {path.name for path in folder.iterdir() if path.is_file()}
    assert left == {
        *mine,
        "adapter_config.json",
        "README.md",
        "trainer_state.json",
        "all_results.json",
        "run_settings.json",
    }
    assert all((folder / name).read_text() == "mine" for name in mine)
    assert (folder / "checkpoint-best" / "model.safetensors").is_file()


def test_a_model_is_not_discarded_by_the_runs_that_begin_from_it(short, tmp_path):
    glue.main(short)
    folder, before = output_of(short), content(output_of(short))
    for model in (folder, folder / "checkpoint-2"):
        options = changed(short, model_name_or_path=str(model))
        with pytest.raises(UserError, match=r"finished run .*\. Choose another --output_dir\.$"):
            glue.main(options)
        for more in ([], ["--compare"]):
            with pytest.raises(UserError, match="Copy it elsewhere and name the copy"):
                glue.main([*options, *more, "--overwrite_output_dir"])
    assert content(folder) == before
    copy = shutil.copytree(folder, tmp_path / "copy")
    options = changed(short, model_name_or_path=str(copy))
    found = glue.main([*options, "--overwrite_output_dir", "--compare"])
    assert list(found["runs"]) == ["erm", "kl"] and content(copy) == before
    assert glue.main([*options, "--compare"]) == found


def test_a_table_that_does_not_fit_discards_nothing(tmp_path):
    options = [
        "--data",
        "breast_cancer",
        "--output_dir",
        str(tmp_path),
        "--num_train_epochs",
        "1",
        "--use_cpu",
    ]
    tabular.main(options)
    before = content(tmp_path)
    with pytest.raises(UserError, match="3 weights"):
        tabular.main([*options, "--class_weights", "1,2,3", "--overwrite_output_dir"])
    assert content(tmp_path) == before


def test_seeds_and_rules_are_added_to_a_comparison(short, tmp_path):
    def metrics(results):
        return {name: run["eval_loss"] for name, run in results["runs"].items()}

    first = glue.main([*short, "--compare", "--seeds", "0"])
    second = glue.main([*short, "--compare", "--seeds", "1"])
    at_once = glue.main(changed([*short, "--compare", "--seeds", "0", "1"], output_dir=tmp_path / "at_once"))
    assert list(second["runs"]) == list(at_once["runs"]) and metrics(second) == metrics(at_once)
    assert second["comparison"] == at_once["comparison"] and first["runs"].items() <= second["runs"].items()
    assert glue.main([*short, "--compare", "--seeds", "0"]) == second

    third = glue.main([*short, "--compare", "--seeds", "1", "--reweighting", "chi2"])
    assert metrics(second).items() < metrics(third).items() and "chi2-seed1" in third["runs"]
    found = third["comparison"]
    assert found["baseline"] == "ERM"
    assert {name: of["n"] for name, of in found["differences"].items()} == {
        "RGD (kl, tau=1)": 2,
        "RGD (chi2, tau=1)": 1,
    }
    assert json.loads((output_of(short) / "all_results.json").read_text()) == third

    before = content(output_of(short))
    with pytest.raises(
        UserError, match=r"run erm-seed0 has other settings \(learning_rate: 0.001, now 0.01\)"
    ):
        glue.main([*changed(short, learning_rate=0.01), "--compare", "--seeds", "2"])
    assert content(output_of(short)) == before
    anew = glue.main([*short, "--compare", "--seeds", "2", "--overwrite_output_dir"])
    assert list(anew["runs"]) == ["erm-seed2", "kl-seed2"]


def test_a_seed_that_a_comparison_has_by_another_name_counts_once(short):
    glue.main([*short, "--compare"])
    results = glue.main([*short, "--compare", "--seeds", "3", "4", "--reweighting", "chi2"])
    assert list(results["runs"]) == ["erm-seed3", "kl", "chi2-seed3", "erm-seed4", "chi2-seed4"]
    found = results["comparison"]
    assert found["baseline"] == "ERM" and found["differences"]["RGD (kl, tau=1)"]["n"] == 1


def test_other_data_are_neither_resumed_nor_compared(short, write_rows):
    glue.main(short)
    interrupt(output_of(short))
    write_rows("train.csv", sentences(40))
    with pytest.raises(
        UserError, match=r"an interrupted run on other data \(train: 48 rows.*now train: 40 rows"
    ):
        glue.main(short)
    write_rows("train.csv", sentences(48))
    glue.main(short)

    pair = changed([*short, "--compare"], output_dir=output_of(short).parent / "pair")
    glue.main(pair)
    write_rows("validation.csv", sentences(20, seed=1))
    with pytest.raises(
        UserError, match=r"a run to compare with on other data .*evaluation: 24 rows, now .* 20"
    ):
        glue.main([*pair, "--seeds", "8"])
    interrupt(output_of(pair) / "kl")
    with pytest.raises(UserError, match="on other data"):
        glue.main(pair)
    assert len(glue.main([*pair, "--overwrite_output_dir"])["runs"]) == 2


@pytest.mark.parametrize("only_model", [False, True])
def test_an_interrupted_run_ends_as_if_it_had_not_been(only_model, short, tmp_path, monkeypatch, capsys):
    options = changed(short, max_steps=6, save_steps=2, learning_rate=1e-2, save_only_model=only_model)
    whole = glue.main(changed(options, output_dir=tmp_path / "whole"))
    step, steps = Trainer.training_step, itertools.count(1)

    def killed(*args, **keywords):
        if next(steps) == 4:
            raise KeyboardInterrupt
        return step(*args, **keywords)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Trainer, "training_step", killed)
        glue.main(options)
    capsys.readouterr()
    assert glue.main(options)["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-6)
    assert ("save_only_model" in capsys.readouterr().out) == only_model


def test_hard_examples_cannot_be_asked_for_after_an_interruption(short):
    glue.main(short)
    interrupt(output_of(short))
    with pytest.raises(UserError, match=r"kept no hard examples.* Leave out --hard_examples to resume"):
        glue.main([*short, "--hard_examples", "4"])
    assert glue.main(short)["epoch"] > 0
    glue.main([*short, "--hard_examples", "4", "--overwrite_output_dir"])
    interrupt(output_of(short))
    glue.main([*short, "--hard_examples", "6"])
    assert len(json.loads((output_of(short) / "hard_examples.json").read_text())) == 6


def test_lists_that_a_finished_run_did_not_write_are_missed(short):
    pair = [*short, "--compare"]
    results = glue.main(pair)
    for name in ("predictions_reviewed.parquet", "hard_examples.csv"):  # the user's
        (output_of(short) / "erm" / name).touch()
        (output_of(short) / "kl" / name).touch()
    for options in (
        ["--hard_examples", "4"],
        ["--save_predictions"],
        ["--hard_examples", "4", "--save_predictions"],
    ):
        named = re.escape(" and ".join(" ".join(options).replace(" --", "|--").split("|")))
        with pytest.raises(UserError, match=rf"finished run without what {named} .*Leave that out"):
            glue.main([*pair, *options])
    assert glue.main(pair) == results
    lists = [*pair, "--save_predictions", "--hard_examples"]
    glue.main([*lists, "4", "--overwrite_output_dir"])
    glue.main([*lists, "4"])
    glue.main([*lists, "2"])
    with pytest.raises(UserError, match="without what --hard_examples 8 would have written"):
        glue.main([*lists, "8"])


def test_a_recipe_that_lists_no_hard_examples_says_so(tmp_path):
    with pytest.raises(UserError, match="this recipe lists none"):
        demo.main(["--output_dir", str(tmp_path), "--hard_examples", "4", "--use_cpu"])


def test_files_of_earlier_versions_are_resumed_and_unknown_ones_with_a_note(short, capsys):
    options = [*short, "--lr_scheduler_type", "cosine"]
    glue.main(options)
    interrupt(output_of(options))
    path = output_of(options) / "run_settings.json"
    settings = json.loads(path.read_text())
    assert settings["lr_scheduler_type"] == "cosine" and settings["rows"] == {"train": 48, "evaluation": 24}
    settings["lr_scheduler_type"] = "SchedulerType.COSINE"
    path.write_text(json.dumps({k: v for k, v in settings.items() if k not in ("rows", "hard_examples")}))
    with pytest.raises(UserError, match=r"lr_scheduler_type: 'SchedulerType.COSINE', now None"):
        glue.main(short)
    glue.main(options)
    interrupt(output_of(options))
    path.unlink()
    glue.main(options)
    assert "holds a checkpoint, but no run_settings.json: it is resumed" in capsys.readouterr().out
