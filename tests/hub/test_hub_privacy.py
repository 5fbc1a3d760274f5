"""What a push takes along: nothing of the machine, whichever way it is pushed; adapters that only this machine could load."""

import json
import re
from pathlib import Path

import pytest

from tests.helpers.hub_server import HOST, TOKEN, USER
from tests.helpers.worker import RemoteError
from tests.hub.conftest import texts
from tests.hub.pushed import MODEL_FILES, card_of, leaks, repository

RESUMED = [
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "weight_statistics.safetensors",
]


@pytest.fixture
def local_base(tmp_path: Path, tiny_model_files: Path) -> Path:
    """A copy of the base model in a folder of the user's."""
    folder = tmp_path / "copies" / "base"
    folder.mkdir(parents=True)
    for path in tiny_model_files.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("strategy", "lora"),
    [(strategy, False) for strategy in ("end", "every_save", "checkpoint", "all_checkpoints")]
    + [("end", True), ("checkpoint", True)],
)
def test_a_plain_script_pushes_nothing_of_the_machine(ready, hub, tmp_path, local_base, strategy, lora):
    out = tmp_path / f"{strategy}-{lora}"
    ready(
        "plain_script",
        str(out),
        texts(12, 0),
        lora=lora,
        model=str(local_base),
        name_base="google/bert-tiny",
        push_to_hub=True,
        hub_token=TOKEN,
        hub_strategy=strategy,
        hub_always_push=True,
        load_best_model_at_end=True,
        logging_steps=1,
    )
    pushed = repository(hub, out.name)
    assert leaks(pushed, tmp_path) == []
    assert list(out.rglob(f"*tfevents*{HOST}*")) and (out / "trainer_state.json").is_file(), (
        "nothing was there"
    )
    card = card_of(hub, out.name)[0]
    assert card.get("base_model") == ("google/bert-tiny" if lora else None)
    checkpoints = {name.split("/")[0] for name in pushed.files if "/" in name}
    expected = {"checkpoint": {"last-checkpoint"}, "all_checkpoints": {"checkpoint-2", "checkpoint-4"}}
    assert checkpoints == expected.get(strategy, set())
    for folder in checkpoints:
        inside = {name.removeprefix(f"{folder}/") for name in pushed.files if name.startswith(f"{folder}/")}
        weights = (
            {"adapter_model.safetensors", "adapter_config.json"} if lora else MODEL_FILES - {"README.md"}
        )
        assert inside == weights | {"tokenizer.json", "tokenizer_config.json", *RESUMED}
        state = json.loads(pushed.files[f"{folder}/trainer_state.json"])
        assert re.fullmatch(r"checkpoint-[24]", state["best_model_checkpoint"])
    states = out.glob("checkpoint-*/trainer_state.json")
    assert all(str(out) in path.read_text() for path in states), "the checkpoints here are as they were"


OF_RUNS = [
    *("training_args.bin", "_training_args.bin", "trainer_state.json", "run_settings.json", "runs.jsonl"),
    *("checkpoint-7/model.safetensors", "checkpoint-7/optimizer.pt", "last-checkpoint/rng_state.pth"),
    *("_push-7/model.safetensors", "runs/Nov27/events.out.tfevents.1.host.1.0", "emissions.csv"),
    *("run-0/notes.txt", "run-0/checkpoint-1/model.safetensors", "kl_tau_2-seed10/predictions.json"),
]
OWN = [
    *("figure.png", "run-of-mine.txt", "my-seed.txt", "checkpoints.md", "eval_results.json"),
    *("1_Pooling/config.json", "other/adapter_model.safetensors", "onnx/model.onnx", "code/__init__.py"),
    *("runs-of-mine/table.csv", "run-notes/notes.md"),
]


@pytest.mark.parametrize("deep", ["", "best/", "a/b c/"])
def test_what_runs_write_is_not_pushed_at_any_depth(ready, hub, tmp_path, deep):
    """Neither by the push nor by the command that a failed one prints."""
    pushed, told = (tmp_path / f"own-files-{way}-{len(deep)}" for way in ("pushed", "told"))
    for out in (pushed, told):
        for name in [*OF_RUNS, *OWN]:
            path = out / deep / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    ready("push_untrained", str(pushed))
    with hub.fault(r"/commit/", 503), pytest.raises(RemoteError) as raised:
        ready("push_untrained", str(told))
    command = re.search(r"`hf (upload .*)`", str(raised.value))
    assert command is not None
    ready("command_line", command.group(1))
    model = {".gitattributes", "README.md", "config.json", "model.safetensors"}
    for out in (pushed, told):
        assert set(repository(hub, out.name).files) == model | {deep + name for name in OWN}
        named = ", ".join(f"{deep}{name}" for name in ("kl_tau_2-seed10", "run-0"))
        assert f"Not pushed from {out}: {named}, which" in ready.log.read_text()


def test_the_folder_of_a_comparison_and_a_search_is_pushed_without_their_runs(ready, hub, tmp_path):
    pytest.importorskip("optuna")
    out = tmp_path / "compared"
    ready("plain_searches", str(out))
    nested = {path.name for path in out.iterdir() if path.is_dir()}
    assert {"kl-seed0", "none-seed1", "run-0", "tau 0"} <= nested and (out / "runs.jsonl").is_file()
    pushed = repository(hub, out.name)
    assert set(pushed.files) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert leaks(pushed, tmp_path) == []
    assert f"Not pushed from {out}: kl-seed0, kl-seed1, none-seed0" in ready.log.read_text()


def test_an_adapter_of_a_folder_is_not_trained_to_be_pushed(ready, hub, tmp_path, local_base):
    out = tmp_path / "refused-adapter"
    with pytest.raises(RemoteError) as raised:
        ready("plain_script", str(out), texts(12, 0), lora=True, model=str(local_base), push_to_hub=True)
    message = str(raised.value)
    assert raised.value.kind == "HubError" and "\n" not in message
    assert str(local_base) in message and "base_model_name_or_path = " in message
    assert not out.exists() and ("models", f"{USER}/{out.name}") not in hub.repositories
    # A script that asks only after training keeps its adapter.
    with pytest.raises(RemoteError, match="base model is a folder of this machine"):
        ready("plain_script", str(out), texts(12, 0), lora=True, model=str(local_base))
    assert (out / "adapter_model.safetensors").is_file()
    assert ("models", f"{USER}/{out.name}") not in hub.repositories
    assert str(tmp_path) not in (out / "README.md").read_text()
