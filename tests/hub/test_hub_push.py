"""Pushing to the Hub: what goes along, what a failed push keeps, and how it is made good."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.helpers.hub_server import TOKEN, USER
from tests.helpers.worker import RemoteError
from tests.hub.conftest import texts
from tests.hub.pushed import MODEL_FILES, PUSHED, card_of, glue_args, repository, secrets_in


def test_a_recipe_pushes_its_model_and_nothing_of_the_users(ready, hub, tmp_path):
    out = tmp_path / "mine"
    options = ["--push_to_hub", "--hub_token", TOKEN, "--hard_examples", "3", "--save_predictions"]
    record = ready("recipe", "glue", glue_args(out, *options))
    pushed = repository(hub, "mine")
    assert set(pushed.files) == PUSHED
    assert pushed.messages == ["initial commit", "End of training"]
    for name, content in pushed.files.items():
        for hidden in (str(tmp_path), TOKEN, str(Path.home()), str(Path.cwd())):
            assert hidden.encode() not in content, name
    results = json.loads(pushed.files["all_results.json"])
    assert results["eval_accuracy"] == record["eval_accuracy"] and results["settings"]["output_dir"] == "mine"
    data, text = card_of(hub, "mine")
    assert data["license"] == "mit" and data["base_model"] == "google/bert-tiny"
    assert data["model-index"][0]["name"] == "mine" and "\n# mine\n" in text
    assert data["model-index"][0]["results"][0]["dataset"]["split"] == "validation"
    assert f'model="{USER}/mine"' in text and '"text_pair"' in text and "folder of this file" not in text
    assert ready("validate_card", f"{USER}/mine")["model-index"] == data["model-index"]
    assert not secrets_in(tmp_path)
    # The same command again has nothing to do.
    hub.requests.clear()
    ready("recipe", "glue", glue_args(out, *options))
    before, after = (pushed.commits[i][1] for i in (1, -1))
    assert not {name for name in after if before.get(name) != after[name]}
    assert len(pushed.commits) == 2 and not [request for request in hub.requests if "nyu-mll" in request]
    # Reports go along where it is said.
    ready("recipe", "glue", glue_args(out, *options, "--push_data_reports"))
    reports = {"hard_examples.html", "hard_examples.json", "predictions.parquet"}
    assert set(pushed.files) == PUSHED | reports


def test_a_finished_run_is_pushed_later_without_training(ready, hub, tmp_path):
    out = tmp_path / "later"
    ready("recipe", "glue", glue_args(out))
    weights = (out / "model.safetensors").stat().st_mtime_ns
    assert "`later` is the folder of this file" in (out / "README.md").read_text()
    ready("recipe", "glue", glue_args(out, "--push_to_hub", "--hub_model_id", "renamed"))
    assert (out / "model.safetensors").stat().st_mtime_ns == weights
    assert repository(hub, "renamed").files["model.safetensors"] == (out / "model.safetensors").read_bytes()
    data, text = card_of(hub, "renamed")
    assert "\n# renamed\n" in text and f'model="{USER}/renamed"' in text and "folder of this file" not in text
    assert data["model-index"][0]["name"] == "renamed"
    with pytest.raises(RemoteError, match=r"run with other settings \(seed"):
        ready("recipe", "glue", glue_args(out, "--push_to_hub", "--seed", "1"))
    with pytest.raises(RemoteError, match="already holds a finished run"):
        ready("recipe", "glue", glue_args(out))


def test_without_a_saved_model_there_is_nothing_to_push(ready, hub, tmp_path):
    out = tmp_path / "no_model"
    ready("recipe", "glue", glue_args(out, "--save_models", "false"))
    with pytest.raises(RemoteError, match=r"without its model.*--overwrite_output_dir"):
        ready("recipe", "glue", glue_args(out, "--push_to_hub"))


REFUSALS = {
    "create": (r"POST /api/repos/create", 401, r"answered 401.*hf auth login"),
    "no right to create": (
        r"POST /api/repos/create|GET /api/models/someone/[^/]+$",
        403,
        r"may not write.*--hub_model_id",
    ),
    "no right to write": (r"/auth-check/write", 403, r"may not write.*--hub_model_id"),
    "a server's fault": (r"POST /api/repos/create", 500, r"answered 500.*try again later"),
    "no answer": (r"POST /api/repos/create", "drop", r"The connection to \S+ failed"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_may_not_be_pushed_is_not_trained(ready, hub, tmp_path, refusal):
    on, status, expected = REFUSALS[refusal]
    out = tmp_path / "refused"
    with hub.fault(on, status), pytest.raises(RemoteError) as raised:
        ready("recipe", "glue", glue_args(out, "--compare", "--push_to_hub"))
    assert raised.value.kind == "HubError", raised.value.trace
    assert re.search(
        rf"--push_to_hub: the repository refused cannot be pushed to\. .*{expected}", str(raised.value)
    )
    assert not out.exists(), "nothing was trained"
    assert not [request for request in hub.requests if "nyu-mll" in request], "nor data loaded"


BROKEN = {
    "the repository": (r"POST /api/repos/create", 500, {"after": 1}),
    "the last byte of the weights": (r"PUT /lfs/", "reset", {}),
    "before anything": (r"/preupload/", 500, {}),
    "the weights": (r"PUT /lfs/", "drop", {}),
    "the weights are refused": (r"PUT /lfs/", 403, {}),
    "after the weights": (r"POST /lfs-verify", 500, {}),
    "the commit": (r"/commit/", 503, {}),
    "the answer to the commit": (r"/commit/", "cut", {}),
    "the token expires": (r"POST .*(preupload|\.git/|/commit/)", 401, {"after": 1}),
    "too many requests": (r"/commit/", 429, {}),
}


KEPT = ["--save_strategy", "no", "--hard_examples", "2", "--save_predictions"]


@pytest.fixture(scope="module")
def finished(remote, tmp_path_factory) -> Path:
    """The folder of a run that is finished, and was not pushed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    remote("recipe", "glue", glue_args(out, *KEPT))
    return out


