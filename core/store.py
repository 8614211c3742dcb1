"""Files by their SHA-256 in `.work/files/SHA256/NAME`: their hash is checked at every use. See core/download.py."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from core.config import WORK, shown
from core.errors import BuildFailed, HostNotReady
from core.plan import Report

BLOCK = 1024**2
BETWEEN_LINES = 2.0
"""Seconds between two lines of progress."""


def intact(sha256: str, report: Report, *, work: Path = WORK) -> Path | None:
    """Return the stored file with that hash, hashed again now; a damaged one is removed, and None returned."""
    for path in _stored(sha256, work):
        if digest(path) == sha256:
            return path
        path.unlink()
        report(f"{shown(path)} is damaged: its hash is not the one that it is kept under; removed")
    return None


def has_file(sha256: str, *, work: Path = WORK) -> bool:
    """Say whether the file is in the store, without looking into it."""
    return bool(_stored(sha256, work))


def has_size(path: Path, size: int) -> bool:
    """Say whether a file is there and has so many bytes."""
    return path.is_file() and path.stat().st_size == size


def _stored(sha256: str, work: Path) -> list[Path]:
    folder = work / "files" / sha256
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


def digest(path: Path) -> str:
    """Return a file's SHA-256 (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain_name(name: str) -> str:
    """Return a file name that is one; raise BuildFailed for one that leads elsewhere."""
    if not name or name != PurePosixPath(name).name or name.startswith(".") or not name.isprintable():
        raise BuildFailed(f"{name!r} is no plain file name", next_move="do not use that file; look where it comes from")
    return name


def settled(part: Path, target: Path) -> Path:
    """Give a finished file its name, once its bytes are on the disk."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    return part.replace(target)


class Slowly:
    """Passes lines of progress on, one every two seconds."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._last = time.monotonic()

    def __call__(self, line: str) -> None:
        """Take a line."""
        now = time.monotonic()
        if now - self._last >= BETWEEN_LINES:
            self._last = now
            self._report(line)


@contextmanager
def held(path: Path, what: str, report: Report) -> Iterator[None]:
    """Hold a lock file; where another command holds it, say so and wait. The kernel frees it however we end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"another command {what}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def full_disk_is_said(place: Path) -> Iterator[None]:
    """Turn "no space left" within the block into an error that says whose disk and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise full_disk(place) from error
        raise


def full_disk(place: Path) -> HostNotReady:
    """Return the error for a disk without space."""
    return HostNotReady(
        f"the disk of {shown(place)} is full",
        next_move="free space (`.work/` may be removed, it is fetched again), run the same command again",
    )
