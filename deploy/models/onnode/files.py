"""The files of a model on a node: their names, their hashes, their manifest, and how they get into place.

While a model arrives it lies beside its folder, in `.NAME.incoming/`: `blobs/` holds the files by what they must hash
to, one that is not whole with `.part` behind its name, and its manifest has `"partial": true` and no files. The folder
itself has a manifest that is written last:

    {"format": 1, "repository": "Qwen/...", "hub": "huggingface", "revision": "main", "commit": "5ede...",
     "files": [{"path": "config.json", "size": 663, "sha256": "..."}]}
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "sparkstack-model.json"
BLOCK = 1 << 20
MARGIN = 1 << 30
"""Bytes that stay free on the disk."""


class Refused(Exception):
    """What ends the work: its ``kind`` ("network", "hub", "access", "absent", "damaged", "disk"), cause, next move."""

    def __init__(self, kind: str, cause: str, next_move: str) -> None:
        super().__init__(cause)
        self.kind = kind
        self.cause = cause
        self.next_move = next_move

    def to_json(self) -> str:
        """Return the line that the controller reads."""
        return json.dumps({"error": self.kind, "cause": self.cause, "next": self.next_move})


def taken(request: Path) -> dict[str, Any]:
    """Read a request and remove it: it may hold secrets. Raises Refused where it is gone."""
    try:
        told: dict[str, Any] = json.loads(request.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        cause = "this work has ended meanwhile, or was started without a request"
        raise Refused("absent", cause, "run the same command again") from error
    request.unlink()
    return told


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
    if any(unicodedata.category(character)[0] == "C" for character in path):
        return "it holds control characters"
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


def digests(path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> dict[str, str]:
    """Return a file's sha256, and the sha1 that git has for it as a blob."""
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    small = path.stat().st_size < 1 << 26  # larger files are in no git repository as such
    buffer = memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            sha256.update(buffer[:count])
            if small:
                blob.update(buffer[:count])
            on_bytes(count)
    return {"sha256": sha256.hexdigest(), "git-sha1": blob.hexdigest()}


def keep(part: Path, whole: Path) -> None:
    """Give a verified file its name; what has a name is on the disk, also after a power loss."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(whole)


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


def sync(folder: Path) -> None:
    """Bring the names in a folder, and below it, to the disk."""
    for path in (folder, *(found for found in folder.rglob("*") if found.is_dir())):
        sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_room(folder: Path, wanted: int) -> None:
    """Raise Refused where the disk has no room for so many bytes and a margin."""
    free = shutil.disk_usage(folder).free
    if wanted and wanted + MARGIN > free:
        raise Refused(
            "disk",
            f"{size_words(wanted)} are still to come and {size_words(free)} are free in {folder}",
            "free space on the node, or remove a model: invoke model.remove",
        )


def size_words(size: float) -> str:
    """Return bytes for people."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Progress:
    """Counts bytes from several threads, and says every few seconds how far it is."""

    def __init__(self, total: int, done: int = 0, interval: float = 2.0) -> None:
        self._total, self._done, self._began, self._first = total, done, time.monotonic(), done
        self._interval = interval
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def add(self, count: int) -> None:
        """Count more bytes; below 0 where some have to come again."""
        with self._lock:
            self._done += count

    def line(self) -> str:
        """Return how far it is, the rate since it began, and the time left."""
        rate = max(0, self._done - self._first) / max(time.monotonic() - self._began, 0.001)
        left = f", {(self._total - self._done) / rate / 60:.0f} min left" if rate > 1 else ""
        return f"{size_words(self._done)} of {size_words(self._total)}, {size_words(rate)}/s{left}"

    @contextmanager
    def shown(self) -> Iterator[Progress]:
        """Say it until the block ends, and once then."""
        thread = threading.Thread(target=self._tell, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()
            say(self.line())

    def _tell(self) -> None:
        while not self._ended.wait(self._interval):
            say(self.line())


@contextmanager
def named_errors() -> Iterator[None]:
    """Turn what the disk says into Refused."""
    try:
        yield
    except OSError as error:
        cause = f"{error.filename or 'a file'}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Refused("disk", f"the disk is full ({cause})", "free space on the node, then run it again") from error
        raise Refused("disk", cause, "look at it on the node, then run the same command again") from error
