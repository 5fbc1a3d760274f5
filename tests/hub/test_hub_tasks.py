"""Images and tables to the Hub and back, and the recipes as processes of their own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.hub_server import TOKEN, USER
from tests.helpers.worker import ROOT, RemoteError
from tests.hub.conftest import TIMM
from tests.hub.test_hub_privacy import leaks
from tests.hub.test_hub_push import PUSHED, card_of, glue_args, repository, secrets_in

SMALL = ["--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--per_device_train_batch_size", "4"]
SMALL += ["--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no", "--logging_steps", "1"]
PHOTOS = [
    "--dataset_name",
    "acme/photos",
    "--model_name_or_path",
    f"timm/{TIMM}",
    "--ignore_mismatched_sizes",
    *SMALL,
    "--push_to_hub",
]


@pytest.mark.parametrize("streaming", [False, True], ids=["cached", "streamed"])
def test_an_image_model_of_timm_keeps_its_origin(fresh, hub, tmp_path, streaming):
    name = f"photos-{streaming}"
    options = ["--streaming"] if streaming else ["--save_predictions"]
    fresh("recipe", "imagenet", [*PHOTOS, *options, "--output_dir", str(tmp_path / name)])
    read = {request for request in hub.requests if request.startswith("GET /lfs/")}
    assert len(read) == 3, "the weights, two splits; not the test split"
    assert set(repository(hub, name).files) == {
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
    } | {"all_results.json"}
    assert leaks(repository(hub, name), tmp_path) == []
    data, text = card_of(hub, name)
    assert data["base_model"] == f"timm/{TIMM}" and data["license"] == "apache-2.0"
    assert f"fine-tuned version of [timm/{TIMM}]" in text
    assert data["model-index"][0]["results"][0]["dataset"]["split"] == "validation"
    fresh("validate_card", f"{USER}/{name}")
    fresh("run_card", f"{USER}/{name}")


def test_a_model_of_several_domains_is_pushed_and_runs_by_its_card(fresh, hub, tmp_path):
    options = ["--dataset", "rotated_digits", "--held_out", "0", "--model_name_or_path", f"timm/{TIMM}"]
    options += ["--image_size", "160", "--max_steps", "2", "--eval_steps", "1", "--max_eval_samples", "4"]
    options += ["--per_device_train_batch_size", "2", "--save_predictions", "--use_cpu", "--push_to_hub"]
    fresh("recipe", "domainbed", [*options, "--output_dir", str(tmp_path / "domains")])
    files = set(repository(hub, "domains").files)
    assert files == {
        ".gitattributes", "README.md", "config.json", "model.safetensors", "all_results.json"
    }  # fmt: skip
    assert leaks(repository(hub, "domains"), tmp_path) == []
    data, _ = card_of(hub, "domains")
    assert data["base_model"] == f"timm/{TIMM}" and "domain-generalization" in data["tags"]
    fresh("run_card", f"{USER}/domains")


def test_a_tabular_model_takes_its_card_along(fresh, hub, tmp_path):
    options = ["--num_train_epochs", "1", "--use_cpu", "--hub_token", TOKEN]
    fresh("recipe", "tabular", ["--data", "breast_cancer", *options, "--output_dir", str(tmp_path)])
    folder = tmp_path
    here, there = fresh("push_tabular", str(folder), f"{USER}/a-table")
    assert here == there
    assert leaks(repository(hub, "a-table"), tmp_path) == []
    data, text = card_of(hub, "a-table")
    assert "More Information Needed" not in text and "KL divergence" in text and "rgd-hf" in data["tags"]
    assert f'"{USER}/a-table"' in text and "folder of this file" not in text
    fresh("validate_card", f"{USER}/a-table")
    assert not secrets_in(tmp_path)


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


def test_without_a_network_a_run_needs_only_what_it_used(fresh, hub, home, tmp_path):
    online, offline = tmp_path / "online", tmp_path / "offline"
    fresh("recipe", "glue", glue_args(online))
    hub.requests.clear()
    environment = {
        **hub.environment(home),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(ROOT / "recipes" / "glue.py"), *glue_args(offline)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert not hub.requests
    assert (offline / "model.safetensors").read_bytes() == (online / "model.safetensors").read_bytes()


CHECK = """
import sys
from pathlib import Path
from huggingface_hub import hf_hub_download
loaded = Path(hf_hub_download(sys.argv[1], "model.safetensors"))
assert loaded.read_bytes() == Path(sys.argv[2]).read_bytes()
"""


def test_glue_is_launched_pushed_and_loaded_by_its_card(hub, tmp_path):
    out = tmp_path / "launched"
    hub.requests.clear()
    done = launched(
        hub, tmp_path / "home", glue_args(out, "--push_to_hub", "--hub_token", TOKEN), "--num_processes", "1"
    )
    assert done.returncode == 0, done.stderr
    assert "Pushing README.md, config.json, model.safetensors" in done.stdout
    assert re.search(r"Not pushed: .*run_settings\.json", done.stdout) and "Pushed: http" in done.stdout
    assert set(repository(hub, "launched").files) == PUSHED
    assert not secrets_in(tmp_path) and TOKEN not in done.stdout + done.stderr
    # The weights went by Xet, and come back the same.
    asked = [request.split("/")[-2] for request in hub.requests if "/xet-" in request]
    assert set(asked) == {"xet-write-token"} and not [r for r in hub.requests if r.startswith("PUT /lfs/")]
    code = re.findall(r"(?s)```python\n(.*?)\n```", card_of(hub, "launched")[1])[0] + CHECK
    environment = hub.environment(tmp_path / "empty_cache", token=None, xet=True)
    weights = str(out / "model.safetensors")
    answer = subprocess.run(
        [sys.executable, "-c", code, f"{USER}/launched", weights],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    assert "'label'" in answer.stdout and "'score'" in answer.stdout
    assert [request for request in hub.requests if "/xet-read-token/" in request]


XET_FAULTS = {401: "token is missing, wrong or expired", 403: "may not write", 500: "try again later"}


@pytest.mark.parametrize("status", XET_FAULTS)
def test_what_xet_is_refused_is_told_as_what_it_is(fresh, hub, tmp_path, status):
    name = f"{USER}/by-xet-{status}"
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    with hub.fault(r"/xet-write-token/", status), pytest.raises(RemoteError) as raised:
        fresh("by_xet", "upload", str(tmp_path), name)
    assert raised.value.kind == "HubError", raised.value.trace
    assert re.fullmatch(
        rf"{name} was not pushed. \S+ answered {status}\. .*{XET_FAULTS[status]}.*", str(raised.value)
    )


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
