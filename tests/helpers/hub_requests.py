"""A request to the Hub: read, counted, refused where a fault is switched on or the token is wrong, and answered."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from tests.helpers.hub_repository import Repository

if TYPE_CHECKING:
    from tests.helpers.hub_server import HubServer

USER = "someone"
STATUS = {
    400: ("BadRequest", "Bad request"),
    401: ("", "Invalid credentials in Authorization header"),
    403: ("", "You don't have the rights to do this"),
    404: ("RepoNotFound", "Repository not found"),
    409: ("", "Conflict"),
    429: ("", "Too many requests"),
    500: ("", "Internal error"),
    503: ("", "Service unavailable"),
}


@dataclass
class Fault:
    """What goes wrong with the requests that match.

    Attributes:
        on: regular expression, searched in `"METHOD /path"`.
        status: of the answer; `"gated"` for 403 with the Hub's code, `"cut"` for a body that ends early, `"drop"` for a
            connection that is closed without an answer, `"reset"` for one that is closed before the last byte of the request.
        after: so many matching requests are served before the first that fails.
        times: so many fail; None for all.
        kept: bytes of the body that a cut answer sends; negative: counted from its end.
        retry_after: seconds that a 429 asks the client to wait.
        seen: matching requests so far.
    """

    on: str
    status: int | str
    after: int = 0
    times: int | None = None
    kept: int = -1
    retry_after: int = 0
    seen: int = 0

    def strikes(self, request: str) -> bool:
        """Count a request, and tell whether it fails."""
        if not re.search(self.on, request):
            return False
        self.seen += 1
        return self.after < self.seen and (self.times is None or self.seen <= self.after + self.times)


class Request(BaseHTTPRequestHandler):
    """One request; `hub` is the server's state. A subclass says in `_route` what to do with it."""

    hub: "HubServer"
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return

    # --- sending ------------------------------------------------------------------------------------------------------

    def _send(
        self,
        status: int,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        kept: int | None = None,
    ):
        self.send_response(status)
        headers = dict(headers or {})
        headers.setdefault("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if kept is None else body[:kept])
        if kept is not None:
            self.wfile.flush()
            self.close_connection = True

    def _json(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        kept = self._cut.kept if self._cut else None
        self._send(status, body, {"Content-Type": "application/json"}, kept)

    def _error(
        self, status: int, code: str = "", message: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        code, message = code or STATUS[status][0], message or STATUS[status][1]
        extra = {"X-Error-Message": message, **(headers or {})}
        if code:
            extra["X-Error-Code"] = code
        body = json.dumps({"error": message}).encode()
        self._send(status, body, {**extra, "Content-Type": "application/json"})

    # --- one request --------------------------------------------------------------------------------------------------

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        path, self.query = unquote(parts.path), parse_qs(parts.query)
        request = f"{self.command} {path}"
        self._cut: Fault | None = None
        with self.hub.lock:
            self.hub.requests.append(request)
            fault = next((fault for fault in self.hub.faults if fault.strikes(request)), None)
        length = int(self.headers.get("Content-Length") or 0)
        if fault is not None and fault.status == "reset":
            self.rfile.read(length - 1)
            self.close_connection = True
            return
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            self.body = b"".join(self._chunks())
        else:
            self.body = self.rfile.read(length)
        if fault is not None:
            if fault.status == "drop":
                self.close_connection = True
                return
            if fault.status == "cut":
                self._cut = fault
            elif fault.status == "gated":
                return self._error(403, "GatedRepo", "Access to this repository is restricted")
            else:
                waits = {"Retry-After": str(fault.retry_after)} if fault.status == 429 else {}
                return self._error(int(fault.status), headers=waits)
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.known = given in self.hub.tokens
        if given and not self.known:
            return self._error(401)
        self._route(path)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _route(self, path: str) -> None:
        raise NotImplementedError

    # --- repositories -------------------------------------------------------------------------------------------------

    def _repository(self, kind: str | None, name: str, write: bool = False) -> Repository | None:
        """The repository, or None after an error was sent."""
        found = self.hub.repositories.get((kind or "models", name))
        if found is None or (found.private and not self.known):
            self._error(404 if self.known else 401, "RepoNotFound", "Repository not found")
            return None
        if write and not self.known:
            self._error(401)
            return None
        if write and not name.startswith(f"{USER}/"):
            self._error(403)
            return None
        return found

    def _at(self, kind: str | None, name: str, revision: str | None):
        found = self._repository(kind, name)
        if found is None:
            return None
        commit = found.at(revision or "main")
        if commit is None:
            self._error(404, "RevisionNotFound", "Revision not found")
        return commit
