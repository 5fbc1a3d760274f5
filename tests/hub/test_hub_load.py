"""Loading from the Hub: it works, only what is used is downloaded, and every failure is one message that helps."""

import re

import pytest

from tests.helpers.worker import RemoteError
from tests.hub.pushed import glue_args

EVERYTHING = "."
FAILURES = {
    "an expired token": (
        EVERYTHING,
        401,
        r"answered 401.*[Tt]oken is missing, wrong or expired.*hf auth login",
    ),
    "no right": (EVERYTHING, 403, r"answered 403: You don't have the rights.*token may not read"),
    "a gated repository": (EVERYTHING, "gated", r"is gated.*Ask for access on its page \(http://127"),
    "no such repository": (EVERYTHING, 404, r"[Cc]heck the spelling \(owner/name\)"),
    "a server's fault": (EVERYTHING, 500, r"answered 500.*try again later"),
    "too many requests": (EVERYTHING, 429, r"answered 429.*wait .*then try again"),
    "no answer": (EVERYTHING, "drop", r"The connection to http://127\S+ failed.*Check the network"),
    "files unavailable": (r"/resolve/|/lfs/", 503, r"answered 503.*try again later"),
}


@pytest.mark.parametrize("what", ["tokenizer", "model", "data", "stream"])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_one_message(fresh, hub, what, failure):
    on, status, expected = FAILURES[failure]
    with hub.fault(on, status), pytest.raises(RemoteError) as raised:
        fresh("load", what)
    message = str(raised.value)
    assert raised.value.kind == "UserError", raised.value.trace
    assert re.search(expected, message), message
    assert "\n" not in message and ("google/bert-tiny" in message or "acme/texts" in message)
    assert "--train_file FILE" in message or "--model_name_or_path DIR" in message


@pytest.mark.parametrize("what", ["model", "data", "stream"])
@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_download_that_is_cut_is_a_matter_of_the_network(fresh, hub, what, kept):
    with hub.fault(r"GET /lfs/", "cut", kept=kept), pytest.raises(RemoteError) as raised:
        fresh("load", what)
    assert raised.value.kind == "UserError", raised.value.trace
    assert re.search(r"The connection to \S+ failed.*then try again", str(raised.value))


@pytest.mark.parametrize("what", ["tokenizer", "model", "data", "stream"])
@pytest.mark.parametrize(
    ("on", "status"), [(r"GET /lfs/", "cut"), (r"HEAD .*/resolve/", 500), (EVERYTHING, 429)]
)
def test_a_failure_that_passes_is_overcome(fresh, hub, what, on, status):
    with hub.fault(on, status, times=1):
        assert fresh("load", what) is not None


def test_only_the_splits_that_are_used_are_downloaded(fresh, hub):
    assert fresh("load", "data") == {"train": 16, "validation": 8}
    downloaded = [request for request in hub.requests if request.startswith("GET /lfs/")]
    assert len(downloaded) == 2
    hub.requests.clear()
    assert fresh("load", "data") == {"train": 16, "validation": 8}
    assert not [request for request in hub.requests if "/lfs/" in request], "the second time from the cache"


def test_what_was_loaded_once_needs_no_hub(fresh, hub):
    for what in ("tokenizer", "model", "data"):
        found = fresh("load", what)
        for status in ("drop", 500, 429):
            with hub.fault(EVERYTHING, status):
                assert fresh("load", what) == found


def test_without_a_network_a_run_needs_only_what_it_used(fresh, hub, tmp_path):
    online, offline = tmp_path / "online", tmp_path / "offline"
    fresh("recipe", "glue", glue_args(online))
    hub.requests.clear()
    fresh("offline", "recipe", "glue", glue_args(offline))
    assert not hub.requests
    assert (offline / "model.safetensors").read_bytes() == (online / "model.safetensors").read_bytes()
    with pytest.raises(RemoteError, match=r"cannot be pushed to\. .*HF_HUB_OFFLINE.*Unset it"):
        fresh("offline", "recipe", "glue", glue_args(tmp_path / "pushed", "--push_to_hub"))
