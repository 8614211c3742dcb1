"""Where models come from, and all in which the hubs differ.

Hugging Face (https://huggingface.co/docs/hub/api): `/api/models/REPO/revision/REV` names the commit as `sha`;
`/api/models/REPO/tree/COMMIT?recursive=true` lists in pages, the next one by a cursor in the header `Link`; a file has
`oid`, the sha1 of its git blob, and one in LFS or Xet `lfs.oid` too, its sha256; `/REPO/resolve/COMMIT/PATH` sends a
file, or to the host that has it, and names the commit in `X-Repo-Commit` and the sha256 in `X-Linked-ETag`.

ModelScope (https://modelscope.cn, and its client modelscope_hub on PyPI):
`/api/v1/models/REPO/repo/files?Revision=REV&Recursive=true` lists all at once with `Sha256` for every file, large or
small, but of more than 3000 the first ones only; an unknown revision is answered with 200 and no files; the commit is
in `LatestCommitter`, perhaps only the beginning of it; each file names the commit that last changed it as `Revision`,
and that is what `/api/v1/models/REPO/repo?Revision=...&FilePath=...` is asked for: a branch may move meanwhile.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from deploy.models.onnode.files import MANIFEST, Entry, require_names
from deploy.models.onnode.web import Client
from deploy.onnode.common import Refused

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
SAFETENSORS = ".safetensors"
OTHER_WEIGHTS = {".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".tflite", ".ot", ".ckpt"}
PAGES = 1000
MOST = 3000
"""Files after which ModelScope's list ends without a word."""

_OTHER = "fetch from the other hub: --from huggingface"


@dataclass(frozen=True)
class Listing:
    """The files of a model at one commit."""

    commit: str
    files: tuple[Entry, ...]
    left_out: tuple[str, ...] = ()
    """The same weights in other formats."""


class Hub(Protocol):
    """Where a model's files are listed and sent from."""

    def listing(self) -> Listing:
        """Return the files at the commit that the revision names now. Raises Refused."""

    def open(self, commit: str, entry: Entry, start: int) -> http.client.HTTPResponse:
        """Ask for a file from a byte on. Raises Again and Refused."""


@dataclass(frozen=True)
class Asked:
    """A repository at a revision, and the environment: addresses and tokens."""

    repository: str
    revision: str
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


def hub_of(name: str, asked: Asked) -> Hub:
    """Return the hub called ``name``."""
    return ModelScope(asked) if name == "modelscope" else HuggingFace(asked)


def _home(address: str, token: str) -> str:
    """Return a hub's address. Raises Refused for another protocol, and for a token that everybody could read."""
    if not _is_address(address):
        raise Refused("hub", f"{address} is no address of a hub", "check HF_ENDPOINT or MODELSCOPE_ENDPOINT")
    parts = urlsplit(address)
    if token and parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise Refused("access", f"a token would go to {parts.hostname} in the clear", "use https, or unset the token")
    return address.rstrip("/")


def _is_address(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


class HuggingFace:
    """huggingface.co, or what HF_ENDPOINT names."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        token = asked.environment.get("HF_TOKEN", "").strip()
        home = _home(asked.environment.get("HF_ENDPOINT") or "https://huggingface.co", token)
        self._client = Client(home, {"Authorization": f"Bearer {token}"} if token else {}, self._explain)
        self._api = f"{home}/api/models/{quote(asked.repository)}"

    def listing(self) -> Listing:
        """Pin the revision to its commit, then list that."""
        found, _ = self._client.json(f"{self._api}/revision/{quote(self._asked.revision, safe='')}")
        commit = str(found.get("sha", "")) if isinstance(found, dict) else ""
        if not COMMIT.fullmatch(commit):
            raise Refused("hub", f"the hub names no commit for {self._asked.revision}", "check HF_ENDPOINT")
        rows = [row for row in self._tree(commit) if row.get("type") == "file"]
        return chosen(commit, (_of_huggingface(row) for row in rows))

    def _tree(self, commit: str) -> Iterator[dict[str, Any]]:
        cursor = ""
        for _ in range(PAGES):
            query = urlencode({"recursive": "true", **({"cursor": cursor} if cursor else {})})
            rows, headers = self._client.json(f"{self._api}/tree/{commit}?{query}")
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise Refused("hub", "the hub's list of files is none", "check HF_ENDPOINT")
            yield from rows
            cursor = _next_cursor(headers)
            if not cursor:
                return
        raise Refused("hub", f"the hub's list of files has more than {PAGES} pages", "look at it by hand")

    def open(self, commit: str, entry: Entry, start: int) -> http.client.HTTPResponse:
        """Ask the hub, which sends us on; that address is good for a while only, so it is asked each time."""
        path = quote(entry.path)
        return self._client.open(f"{self._client.home}/{quote(self._asked.repository)}/resolve/{commit}/{path}", start)

    def _explain(self, code: int, headers: Message) -> Refused | None:
        return _refusal(self._asked, code, headers.get("X-Error-Code", ""), "HF_TOKEN", self._client.home)


def _next_cursor(headers: Message) -> str:
    """Return the cursor of the next page; the rest of that address may name another host behind a mirror."""
    link = re.search(r'<([^>]*)>\s*;\s*rel="next"', headers.get("Link", ""))
    return parse_qs(link[1].partition("?")[2]).get("cursor", [""])[0] if link else ""


def _of_huggingface(row: Mapping[str, Any]) -> Entry:
    lfs = row.get("lfs")
    if isinstance(lfs, dict):
        return _entry(row.get("path"), lfs.get("size", row.get("size")), "sha256", lfs.get("oid"))
    return _entry(row.get("path"), row.get("size"), "git-sha1", row.get("oid"))


class ModelScope:
    """modelscope.cn, or what MODELSCOPE_ENDPOINT names (MODELSCOPE_DOMAIN in older versions of its client)."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        token = asked.environment.get("MODELSCOPE_API_TOKEN", "").strip()
        variables = (asked.environment.get(name) for name in ("MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN"))
        domain = next(filter(None, variables), "www.modelscope.cn")
        home = _home(domain if "://" in domain else f"https://{domain}", token)
        # its own client sends both: some of its addresses know the one, some the other
        private = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}
        self._client = Client(home, private, self._explain)
        self._api = f"{home}/api/v1/models/{quote(asked.repository)}/repo"

    def listing(self) -> Listing:
        """List the revision; every file there is pinned to a commit of its own."""
        revision = "master" if self._asked.revision == "main" else self._asked.revision
        answer, _ = self._client.json(f"{self._api}/files?{urlencode({'Revision': revision, 'Recursive': 'true'})}")
        data = answer.get("Data") if isinstance(answer, dict) else None
        rows = data.get("Files") if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(rows, list) or not rows:
            raise _absent(self._asked)
        if len(rows) >= MOST:
            raise Refused("hub", f"the hub lists the first {MOST} files only, and says nothing of others", _OTHER)
        blobs = [row for row in rows if isinstance(row, dict) and row.get("Type") != "tree"]
        return chosen(_commit_of(revision, data, blobs), map(_of_modelscope, blobs))

    def open(self, commit: str, entry: Entry, start: int) -> http.client.HTTPResponse:
        """Ask for the file as its own commit has it."""
        query = urlencode({"Revision": entry.revision or commit, "FilePath": entry.path})
        return self._client.open(f"{self._api}?{query}", start)

    def _explain(self, code: int, _: Message) -> Refused | None:
        return _refusal(self._asked, code, "", "MODELSCOPE_API_TOKEN", self._client.home)


