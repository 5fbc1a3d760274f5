"""What went wrong between this machine and the Hugging Face Hub: one message out of a chain of exceptions.

The clients (huggingface_hub, datasets, transformers) raise dozens of types and often hide the cause: an expired token
arrives as "a specific connection error", a server's fault as a file that is not in the cache. `find_failure` looks through
the whole chain for what the server or the network said, by the base classes of their exceptions.
"""

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass

from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

# Of the HTTP library that huggingface_hub uses: httpx, a successor, or requests before huggingface_hub 1.0.
_HTTP_ERROR: type[BaseException] = HfHubHTTPError.__bases__[0]
# As hf_xet words what its storage or the Hub answered; its errors have no attributes.
_STATUS_IN_TEXT = re.compile(r"HTTP status (?:client|server) error \((\d{3})\b")


class HubError(RuntimeError):
    """Something cannot be loaded from the Hub, or pushed to it. The message says what failed, why, and what to do."""


@dataclass(frozen=True)
class HubFailure:
    """Why the Hub did not do what it was asked.

    Attributes:
        kind: `"token"`, `"access"`, `"name"`, `"network"`, `"offline"`, `"busy"`, `"server"`, `"disk"` or `"refused"`.
        said: message of the server or the network, a sentence.
        remedy: what to do, one or two sentences.
    """

    kind: str
    said: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.said} {self.remedy}"


def find_failure(error: BaseException, page: str = "", writing: bool = False) -> HubFailure | None:
    """The failure of the Hub or of the network behind an exception.

    Args:
        error: exception raised by huggingface_hub, datasets or transformers.
        page: path of the requested repository on the Hub, `owner/name` or `datasets/owner/name`.
        writing: whether the request was to change something on the Hub (create, push) rather than read.

    Returns:
        The failure; None if the Hub and the network are not the cause.
    """
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, GatedRepoError) or (
            isinstance(one, DatasetNotFoundError) and "is a gated dataset" in str(one)
        ):
            return _gated(page)
    for one in chain:
        if isinstance(one, HfHubHTTPError) and one.response is not None:
            return _answered(one, writing)
    for one in chain:
        failure = _without_an_answer(one, writing)
        if failure is not None:
            return failure
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and all that it was raised from, or while handling; what it was raised from comes first."""
    found: list[BaseException] = [error]
    for one in found:
        yield one
        found += [
            other
            for other in (one.__cause__, one.__context__)
            if other is not None and all(other is not known for known in found)
        ]


def _gated(page: str) -> HubFailure:
    where = f" ({constants.ENDPOINT}/{page})" if page else ""
    log_in = "" if get_token() else " and log in with `hf auth login`, or put its token into HF_TOKEN"
    return HubFailure(
        "access",
        "It is gated: its authors decide who may load it.",
        f"Ask for access on its page{where} with the account of your token{log_in}; then try again.",
    )


def _answered(error: HfHubHTTPError, writing: bool) -> HubFailure:
    headers = error.response.headers
    message = " ".join(
        (getattr(error, "server_message", None) or headers.get("X-Error-Message") or "").split()
    )
    if isinstance(error, RevisionNotFoundError):
        remedy = "The repository has no such revision: check the branch, tag or commit."
        return HubFailure("name", _said(error.response.status_code, message), remedy)
    return _by_status(error.response.status_code, message, writing, headers.get("Retry-After"))


def _said(status: int, message: str) -> str:
    said = f"{constants.ENDPOINT} answered {status}" + (f": {message}" if message else "")
    return said if said.endswith(".") else f"{said}."


def _by_status(status: int, message: str, writing: bool, wait: str | None = None) -> HubFailure:
    """What an HTTP status of the Hub means; `wait` is what the server asks for, in seconds."""
    said = _said(status, message)
    if status == 401 and get_token() is None and not writing:
        return HubFailure(
            "name",
            said,
            "It does not exist, or is private: check the name (owner/name), or log in with `hf auth login` or a token in "
            "HF_TOKEN.",
        )
    if status == 401:
        return HubFailure(
            "token",
            said,
            "The token is missing, wrong or expired: log in again with `hf auth login`, or put a valid token into HF_TOKEN, "
            "which comes first where it is set.",
        )
    if status == 403:
        right = "write to this repository" if writing else "read this repository"
        return HubFailure(
            "access",
            said,
            f"The token may not {right}: take one with that right ({constants.ENDPOINT}/settings/tokens) of an account "
            "that has access" + (", or another repository (--hub_model_id owner/name)." if writing else "."),
        )
    if status in (404, 410):
        return HubFailure(
            "name",
            said,
            "There is nothing of this name, or it is private and the token does not see it: check the spelling "
            "(owner/name) and the token.",
        )
    if status == 429:
        wait = f"{wait} seconds" if wait and wait.isdigit() and wait != "0" else "some minutes"
        more = "" if get_token() else " Requests with a token (`hf auth login`) have a higher limit."
        return HubFailure("busy", said, f"Too many requests were made: wait {wait}, then try again.{more}")
    if status >= 500 or status == 408:
        return HubFailure("server", said, "The server has an internal error: try again later.")
    return HubFailure(
        "refused", said, "The request was refused: try again, or with newer versions of the libraries."
    )


def _without_an_answer(error: BaseException, writing: bool) -> HubFailure | None:
    line = _first_line(error)
    # datasets hides the first behind a ConnectionError.
    offline = isinstance(error, ConnectionError) and constants.HF_HUB_OFFLINE
    if isinstance(error, OfflineModeIsEnabled) or offline:
        return HubFailure(
            "offline",
            "The environment variable HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set, so the Hub is not asked.",
            "Unset it, with a network"
            + ("." if writing else ", or load it once with a network: it is then cached."),
        )
    if isinstance(error, LocalTokenNotFoundError):
        return HubFailure(
            "token", "There is no token.", "Log in with `hf auth login`, or put a token into HF_TOKEN."
        )
    if isinstance(error, HFValidationError):
        return HubFailure("name", line, "A name on the Hub is owner/name.")
    if isinstance(error, DatasetNotFoundError):
        return HubFailure(
            "name",
            line,
            "Check the spelling (owner/name), and the token (`hf auth login`) where it is private.",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HubFailure(
            "disk", f"The disk is full ({line})", "Make room, or set HF_HOME to a folder on another disk."
        )
    told = _STATUS_IN_TEXT.search(line)
    if told is not None and isinstance(error, (ConnectionError, RuntimeError)):
        return _by_status(int(told.group(1)), "", writing)
    # A worker process passes on the type alone; subclasses are of pipes and other sockets.
    if isinstance(error, _HTTP_ERROR) or type(error) is ConnectionError or type(error).__module__ == "hf_xet":
        return HubFailure(
            "network",
            f"The connection to {constants.ENDPOINT} failed: {line}",
            "Check the network (a proxy, HF_ENDPOINT), then try again"
            + ("." if writing else ": what was loaded completely is kept."),
        )
    return None


def _first_line(error: BaseException) -> str:
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
    return line if line.endswith(".") else f"{line}."
