"""`accelerate launch recipes/glue.py` in processes of its own: one, two, killed and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

import glue
from helpers.recipes import ROOT, launch


def output(tiny_run: list[str]) -> Path:
    return Path(tiny_run[tiny_run.index("--output_dir") + 1])


def replaced(arguments: list[str], **options) -> list[str]:
    """`arguments` with the values of options replaced."""
    copy = list(arguments)
    for name, value in options.items():
        copy[copy.index(f"--{name}") + 1] = str(value)
    return copy


def results(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text())


def metrics(record: dict) -> dict:
    timings = ("runtime", "per_second", "preparation_time")
    return {k: v for k, v in record.items() if k.startswith("eval_") and not k.endswith(timings)}


def test_two_processes_train_the_same_as_one(tiny_run, tmp_path):
    out, plain = output(tiny_run), tmp_path / "without_dropout"
    folder = tiny_run[tiny_run.index("--model_name_or_path") + 1]
    AutoTokenizer.from_pretrained(folder).save_pretrained(plain)
    model = AutoModel.from_pretrained(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model.save_pretrained(plain)
    one = replaced(tiny_run, model_name_or_path=plain)
    two = replaced(one, per_device_train_batch_size=4, output_dir=tmp_path / "two")
    glue.main([*one, "--compare"])
    two.append("--compare")
    done = launch(two, "--multi_gpu", "--num_processes", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("seconds") == 1, "the table is printed once"
    for method in ("erm", "kl"):
        assert results(tmp_path / "two" / method)["settings"]["world_size"] == 2
        states = [load_file(folder / method / "model.safetensors") for folder in (out, tmp_path / "two")]
        for name, expected in states[0].items():
            torch.testing.assert_close(
                states[1][name], expected, rtol=1e-4, atol=1e-5, msg=f"{method} {name}"
            )


def test_a_killed_comparison_goes_on_to_the_numbers_of_one_never_killed(tiny_run):
    out = output(tiny_run)
    # Checkpoints in the middle of epochs: the order of the samples has to go on too.
    tiny_run = replaced(tiny_run, num_train_epochs=10)
    tiny_run += ["--compare", "--eval_strategy", "no", "--save_strategy", "steps", "--save_steps", "15"]
    command = [sys.executable, str(ROOT / "recipes" / "glue.py"), *tiny_run]
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while not list((out / "kl").glob("checkpoint-*/trainer_state.json")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it finished before it could be killed"
    erm = results(out / "erm")
    interrupted_at = sorted(path.name for path in (out / "kl").iterdir())
    assert not (out / "all_results.json").exists() and "run_settings.json" in interrupted_at

    resumed = [*glue.main(tiny_run)["runs"].values()]
    assert results(out)["runs"]["erm"] == erm == resumed[0], "the finished run is not trained again"

    whole = glue.main(replaced(tiny_run, output_dir=out.parent / "never_killed"))
    never_killed = [*whole["runs"].values()]
    for record, expected in zip(resumed, never_killed, strict=True):
        # Equal but for the rounding of another number of threads.
        assert metrics(record) == pytest.approx(metrics(expected), rel=1e-6)
    states = [load_file(folder / "kl" / "model.safetensors") for folder in (out, out.parent / "never_killed")]
    for name, expected in states[1].items():
        torch.testing.assert_close(states[0][name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [("--num_processes", "1"), ("--multi_gpu", "--num_processes", "2")])
def test_a_user_error_is_one_line_and_a_failure(options, tiny_run):
    done = launch(replaced(tiny_run, train_file="nowhere.csv"), *options)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("glue.py: error:")]
    assert len(set(lines)) == 1 and "there is no file 'nowhere.csv'" in lines[0]
    assert "rgd_hf/scripts" not in done.stderr, "no traceback of the recipe"