@pytest.mark.parametrize(
    ("broken", "trained"),
    [*((broken, True) for broken in BROKEN), ("the last byte of the weights", False), ("the commit", False)],
)
def test_a_failed_push_keeps_everything_and_the_same_command_makes_it_good(
    ready, hub, tmp_path, finished, broken, trained
):
    on, status, options = BROKEN[broken]
    out = tmp_path / f"kept_{list(BROKEN).index(broken)}_{trained}"
    if trained:
        shutil.copytree(finished, out)
    hub.objects.clear()  # what the server knows is not uploaded again
    argv = glue_args(out, "--push_to_hub", *KEPT)
    with hub.fault(on, status, **options), pytest.raises(RemoteError) as raised:
        ready("recipe", "glue", argv)
    assert raised.value.kind == "HubError", raised.value.trace
    assert re.search(
        rf"not pushed to {out.name}; it is safe in .*same command pushes it without training",
        str(raised.value),
    )
    for kept in (
        "model.safetensors",
        "all_results.json",
        "predictions.parquet",
        "hard_examples.json",
        "README.md",
    ):
        assert (out / kept).is_file(), kept
    written = (out / "model.safetensors").stat().st_mtime_ns
    record = ready("recipe", "glue", argv)
    assert (out / "model.safetensors").stat().st_mtime_ns == written, "trained again"
    assert set(repository(hub, out.name).files) == PUSHED and "eval_accuracy" in record


def test_a_comparison_pushes_the_weighted_model_and_both_results(ready, hub, tmp_path):
    out = tmp_path / "both"
    options = [
        "--compare",
        "--push_to_hub",
        "--hub_model_id",
        f"{USER}/a-title",
        "--hub_private_repo",
        "true",
    ]
    argv = glue_args(out, *options)
    with hub.fault(r"/commit/", 500), pytest.raises(RemoteError, match="same command pushes it"):
        ready("recipe", "glue", argv)
    assert (out / "all_results.json").is_file()
    results = ready("recipe", "glue", argv)
    pushed = repository(hub, "a-title")
    assert pushed.private and set(pushed.files) == PUSHED
    assert pushed.files["model.safetensors"] == (out / "kl" / "model.safetensors").read_bytes()
    assert (
        list(json.loads(pushed.files["all_results.json"])["runs"]) == list(results["runs"]) == ["erm", "kl"]
    )
    data, text = card_of(hub, "a-title")
    assert data["model-index"][0]["name"] == "a-title" and "\n# a-title\n" in text


