"""A model hub on loopback, of either kind, that sends large files from another host; and requests to fetch from it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.unit.faultyserver import Asked, Reply, Server, serving

COMMIT, OLDER = "5e" * 20, "0d" * 20
REPOSITORY = "Qwen/Tiny"
FILES = {
    "config.json": b'{"model_type": "qwen2"}\n',
    "model-00001-of-00002.safetensors": bytes(range(256)) * 1200,
    "model-00002-of-00002.safetensors": b"weights" * 30_000,
    "tokenizer/merges ü.txt": b"a b\n",
    "empty.txt": b"",
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blob_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Hub:
    """What it has. A ``gated`` one wants the token; ``moved`` is where its branch main points after the first look."""

    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    token: str = ""
    gated: bool = False
    moved: str = ""
    page: int = 2
    rows: list[dict[str, Any]] | None = None
    """In place of what is true of the files."""
    cdn: str = ""
    slow: float = 0
    """Seconds for each MiB of a large file."""

    def __call__(self, asked: Asked) -> Reply:
        address = urlsplit(asked.path)
        if self.token and asked.authorization != f"Bearer {self.token}":
            return Reply(*((403, b"", {"X-Error-Code": "GatedRepo"}) if self.gated else (401, b"", {})))
        if address.path.startswith("/api/v1/models/"):
            return self._modelscope(address.path, {k: v[0] for k, v in parse_qs(address.query).items()})
        if not unquote(address.path).startswith((f"/api/models/{REPOSITORY}/", f"/{REPOSITORY}/resolve/")):
            return Reply(401, b"", {"X-Error-Code": "RepoNotFound"})
        return self._huggingface(address.path, parse_qs(address.query))

    def _huggingface(self, path: str, query: dict[str, list[str]]) -> Reply:
        if match := re.fullmatch(r"/api/models/.*/revision/(.+)", path):
            commit = {"main": self.moved or COMMIT, COMMIT: COMMIT}.get(match[1], "")
            return (
                as_json({"id": REPOSITORY, "sha": commit})
                if commit
                else Reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
            )
        if path.startswith("/api/models/"):
            return self._tree(path, int(query.get("cursor", ["0"])[0]))
        commit, _, name = path.partition("/resolve/")[2].partition("/")
        data = self.files.get(unquote(name))
        if data is None or commit != COMMIT:
            return Reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        told = {"X-Repo-Commit": commit, "X-Linked-ETag": f'"{sha256(data)}"'}
        if not name.endswith((".safetensors", ".bin")):
            return Reply(200, data, told, ranged=True)
        return Reply(302, b"", {**told, "Location": f"{self.cdn}/blob/{quote(unquote(name))}?signed=1"})

    def _tree(self, path: str, start: int) -> Reply:
        folder = {"type": "directory", "path": "tokenizer", "oid": OLDER, "size": 0}
        rows = self.rows if self.rows is not None else [*map(self._row, self.files), folder]
        more = start + self.page
        following = f'<https://elsewhere.example{path}?cursor={more}>; rel="next"' if more < len(rows) else ""
        return as_json(rows[start:more], **({"Link": following} if following else {}))

    def _row(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        row = {"type": "file", "path": name, "size": len(data), "oid": blob_sha1(data)}
        lfs = {"oid": sha256(data), "size": len(data), "pointerSize": 135}
        return {**row, "lfs": lfs} if name.endswith((".safetensors", ".bin")) else row

    def _modelscope(self, path: str, query: dict[str, str]) -> Reply:
        if path.endswith("/repo/files"):
            known = query["Revision"] in ("master", COMMIT)
            files = self.rows if self.rows is not None else [*map(self._ms_row, self.files)]
            latest = {"Id": "", "ShortId": COMMIT[:8]}
            return as_json({"Code": 200, "Data": {"Files": files if known else None, "LatestCommitter": latest}})
        data = self.files.get(query["FilePath"])
        if data is None or query["Revision"] not in ("master", COMMIT, OLDER):
            return Reply(404)
        return Reply(200, data, ranged=True)

    def _ms_row(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        revision = COMMIT if name == "config.json" else OLDER
        return {"Type": "blob", "Path": name, "Size": len(data), "Sha256": sha256(data), "Revision": revision}

    def content(self, asked: Asked) -> Reply:
        """Answer as the other host."""
        data = self.files[unquote(urlsplit(asked.path).path.removeprefix("/blob/"))]
        return Reply(200, data, ranged=True, slow=self.slow)


def as_json(data: object, **headers: str) -> Reply:
    return Reply(200, json.dumps(data).encode(), {"Content-Type": "application/json", **headers})


@dataclass
class Running:
    """A hub that listens, and the host that it sends large files from."""

    hub: Hub
    server: Server
    cdn: Server
    models: Path

    @property
    def target(self) -> Path:
        return self.models / "Tiny"

    def told(self, **changes: Any) -> dict[str, Any]:
        """Return the request to fetch it."""
        environment = {"HF_ENDPOINT": self.server.url, "MODELSCOPE_ENDPOINT": self.server.url}
        given = {"hub": "huggingface", "repository": REPOSITORY, "revision": "main", "folder": ""}
        told = {**given, "target": str(self.target), "environment": environment, **changes}
        told["environment"] = {**environment, **changes.get("environment", {})}
        return told

    def arrived(self) -> dict[str, bytes]:
        """Return what is in place, but for the manifest."""
        files = (path for path in self.target.rglob("*") if path.is_file() and path.name != "sparkstack-model.json")
        return {path.relative_to(self.target).as_posix(): path.read_bytes() for path in files}

    def manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.target / "sparkstack-model.json").read_text())
        return found


@contextmanager
def running(folder: Path, hub: Hub | None = None, address: str = "127.0.0.1") -> Iterator[Running]:
    hub = hub or Hub()
    with serving(hub, address) as server, serving(hub.content, address) as cdn:
        hub.cdn = cdn.url
        yield Running(hub, server, cdn, folder)