def _of_modelscope(row: Mapping[str, Any]) -> Entry:
    entry = _entry(row.get("Path"), row.get("Size"), "sha256", row.get("Sha256"))
    revision = str(row.get("Revision", ""))
    return Entry(entry.path, entry.size, "sha256", entry.digest, revision if COMMIT.fullmatch(revision) else "")


def _commit_of(revision: str, data: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the commit of a list: as it is named, or the one among its files that begins as the short name does."""
    latest = data.get("LatestCommitter")
    told = latest if isinstance(latest, dict) else {}
    if COMMIT.fullmatch(revision):
        return revision
    if COMMIT.fullmatch(str(told.get("Id", ""))):
        return str(told["Id"])
    short = str(told.get("ShortId", ""))
    full = {str(row.get("Revision", "")) for row in rows}
    found = [one for one in full if len(short) >= 7 and one.startswith(short) and COMMIT.fullmatch(one)]
    return found[0] if found else short or "unknown"


def _entry(path: object, size: object, algorithm: str, digest: object) -> Entry:
    """Return a file of a list. Raises Refused where its hash or size is not there: it could not be verified."""
    fits = (SHA256 if algorithm == "sha256" else COMMIT).fullmatch(str(digest))
    if not isinstance(path, str) or type(size) is not int or fits is None:
        cause = f"the hub's list has no size or no hash for {ascii(path)[:120]}"
        raise Refused("hub", cause, "name another revision, or fetch from the other hub (--from)")
    return Entry(path, size, algorithm, str(digest))


def chosen(commit: str, entries: Iterable[Entry]) -> Listing:
    """Return the files that a model needs: beside safetensors no weights in another format."""
    files = require_names(entries)
    top = any("/" not in entry.path and entry.path.endswith(SAFETENSORS) for entry in files)
    left = {entry.path for entry in files if top and _is_other(entry.path)}
    return Listing(commit, tuple(entry for entry in files if entry.path not in left), tuple(sorted(left)))


def _is_other(path: str) -> bool:
    return Path(path).suffix in OTHER_WEIGHTS or path.startswith(("original/", "onnx/"))


def folder_listing(folder: Path) -> Listing:
    """Return the files of a model in a folder, which nobody vouches for. Raises Refused where it is none."""
    if not (folder / "config.json").is_file():
        raise Refused("absent", f"there is no model in {folder}: no config.json", "check the folder on the node")
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = ((path, path.relative_to(folder)) for path in found)
    kept = ((path, name) for path, name in names if not any(part.startswith(".") for part in name.parts))
    entries = (Entry(name.as_posix(), path.stat().st_size) for path, name in kept if name.name != MANIFEST)
    return chosen("", entries)


def _refusal(asked: Asked, code: int, said: str, variable: str, home: str) -> Refused | None:
    """Return what an answer of 401, 403 or 404 means; a hub answers 401 for what it does not have, too."""
    if said in ("RevisionNotFound", "EntryNotFound") or (code == 404 and said != "RepoNotFound"):
        return _absent(asked)
    if said == "GatedRepo" or code == 403:
        return Refused(
            "access",
            f"{asked.repository} is open to those only who agreed to its conditions",
            f"agree to them at {home}/{asked.repository}, then set {variable} to your token and run it again",
        )
    if code in (401, 404):
        return Refused(
            "access",
            f"the hub has no {asked.repository}, or not for us",
            f"check the name; of a private repository set {variable}",
        )
    return None


def _absent(asked: Asked) -> Refused:
    cause = f"{asked.repository} has no revision {asked.revision}, or no files in it"
    return Refused("absent", cause, "check the name and --revision")