@pytest.mark.parametrize("settings", [{}, {"pairs": True}, {"reweighted": False}], ids=str)
def test_a_plain_script_pushes(ready, hub, tmp_path, settings):
    out = tmp_path / "plain"
    hub.repositories.pop(("models", f"{USER}/plain"), None)
    name = ready(
        "plain_script",
        str(out),
        texts(12, 0),
        push_to_hub=True,
        hub_token=TOKEN,
        hub_strategy="checkpoint",
        **settings,
    )
    assert name == f"{USER}/plain"
    files = repository(hub, "plain").files
    weights = "model.safetensors"
    assert {"README.md", weights, f"last-checkpoint/{weights}", "last-checkpoint/trainer_state.json"} <= set(
        files
    )
    assert not [name for name in files if "training_args" in name]
    assert (out / "_training_args.bin").is_file()
    assert not [path.name for path in out.glob("_push-*")], "links are removed"
    assert not secrets_in(tmp_path) and not [name for name, body in files.items() if TOKEN.encode() in body]
    data, text = card_of(hub, "plain")
    assert data["base_model"] == "google/bert-tiny" and data["model-index"][0]["name"] == "plain"
    assert ('"text_pair"' in text) == bool(settings.get("pairs"))
    ready("validate_card", name)


def test_a_comparison_that_the_hub_broke_off_resumes(ready, hub, tmp_path):
    out = tmp_path / "broken-off"
    argv = glue_args(out, "--compare", "--push_to_hub")
    # The repository is asked for before all, by the Trainer of the re-weighted run, and by the push.
    with (
        hub.fault(r"POST /api/repos/create", 503, after=1),
        pytest.raises(RemoteError, match="try again later"),
    ):
        ready("recipe", "glue", argv)
    erm = (out / "erm" / "model.safetensors").stat().st_mtime_ns
    assert not (out / "kl" / "model.safetensors").exists()
    ready("recipe", "glue", argv)
    assert (out / "erm" / "model.safetensors").stat().st_mtime_ns == erm, "trained again"
    pushed = repository(hub, "broken-off").files
    assert pushed["model.safetensors"] == (out / "kl" / "model.safetensors").read_bytes()
    assert list(json.loads(pushed["all_results.json"])["runs"]) == ["erm", "kl"]


UNPUSHED = {
    "create": (r"POST /api/repos/create", 503),
    "the right to write": (r"/auth-check/write", 403),
    "before the weights": (r"POST .*/preupload/", 401),
    "the last byte of the weights": (r"PUT /lfs/", "reset"),
    "the commit": (r"/commit/", 403),
    "the answer to the commit": (r"/commit/", "cut"),
}


@pytest.mark.parametrize("broken", UNPUSHED)
def test_a_plain_script_is_told_how_to_push_what_it_has(ready, hub, tmp_path, broken):
    on, status = UNPUSHED[broken]
    name = f"told-{list(UNPUSHED).index(broken)}"
    out = tmp_path / "a folder" / name
    with hub.fault(on, status), pytest.raises(RemoteError) as raised:
        ready("plain_script", str(out), texts(12, len(name)), seed=100 + list(UNPUSHED).index(broken))
    assert raised.value.kind == "HubError" and "\n" not in str(raised.value), raised.value.trace
    command = re.search(r"`hf (upload .*)`", str(raised.value))
    assert command is not None and f" {name} '" in command.group(1).replace(f"{USER}/", "")
    ready("command_line", command.group(1))
    pushed = repository(hub, name)
    assert set(pushed.files) == MODEL_FILES | {".gitattributes"}
    assert pushed.files["model.safetensors"] == (out / "model.safetensors").read_bytes()


def test_a_branch_is_looked_for_before_training(ready, hub, tmp_path):
    out = tmp_path / "branched"
    argv = glue_args(out, "--push_to_hub", "--hub_revision", "trial/1")
    with pytest.raises(RemoteError, match=r"has no branch 'trial/1'") as raised:
        ready("recipe", "glue", argv)
    assert raised.value.kind == "HubError" and not out.exists()
    command = re.search(r"`hf (repos branch create .*?)`", str(raised.value))
    assert command is not None
    ready("command_line", command.group(1))
    ready("recipe", "glue", argv)
    pushed = repository(hub, "branched")
    assert set(pushed.branches["trial/1"][-1][1]) == PUSHED and set(pushed.files) == {".gitattributes"}
    pushed.tags["v1"] = pushed.commits[-1][0]
    for revision in ("v1", pushed.commits[-1][0]):
        with pytest.raises(RemoteError, match=r"is not a branch of the repository .* tag or a commit"):
            ready(
                "recipe",
                "glue",
                glue_args(tmp_path / "branched", "--push_to_hub", "--hub_revision", revision),
            )


