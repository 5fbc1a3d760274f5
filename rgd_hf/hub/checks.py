"""What is checked before anything is trained to be pushed: that one may write to the repository, and others can load it."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from inspect import signature

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

from rgd_hf.hub.errors import HubError, find_failure
from rgd_hf.hub.model_card import is_on_hub


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what the Hub or the network does wrong inside into a `HubError`: `what`, why, what to do."""
    try:
        yield
    except Exception as error:
        failure = find_failure(error, writing=True)
        if failure is None or isinstance(error, HubError):
            raise
        raise HubError(f"{what}. {failure}") from error


def check_may_write(repository: str, token: str | None = None, revision: str | None = None) -> None:
    """Ask the Hub whether the token may push to a branch of an existing repository: creating it again tells nothing.

    Args:
        repository: name of the repository, `owner/name`.
        token: access token; by default the one that is logged in.
        revision: a branch or a pull request (`refs/pr/N`, whose rights are its own); by default the main branch.

    Raises:
        HfHubHTTPError: it may not. A server that does not answer the question is taken to allow it.
        HubError: there is no such branch.
    """
    api = HfApi()
    own_rights = revision is not None and revision.startswith("refs/pr/")
    if "write" in signature(api.auth_check).parameters and not own_rights:
        try:
            api.auth_check(repository, token=token, write=True)
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code in (401, 403):
                raise
    if revision is None:
        return
    remedy = f"Create it with `hf repos branch create {repository} {shlex.quote(revision)}`, or leave out --hub_revision."
    try:
        api.repo_info(repository, revision=revision, token=token)
    except RevisionNotFoundError as error:
        raise HubError(f"the repository {repository} has no branch {revision!r}. {remedy}") from error
    with suppress(HfHubHTTPError):
        refs = api.list_repo_refs(repository, token=token)
        if revision not in {branch.name for branch in refs.branches} and not own_rights:
            raise HubError(
                f"{revision!r} is not a branch of the repository {repository}, but a tag or a commit, which cannot be pushed to: "
                "name a branch with --hub_revision."
            )


def check_base_model(name: str, remedy: str) -> None:
    """Check that those who load an adapter from the Hub find its base model there too.

    Args:
        name: name of the base model, as the adapter's configuration has it.
        remedy: a sentence on where to name another.

    Raises:
        HubError: it is a folder of this machine.
    """
    if is_on_hub(name):
        return
    raise HubError(
        f"the adapter cannot be pushed: its base model is a folder of this machine ({name}), which nobody else can load, and "
        "whose path would be pushed with it. Name the base model as the Hub knows it: the one that the folder is a copy of, or "
        f"your own after `hf upload OWNER/NAME {shlex.quote(name)} .` {remedy}"
    )
