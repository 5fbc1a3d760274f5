"""Models of many tasks that were pushed are loaded in a fresh process with an empty cache, as their cards say."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.hub_server import TOKEN, USER
from tests.helpers.releases import LOADS_ADAPTERS
from tests.helpers.worker import ROOT, RemoteError
from tests.hub.conftest import texts
from tests.hub.pushed import PUSHED, card_of, glue_args, leaks, repository, secrets_in

PIPELINES = {
    "launched": ("text-classification", {"text": "word1 good", "text_pair": "word2 bad"}),
    "sft": ("text-generation", "word1 word2"),
    "sft-lora": ("text-generation", "word1 word2"),
    "tokens": ("token-classification", "word1 good"),
    "masked-words": ("fill-mask", "word1 [MASK]"),
    "encoder-decoder": None,  # transformers has no pipeline for them
}
RELOAD = """
import json, sys
from transformers import pipeline
for place, (code, call) in json.loads(sys.argv[1]).items():
    variables = {}
    exec(code, variables)
    if call:
        task, text = call
        options = {"do_sample": False} if task == "text-generation" else {}
        print("FOUND", json.dumps(pipeline(task, model=place)(text, **options), default=float))
    else:
        inputs = variables["processor"]("word1 good", return_tensors="pt")
        print("FOUND", variables["model"].generate(**inputs, max_new_tokens=4, do_sample=False).tolist())
"""


def sft(tmp_path: Path, name: str, *options: str) -> list[str]:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(16, 0)))
    return [
        *("--train_file", str(file), "--holdout_fraction", "0.25", "--model_name_or_path", "acme/llama-tiny"),
        *("--output_dir", str(tmp_path / name), "--max_steps", "2", "--per_device_train_batch_size", "4"),
        *("--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no", *options),
    ]


def reloaded(cards: dict[str, list], hub, home: Path) -> list[str]:
    """What models predict in a process of its own: each is loaded by the code of its card, then by a pipeline."""
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, json.dumps(cards)],
        env={**hub.environment(home, token=None, xet=True), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("FOUND")]


def launched(hub, home: Path, arguments: list[str], *launcher: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *launcher,
        str(ROOT / "recipes" / "glue.py"),
        *arguments,
    ]
    environment = {**hub.environment(home, xet=True), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)


@pytest.fixture(scope="module")
def launched_run(hub, tmp_path_factory) -> tuple[Path, str]:
    """The folder of GLUE's recipe that was launched to push its model by Xet, and what it printed."""
    folder = tmp_path_factory.mktemp("launched")
    hub.requests.clear()
    arguments = glue_args(folder / "launched", "--push_to_hub", "--hub_token", TOKEN)
    done = launched(hub, folder / "home", arguments, "--num_processes", "1")
    assert done.returncode == 0, done.stderr
    assert not secrets_in(folder) and TOKEN not in done.stdout + done.stderr
    assert [request for request in hub.requests if "/xet-write-token/" in request]
    assert not [request for request in hub.requests if request.startswith("PUT /lfs/")]
    return folder / "launched", done.stdout


def test_a_recipe_that_is_launched_says_what_it_pushes(hub, launched_run):
    folder, said = launched_run
    assert "Pushing README.md, config.json, model.safetensors" in said
    assert re.search(r"Not pushed: .*run_settings\.json", said) and "Pushed: http" in said
    pushed = repository(hub, "launched")
    assert set(pushed.files) == PUSHED and leaks(pushed, folder.parent) == []


def test_two_processes_whose_push_fails_say_one_line_and_keep_all(hub, tmp_path):
    out = tmp_path / "two"
    arguments = glue_args(out, "--push_to_hub", "--save_strategy", "no", "--seed", "77")
    with hub.fault(r"POST .*/commit/", 403):
        done = launched(hub, tmp_path / "home", arguments, "--multi_gpu", "--num_processes", "2")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("glue.py: error:")]
    assert len(set(lines)) == 1 and "it is safe in" in lines[0] and "answered 403" in lines[0], done.stderr
    assert "rgd_hf/scripts" not in done.stderr, "no traceback of the recipe"
    assert json.loads((out / "all_results.json").read_text())["eval_accuracy"] >= 0
    assert (out / "model.safetensors").is_file()


def test_models_of_many_tasks_are_loaded_as_their_cards_say(
    fresh, hub, tmp_path, generating_models, launched_run
):
    fresh("recipe", "sft", sft(tmp_path, "sft", "--push_to_hub"))
    fresh("recipe", "sft", sft(tmp_path, "sft-lora", "--push_to_hub", "--lora_rank", "2"))
    for task in ("tokens", "masked words", "encoder-decoder"):
        fresh("plain_task", str(tmp_path / task.replace(" ", "-")), task, texts(8, 0))
    here, there = {}, {}
    for name, call in PIPELINES.items():
        assert leaks(repository(hub, name), tmp_path) == []
        data, card = card_of(hub, name)
        assert re.search(rf"(?m)^# {name}$", card) and "folder of" not in card and "texts.jsonl](" not in card
        assert data["license"] in ("mit", "apache-2.0") and "licence" not in data
        assert data.get("datasets", ["acme/texts"]) in (["acme/texts"], ["nyu-mll/glue"])
        assert fresh("validate_card", f"{USER}/{name}") == data
        if call and not name.startswith("sft"):
            assert data["pipeline_tag"] == call[0] and data["model-index"][0]["name"] == name
        if name == "sft-lora" and not LOADS_ADAPTERS:
            continue
        (code,) = re.findall(r"(?s)```python\n(.*?)\n```", card)
        there[f"{USER}/{name}"] = [code, call]
        folder = str(launched_run[0] if name == "launched" else tmp_path / name)
        here[folder] = [code.replace(f"{USER}/{name}", folder), call]
    found = reloaded(there | here, hub, tmp_path / "empty")
    assert len(found) == 2 * len(there) and found[: len(there)] == found[len(there) :]
    assert [request for request in hub.requests if "/xet-read-token/" in request]


def test_an_adapter_of_a_folder_is_pushed_under_its_base_models_name(fresh, hub, tmp_path, generating_models):
    base = tmp_path / "copies" / "base"
    fresh("download", "acme/llama-tiny", str(base), ["*"])
    argv = sft(tmp_path, "of-a-folder", "--lora_rank", "2", "--model_name_or_path", str(base))
    with pytest.raises(
        RemoteError, match=r"base model is a folder .*--model_name_or_path, or leave out"
    ) as raised:
        fresh("recipe", "sft", [*argv, "--push_to_hub", "--compare"])
    out = tmp_path / "of-a-folder"
    assert raised.value.kind == "HubError" and not out.exists()
    fresh("recipe", "sft", argv)
    assert str(base) not in (out / "README.md").read_text()
    with pytest.raises(RemoteError, match=r"Write that name into .*adapter_config.json"):
        fresh("recipe", "sft", [*argv, "--push_to_hub"])
    config = out / "adapter_config.json"
    config.write_text(config.read_text().replace(json.dumps(str(base)), '"acme/llama-tiny"'))
    fresh("recipe", "sft", [*argv, "--push_to_hub"])
    pushed = repository(hub, "of-a-folder")
    assert leaks(pushed, tmp_path) == []
    data, card = card_of(hub, "of-a-folder")
    assert (
        data["base_model"] == "acme/llama-tiny" and "path/to" not in card and "local checkpoint" not in card
    )
    fresh("validate_card", f"{USER}/of-a-folder")
    fresh("run_card", f"{USER}/of-a-folder")