def test_a_finished_run_that_is_pushed_to_a_branch_is_loaded_from_there(ready, hub, tmp_path, finished):
    out = tmp_path / "to-a-branch"
    shutil.copytree(finished, out)
    ready("create_branch", out.name, "trial")
    ready("recipe", "glue", glue_args(out, "--push_to_hub", *KEPT, "--hub_revision", "trial"))
    ready("run_card", f"{USER}/{out.name}", "trial")
    ready("recipe", "glue", glue_args(out, "--push_to_hub", *KEPT))
    assert "revision" not in card_of(hub, out.name)[1]
    ready("run_card", f"{USER}/{out.name}")


BRANCHED = {
    "pipeline": ("plain_script", {"hub_revision": "trial"}),
    "adapter": ("plain_script", {"hub_revision": "trial", "lora": True}),
    "processor": ("plain_task", {"hub_revision": "trial", "task": "encoder-decoder"}),
    "argument": ("push_untrained", {"revision": "trial"}),
}


@pytest.mark.parametrize("kind", BRANCHED)
def test_the_code_on_a_card_loads_the_branch_that_it_was_pushed_to(
    ready, hub, tmp_path, kind, generating_models
):
    function, options = BRANCHED[kind]
    out = tmp_path / f"branch-{kind}"
    ready("create_branch", out.name, "trial")
    data = {} if function == "push_untrained" else {"texts": texts(12, 0)}
    ready(function, output_dir=str(out), **data, **options)
    assert set(repository(hub, out.name).files) == {".gitattributes"}, "main has nothing to load"
    ready("run_card", f"{USER}/{out.name}", "trial")


@pytest.mark.parametrize("after", [0, 1, 2], ids=["model", "between two commits", "next checkpoint"])
def test_a_push_while_training_that_fails_does_not_end_it(ready, hub, tmp_path, after):
    out = tmp_path / f"every-{after}"
    strategy = {"push_to_hub": True, "hub_strategy": "checkpoint", "hub_always_push": True}
    with hub.fault(r"POST .*/commit/", 500 if after else "drop", after=after, times=1):
        ready("plain_script", str(out), texts(12, 0), **strategy)
    assert repository(hub, out.name).messages[-1] == "End of training"
    assert f"A checkpoint was not pushed to {USER}/{out.name}: " in ready.log.read_text()


def test_a_token_that_expires_while_training(ready, hub, tmp_path):
    out = tmp_path / "expired"
    strategy = {"push_to_hub": True, "hub_strategy": "every_save", "hub_always_push": True}
    with hub.fault(r"/preupload/", 401, after=1), pytest.raises(RemoteError) as raised:
        ready("plain_script", str(out), texts(12, 0), **strategy)
    assert raised.value.kind == "HubError", raised.value.trace
    assert re.search(r"token is missing, wrong or expired: .*It is kept in .*`hf upload ", str(raised.value))
    assert (out / "model.safetensors").is_file() and (out / "checkpoint-4").is_dir()


def test_training_goes_on_from_a_checkpoint_on_the_hub(ready, hub, tmp_path):
    options = [
        "--push_to_hub",
        "--hub_strategy",
        "checkpoint",
        "--save_strategy",
        "steps",
        "--save_steps",
        "1",
    ]
    out, again = tmp_path / "resumed", tmp_path / "elsewhere" / "resumed"
    ready("recipe", "glue", glue_args(out, *options, "--num_train_epochs", "2"))
    ready("download", f"{USER}/resumed", str(again), ["last-checkpoint/*"])
    state = json.loads((again / "last-checkpoint" / "trainer_state.json").read_text())
    (again / "last-checkpoint").rename(again / f"checkpoint-{state['global_step']}")
    before = repository(hub, "resumed").files["model.safetensors"]
    ready("recipe", "glue", glue_args(again, *options, "--num_train_epochs", "2"))
    assert (again / "model.safetensors").read_bytes() == before


def test_no_secret_was_logged(remote):
    assert TOKEN not in remote.log.read_text()
