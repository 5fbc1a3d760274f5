"""A stream from the Hub that breaks while it is trained on: one message, and the same command makes it good."""

from pathlib import Path

import pytest

from tests.hub.conftest import TIMM

SHARDS = [
    *(
        "--dataset_name",
        "acme/shards",
        "--streaming",
        "--model_name_or_path",
        f"timm/{TIMM}",
        "--from_scratch",
        "--use_cpu",
    ),
    *(
        "--report_to",
        "none",
        "--disable_tqdm",
        "true",
        "--per_device_train_batch_size",
        "4",
        "--max_steps",
        "9",
    ),
    *("--eval_strategy", "no", "--save_strategy", "steps", "--save_steps", "1", "--logging_steps", "1"),
]


def arguments(out: Path, workers: int = 0) -> list[str]:
    return [*SHARDS, "--output_dir", str(out), "--dataloader_num_workers", str(workers)]


@pytest.fixture(scope="module")
def whole(remote, hub, tmp_path_factory) -> tuple[bytes, int]:
    """The weights after a training that nothing disturbed, and how often it read from the data's files."""
    remote("clear_cache")
    remote("shorten_shuffle", 4)
    hub.requests.clear()
    out = tmp_path_factory.mktemp("whole")
    ended = remote("command", "imagenet", arguments(out))
    assert ended == [0, ""], ended
    return (out / "model.safetensors").read_bytes(), sum("GET /lfs/" in request for request in hub.requests)


@pytest.mark.parametrize(("status", "workers"), [("cut", 0), (503, 0), (401, 1)], ids=str)
def test_training_resumes_where_a_stream_broke(fresh, hub, tmp_path, whole, status, workers):
    weights, reads = whole
    fresh("shorten_shuffle", 4)
    with hub.fault(r"GET .*/lfs/", status, after=int(0.6 * reads), kept=0):
        code, line = fresh("command", "imagenet", arguments(tmp_path, workers))
    assert code == 2 and line.startswith(
        "imagenet.py: error: the images could not be read any further, after "
    )
    reason = {401: "answered 401", 503: "answered 503"}.get(status, "The connection to http")
    assert reason in line and line.endswith("the same command resumes from the last.")
    steps = sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))
    assert steps and steps[-1] < 9
    assert fresh("command", "imagenet", arguments(tmp_path, workers)) == [0, ""]
    if workers == 0:  # each worker shuffles its own part
        assert (tmp_path / "model.safetensors").read_bytes() == weights
