"""A small server that speaks the Hugging Face Hub's protocol on the loopback address, with faults that can be switched on.

It keeps repositories in memory and answers what the clients (huggingface_hub, datasets, transformers) ask: who am I, create,
info, branches, tree, paths, resolve (HEAD, ranges, ETags, a redirect for large files), pre-upload, LFS batch, upload, verify, commit,
validate-yaml. Point a process at it with `server.environment(home)`.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

USER = "someone"
HOST = "the-machine-of-these-tests"
TOKEN = "hf_aTokenOfThisTestAndOfNothingElse"
LARGE = (".safetensors", ".bin", ".pt", ".pth", ".parquet", ".png", ".model", ".skops")
KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}
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


@dataclass
class Repository:
    """One repository: the commits of each branch, oldest first, each with all files.

    Attributes:
        kind: `"models"` or `"datasets"`.
        name: `owner/name`.
        branches: by name, `(sha, files)` with the content of every path.
        tags: the sha of each.
        messages: of the commits to any branch.
    """

    kind: str
    name: str
    private: bool = False
    branches: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=lambda: {"main": []})
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def commits(self) -> list[tuple[str, dict[str, bytes]]]:
        return self.branches["main"]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][1] if self.commits else {}

    @property
    def content(self) -> dict[str, bytes]:
        """All that was ever committed, by path and sha."""
        return {
            f"{path}@{sha}": content
            for commits in self.branches.values()
            for sha, files in commits
            for path, content in files.items()
        }

    def commit(self, files: Mapping[str, bytes], message: str, branch: str = "main") -> str:
        content = json.dumps([message, len(self.messages), *sorted(files)]) + self.name
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.branches[branch].append((sha, dict(files)))
        self.messages.append(message)
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        sha = self.tags.get(revision, revision)
        every = (commit for commits in self.branches.values() for commit in commits)
        return next((commit for commit in every if commit[0] == sha), None)


class HubServer:
    """The server, in a thread of its own.

    Attributes:
        repositories: by `(kind, name)`.
        faults: see `fault`.
        requests: `"METHOD /path"` of all requests, in order.
    """

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.tokens = {TOKEN}
        self.lock = threading.RLock()
        server = self

        class Bound(_Handler):
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

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Environment variables of a process whose Hub is this server, and whose cache is `home`."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("HF_") and name != "TRANSFORMERS_OFFLINE"
        }
        environment |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",  # uploads go by LFS
            "HF_HUB_ETAG_TIMEOUT": "5",
            "HF_HUB_DOWNLOAD_TIMEOUT": "5",
            "NO_PROXY": "*",
            "no_proxy": "*",
        }
        if token:
            environment["HF_TOKEN"] = token
        return environment


def _is_large(path: str) -> bool:
    return path.endswith(LARGE)


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _oid(path: str, content: bytes | None) -> str | None:
    if content is None:
        return None
    return hashlib.sha256(content).hexdigest() if _is_large(path) else _blob_id(content)


class _Handler(BaseHTTPRequestHandler):
    """One request; `hub` is the server's state."""

    hub: HubServer
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
        repo = r"(?P<name>[^/]+/[^/]+?)"
        for pattern, action in (
            (r"/api/whoami-v2", self._whoami),
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", self._validate),
            (r"/lfs/(?P<oid>\w+)", self._object),
            (r"/lfs-verify", self._verify),
            (rf"/(?:(?P<kind>datasets)/)?{repo}\.git/info/lfs/objects/batch", self._lfs_batch),
            (rf"/api/(?P<kind>models|datasets)/{repo}/auth-check(?P<write>/write)?", self._auth_check),
            (rf"/api/(?P<kind>models|datasets)/{repo}/refs", self._refs),
            (rf"/api/(?P<kind>models|datasets)/{repo}/branch/(?P<branch>.+)", self._create_branch),
            (rf"/api/(?P<kind>models|datasets)/{repo}/preupload/(?P<revision>.+)", self._preupload),
            (rf"/api/(?P<kind>models|datasets)/{repo}/commit/(?P<revision>.+)", self._commit),
            (
                rf"/api/(?P<kind>models|datasets)/{repo}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?",
                self._tree,
            ),
            (rf"/api/(?P<kind>models|datasets)/{repo}/paths-info/(?P<revision>.+)", self._paths),
            (rf"/api/(?P<kind>models|datasets)/{repo}(?:/revision/(?P<revision>.+))?", self._info),
            (rf"/(?:(?P<kind>datasets)/)?{repo}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", self._resolve),
        ):
            match = re.fullmatch(pattern, path)
            if match:
                return action(**match.groupdict())
        self._error(404, "", f"no such endpoint: {path}")

    # --- accounts and repositories ------------------------------------------------------------------------------------

    def _whoami(self) -> None:
        if not self.known:
            return self._error(401)
        self._json(
            {"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {"type": "access_token"}}
        )

    def _create(self) -> None:
        asked = json.loads(self.body)
        if not self.known:
            return self._error(401)
        owner = asked.get("organization") or USER
        name, kind = f"{owner}/{asked['name']}", KINDS[asked.get("type") or "model"]
        if owner != USER:
            return self._error(
                403, "", f'You don\'t have the rights to create a model under the namespace "{owner}"'
            )
        with self.hub.lock:
            if (kind, name) in self.hub.repositories:
                body = {
                    "url": f"{self.hub.url}/{name}",
                    "name": name,
                    "error": "You already created this repo",
                }
                return self._json(body, 409)
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.hub.add(kind, name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private)
        self._json({"url": f"{self.hub.url}/{name}", "name": name})

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

    def _auth_check(self, kind: str, name: str, write: str | None) -> None:
        if self._repository(kind, name, write is not None):
            self._json({})

    def _refs(self, kind: str, name: str) -> None:
        found = self._repository(kind, name)
        if found is None:
            return
        branches = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commits[-1][0]}
            for branch, commits in found.branches.items()
        ]
        tags = [
            {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": sha} for tag, sha in found.tags.items()
        ]
        self._json({"branches": branches, "tags": tags, "converts": []})

    def _create_branch(self, kind: str, name: str, branch: str) -> None:
        found = self._repository(kind, name, write=True)
        if found is None:
            return
        if branch in found.branches:
            return self._error(409, "", "the branch exists already")
        found.branches[branch] = [found.commits[-1]]
        self._json({})

    def _info(self, kind: str, name: str, revision: str | None) -> None:
        commit = self._at(kind, name, revision)
        if commit is None:
            return
        sha, files = commit
        front = re.match(rb"(?s)---\n(.*?)\n---", files.get("README.md", b""))
        card = yaml.safe_load(front.group(1)) if front else {}
        tags = [*(card.get("tags") or []), *([f"license:{card['license']}"] if card.get("license") else [])]
        self._json(
            {
                "id": name,
                "author": name.split("/")[0],
                "sha": sha,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "createdAt": "2026-01-01T00:00:00.000Z",
                "private": self.hub.repositories[kind, name].private,
                "gated": False,
                "disabled": False,
                "tags": tags,
                "cardData": card,
                "siblings": [{"rfilename": path} for path in sorted(files)],
                "downloads": 0,
                "likes": 0,
            }
        )

    def _entry(self, path: str, content: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(content), "oid": _blob_id(content)}
        if _is_large(path):
            oid = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
        return entry

    def _tree(self, kind: str, name: str, revision: str, folder: str | None) -> None:
        commit = self._at(kind, name, revision)
        if commit is None:
            return
        prefix = f"{folder.strip('/')}/" if folder else ""
        inside = {path: content for path, content in commit[1].items() if path.startswith(prefix)}
        if prefix and not inside:
            return self._error(404, "EntryNotFound", "Entry not found")
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("1", "true")
        folders = {
            prefix + "/".join(rest[:depth])
            for rest in (path.removeprefix(prefix).split("/") for path in inside)
            for depth in range(1, len(rest))
            if recursive or depth == 1
        }
        entries = [
            {"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)
        ]
        entries += [
            self._entry(path, content)
            for path, content in sorted(inside.items())
            if recursive or "/" not in path.removeprefix(prefix)
        ]
        self._json(entries)

    def _paths(self, kind: str, name: str, revision: str) -> None:
        commit = self._at(kind, name, revision)
        if commit is None:
            return
        asked = parse_qs(self.body.decode()).get("paths", [])
        if self.headers.get("Content-Type", "").startswith("application/json"):
            asked = json.loads(self.body)["paths"]
        files = [self._entry(path, commit[1][path]) for path in asked if path in commit[1]]
        folders = [
            {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
            for path in asked
            if any(name.startswith(f"{path}/") for name in commit[1])
        ]
        self._json(files + folders)

    # --- downloads ----------------------------------------------------------------------------------------------------

    def _resolve(self, kind: str | None, name: str, revision: str, file: str) -> None:
        commit = self._at(kind, name, revision)
        if commit is None:
            return
        sha, files = commit
        if file not in files:
            return self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
        content = files[file]
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if not _is_large(file):
            return self._bytes(content, {**headers, "ETag": f'"{_blob_id(content)}"'})
        oid = hashlib.sha256(content).hexdigest()
        self.hub.objects[oid] = content
        headers |= {"ETag": f'"{oid}"', "X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        self._send(302, b"", {**headers, "Location": f"{self.hub.storage}/lfs/{oid}"})

    def _bytes(self, content: bytes, headers: Mapping[str, str]) -> None:
        kept = self._cut.kept if self._cut else None
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self._send(200, content, headers, kept)
        if not asked.group(1):
            first, last = max(len(content) - int(asked.group(2)), 0), len(content) - 1
        else:
            first = int(asked.group(1))
            last = min(int(asked.group(2) or len(content) - 1), len(content) - 1)
        if first > last:
            return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        ranges = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        self._send(206, content[first : last + 1], {**headers, **ranges}, kept)

    # --- uploads ------------------------------------------------------------------------------------------------------

    def _object(self, oid: str) -> None:
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != oid:
                return self._error(400, "", "the content is not what its sha256 says")
            self.hub.objects[oid] = self.body
            return self._send(200)
        if oid not in self.hub.objects:
            return self._error(404, "EntryNotFound", "no such object")
        self._bytes(self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def _preupload(self, kind: str, name: str, revision: str) -> None:
        found = self._repository(kind, name, write=True)
        if found is None:
            return
        asked = json.loads(self.body)["files"]
        self._json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if _is_large(file["path"]) else "regular",
                        "shouldIgnore": False,
                        "oid": _oid(file["path"], found.files.get(file["path"])),
                    }
                    for file in asked
                ]
            }
        )

    def _lfs_batch(self, kind: str | None, name: str) -> None:
        if self._repository(kind, name, write=True) is None:
            return
        objects = []
        for asked in json.loads(self.body)["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                verify = {"href": f"{self.hub.storage}/lfs-verify"}
                entry["actions"] = {
                    "upload": {"href": f"{self.hub.storage}/lfs/{asked['oid']}"},
                    "verify": verify,
                }
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def _verify(self) -> None:
        asked = json.loads(self.body)
        stored = self.hub.objects.get(asked["oid"])
        if stored is None or len(stored) != asked["size"]:
            return self._error(400, "", "the object was not uploaded")
        self._json({})

    def _commit(self, kind: str, name: str, revision: str) -> None:
        found = self._repository(kind, name, write=True)
        if found is None:
            return
        if revision not in found.branches:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        header, *operations = (json.loads(line) for line in self.body.splitlines() if line.strip())
        files = dict(found.branches[revision][-1][1])
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self._error(400, "", f"{value['path']} was not uploaded")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif operation["key"] == "deletedFile":
                files.pop(value["path"], None)
        with self.hub.lock:
            sha = found.commit(files, header["value"]["summary"], revision)
        self._json({"commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "success": True})

    def _validate(self) -> None:
        asked = json.loads(self.body)
        errors = card_errors(asked["content"])
        status = 400 if errors else 200
        self._json({"errors": [{"message": error} for error in errors], "warnings": []}, status)


def card_errors(content: str) -> list[str]:
    """What the Hub refuses in a card's metadata: of its rules, those on the fields that this project writes."""
    front = re.match(r"(?s)\A---\n(.*?)\n---\s", content)
    if front is None:
        return ["no metadata block"]
    try:
        data = yaml.safe_load(front.group(1))
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    errors = []
    for name, kinds in {"tags": list, "license": str, "base_model": (str, list), "pipeline_tag": str}.items():
        if name in data and not isinstance(data[name], kinds):
            errors.append(f'"{name}" must be a {kinds}')
    for model in data.get("model-index", []):
        if not model.get("name"):
            errors.append('"model-index[0].name" must be a string')
        for result in model.get("results", []):
            if not isinstance(result.get("task", {}).get("type"), str):
                errors.append('"model-index[0].results[0].task.type" must be a string')
            if not {"type", "name"} <= set(result.get("dataset", {})):
                errors.append('"model-index[0].results[0].dataset" needs type and name')
            for metric in result.get("metrics", []):
                if "type" not in metric or "value" not in metric:
                    errors.append("a metric needs type and value")
    return errors
