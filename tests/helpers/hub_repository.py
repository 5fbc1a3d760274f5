"""What a Hub keeps: repositories with their branches and files; and what it refuses in a model card."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml

from tests.helpers.xet_file import XetFile

LARGE = (".safetensors", ".bin", ".pt", ".pth", ".parquet", ".png", ".model", ".skops")


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


def is_large(path: str) -> bool:
    return path.endswith(LARGE)


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256_and_size(content: bytes) -> tuple[str, int]:
    """sha256 and size of what a large file holds."""
    if isinstance(content, XetFile):
        return content.sha256, content.size
    return hashlib.sha256(content).hexdigest(), len(content)


def oid_of(path: str, content: bytes | None) -> str | None:
    if content is None:
        return None
    return sha256_and_size(content)[0] if is_large(path) else blob_id(content)


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
