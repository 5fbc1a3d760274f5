"""What a Hub's clients (huggingface_hub, datasets, transformers) ask it for, and the answers."""

import base64
import hashlib
import json
import re
import time
from collections.abc import Mapping
from urllib.parse import parse_qs

import yaml

from tests.helpers.hub_repository import blob_id, card_errors, is_large, oid_of, sha256_and_size
from tests.helpers.hub_requests import USER, Request
from tests.helpers.xet_file import XetFile

KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}


class Handler(Request):
    """The endpoints."""

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
            (rf"/api/(?P<kind>models|datasets)/{repo}/xet-(?P<right>read|write)-token/.+", self._xet_token),
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
        entry = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
        if is_large(path):
            oid, size = sha256_and_size(content)
            entry |= {"size": size, "lfs": {"oid": oid, "size": size, "pointerSize": 130}}
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
        if not is_large(file):
            return self._bytes(content, {**headers, "ETag": f'"{blob_id(content)}"'})
        oid, size = sha256_and_size(content)
        headers |= {"ETag": f'"{oid}"', "X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(size)}
        if isinstance(content, XetFile):
            refresh = f"{self.hub.url}/api/{kind or 'models'}/{name}/xet-read-token/{sha}"
            headers |= {"X-Xet-Hash": content.xet_hash, "X-Xet-Refresh-Route": refresh}
        else:
            self.hub.objects[oid] = content
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

    def _xet_token(self, kind: str, name: str, right: str) -> None:
        if self._repository(kind, name, right == "write") is None:
            return
        if self.hub.xet is None:
            return self._error(404, "", "no Xet storage here")
        # Only one process at a time may have such a folder open.
        folder = self.hub.xet / name
        folder.mkdir(parents=True, exist_ok=True)
        url, token, expires = f"local://{folder}", "of this test", int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
        body = {"casUrl": url, "accessToken": token, "exp": expires}
        self._send(200, json.dumps(body).encode(), {**headers, "Content-Type": "application/json"})

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
                        "uploadMode": "lfs" if is_large(file["path"]) else "regular",
                        "shouldIgnore": False,
                        "oid": oid_of(file["path"], found.files.get(file["path"])),
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
                content = None
                if self.hub.xet is not None:
                    content = XetFile.find(self.hub.xet / name, value["oid"], value["size"])
                content = content or self.hub.objects.get(value["oid"])
                if content is None:
                    return self._error(400, "", f"{value['path']} was not uploaded")
                files[value["path"]] = content
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
