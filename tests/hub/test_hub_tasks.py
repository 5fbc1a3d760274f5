"""Images and tables to the Hub and back; what Xet is refused."""

import re

import pytest

from tests.helpers.hub_server import TOKEN, USER
from tests.helpers.worker import RemoteError
from tests.hub.conftest import TIMM
from tests.hub.pushed import card_of, leaks, repository, secrets_in

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


def test_an_image_model_of_timm_is_loaded_from_its_branch(fresh, hub, tmp_path):
    fresh("create_branch", "photos-branch", "trial")
    fresh(
        "recipe",
        "imagenet",
        [*PHOTOS, "--hub_revision", "trial", "--output_dir", str(tmp_path / "photos-branch")],
    )
    assert set(repository(hub, "photos-branch").files) == {".gitattributes"}
    fresh("run_card", f"{USER}/photos-branch", "trial")


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
