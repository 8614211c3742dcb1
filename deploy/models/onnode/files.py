"""The files of a model on a node: their names, their hashes, their manifest, and how they get into place.

While a model arrives it lies beside its folder, in `.NAME.incoming/`: `blobs/` holds the files by what they must hash
to, one that is not whole with `.part` behind its name, and its manifest has `"partial": true` and no files. The folder
itself has a manifest that is written last:

    {"format": 1, "repository": "Qwen/...", "hub": "huggingface", "revision": "main", "commit": "5ede...",
     "files": [{"path": "config.json", "size": 663, "sha256": "..."}]}
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.onnode.common import Refused, alone, keep, sync, sync_folder

MANIFEST = "sparkstack-model.json"
PATIENCE = 5.0
"""Seconds that an earlier run is given to end."""


@dataclass(frozen=True)
class Entry:
    """A file as a hub lists it: ``algorithm`` is "sha256", "git-sha1" (of the blob), or nothing where none is known."""

    path: str
    size: int
    algorithm: str = ""
    digest: str = ""
    revision: str = ""
    """Of this file alone, where the hub has one."""

    @property
    def key(self) -> str:
        """Name of its blob: what it must hash to, else of its path."""
        return f"{self.algorithm}-{self.digest}" if self.digest else f"path-{hashlib.sha256(_bytes(self)).hexdigest()}"


def _bytes(entry: Entry) -> bytes:
    return entry.path.encode()


def name_fault(path: str) -> str:
    """Say why a hub's file name cannot be one on a node; nothing when it can."""
    parts = path.split("/")
    if not path or any(part in ("", ".", "..") for part in parts):
        return "it is no path below a folder"
    if not path.isprintable():
        return "it holds characters that cannot be shown"
    if any(len(part.encode()) > 255 for part in parts) or len(path.encode()) > 1000:
        return "it is too long"
    return f"{parts[0]} is the suite's own" if parts[0] == MANIFEST else ""


def require_names(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return the entries by name. Raises Refused for a name that leaves the folder, twice one, a file as folder."""
    found: dict[str, Entry] = {}
    for entry in entries:
        fault = name_fault(entry.path) or ("it is listed twice" if entry.path in found else "")
        fault = fault or ("its size is below 0" if entry.size < 0 else "")
        if fault:
            raise _bad_name(entry.path, fault)
        found[entry.path] = entry
    for path in found:
        above = next((path[:end] for end, sign in enumerate(path) if sign == "/" and path[:end] in found), "")
        if above:
            raise _bad_name(path, f"{above!r} is a file")
    return tuple(found[path] for path in sorted(found))


def _bad_name(path: str, fault: str) -> Refused:
    return Refused(
        "hub", f"the list names a file {ascii(path)[:120]}: {fault}", "do not use this repository; look at it by hand"
    )


def manifest_text(about: Mapping[str, Any], files: Iterable[tuple[str, int, str]]) -> str:
    """Return the manifest of (path, size, sha256) and what else is known of the model."""
    listed = [{"path": path, "size": size, "sha256": sha256} for path, size, sha256 in sorted(files)]
    return json.dumps({"format": 1, **about, "files": listed}, indent=1) + "\n"


def entries_of(manifest: Mapping[str, Any]) -> tuple[Entry, ...]:
    """Return the files of a manifest. Raises Refused for one that holds something else."""
    try:
        return require_names(
            Entry(str(one["path"]), int(one["size"]), "sha256", str(one["sha256"])) for one in manifest["files"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Refused("damaged", f"the manifest is damaged: {error!r}", "fetch the model again") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a model's manifest; an empty one where there is none that can be read."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def staging_of(target: Path) -> Path:
    """Return where a model lies while it arrives: beside its folder, on the same disk."""
    return target.parent / f".{target.name}.incoming"


@contextmanager
def held(target: Path) -> Iterator[None]:
    """Have the place where a model arrives to ourselves. Raises Refused where another run brings it just now."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.parent / f".{target.name}.lock"
    with alone(lock, PATIENCE, f"another fetch brings {target} just now"):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def begin(target: Path, about: Mapping[str, Any]) -> Path:
    """Make the place where a model arrives, with a manifest that says so; return the folder of its blobs."""
    staging = staging_of(target)
    (staging / "blobs").mkdir(parents=True, exist_ok=True)
    (staging / MANIFEST).write_text(manifest_text({**about, "partial": True}, ()), encoding="utf-8")
    return staging / "blobs"


def place(staging: Path, target: Path, entries: Sequence[Entry], manifest: str) -> None:
    """Put a whole model where it belongs: a new folder by one rename, into one that exists file by file."""
    tree = staging / "files"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    for entry in entries:
        path = tree / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(staging / "blobs" / entry.key, path)
    (staging / "manifest").write_text(manifest, encoding="utf-8")
    keep(staging / "manifest", tree / MANIFEST)
    sync(tree)
    if target.exists():
        _merge(tree, target, entries)
    else:
        tree.rename(target)
    sync(target)
    sync_folder(target.parent)
    shutil.rmtree(staging)


def _merge(tree: Path, target: Path, entries: Sequence[Entry]) -> None:
    """Replace the files of a folder; others that a user keeps there stay, those of our former manifest go."""
    former = read_manifest(target)
    kept = {entry.path for entry in entries}
    (target / MANIFEST).unlink(missing_ok=True)
    for old in entries_of(former) if former else ():
        if old.path not in kept:
            (target / old.path).unlink(missing_ok=True)
    for name in (*(entry.path for entry in entries), MANIFEST):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).replace(target / name)
