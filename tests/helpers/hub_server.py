"""A small server that speaks the Hugging Face Hub's protocol on the loopback address, with faults that can be switched on.

It keeps repositories in memory and answers what the clients (huggingface_hub, datasets, transformers) ask: who am I, create,
info, branches, tree, paths, resolve (HEAD, ranges, ETags, a redirect for large files), pre-upload, LFS batch, upload, verify,
Xet tokens, commit, validate-yaml. Point a process at it with `server.environment(home)`.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

from tests.helpers.hub_endpoints import Handler
from tests.helpers.hub_repository import Repository
from tests.helpers.hub_requests import USER, Fault

__all__ = ["HOST", "TOKEN", "USER", "Fault", "HubServer", "Repository"]

HOST = "the-machine-of-these-tests"
TOKEN = "hf_aTokenOfThisTestAndOfNothingElse"


class HubServer:
    """The server, in a thread of its own.

    Args:
        xet: a folder in which clients keep large files by the Xet protocol, each repository's apart; without it all go by LFS.

    Attributes:
        repositories: by `(kind, name)`.
        faults: see `fault`.
        requests: `"METHOD /path"` of all requests, in order.
    """

    def __init__(self, xet: Path | None = None):
        self.xet = xet
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.tokens = {TOKEN}
        self.lock = threading.RLock()
        server = self

        class Bound(Handler):
            hub = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        # Another host to the clients, as the Hub's storage is: they take what a large file is from the redirect to it.
        self.storage = f"http://localhost:{self._http.server_address[1]}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def add(
        self, kind: str, name: str, content: Path | Mapping[str, bytes], private: bool = False
    ) -> Repository:
        """Put a repository there, with the files of a folder or a dict."""
        if isinstance(content, Path):
            content = {
                str(path.relative_to(content)): path.read_bytes()
                for path in sorted(content.rglob("*"))
                if path.is_file()
            }
        repository = Repository(kind, name, private)
        repository.commit(content, "initial commit")
        self.repositories[kind, name] = repository
        return repository

    @contextmanager
    def fault(self, on: str, status: int | str, **options: int | None) -> Iterator[Fault]:
        """Let requests fail; see `Fault`."""
        fault = Fault(on, status, **options)  # type: ignore[arg-type]
        self.faults.append(fault)
        try:
            yield fault
        finally:
            self.faults.remove(fault)

    def environment(self, home: Path, token: str | None = TOKEN, xet: bool = False) -> dict[str, str]:
        """Environment variables of a process whose Hub is this server, and whose cache is `home`.

        With `xet` large files go by that protocol, else by LFS.
        """
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("HF_") and name != "TRANSFORMERS_OFFLINE"
        }
        environment |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": str(int(not xet)),
            "HF_XET_CLIENT_RETRY_BASE_DELAY": "1ms",
            "HF_HUB_ETAG_TIMEOUT": "5",
            "HF_HUB_DOWNLOAD_TIMEOUT": "5",
            "NO_PROXY": "*",
            "no_proxy": "*",
        }
        if token:
            environment["HF_TOKEN"] = token
        return environment
