"""Blobs of images by their digest in `.work/blobs/sha256/HEX`: whole ones, hashed again at every use, and parts.

A part is what has come of a blob (`.HEX.part`). Beside it stands how far it was written in good order and the SHA-256
up to there (`.HEX.known`): a part is continued from there, and only if it still is what had come.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from core.config import WORK, shown
from core.plan import Report
from core.store import BLOCK, full_disk_is_said, held
from wheels.images.documents import Descriptor

if TYPE_CHECKING:
    from hashlib import _Hash

CHECKPOINT = 64 * 1024**2
"""Bytes after which it is written down how far a part is good."""
_KNOWN = re.compile(r"([0-9]{1,15}) ([0-9a-f]{64})\n?")


@dataclass(frozen=True)
class Kept:
    """The place of one blob in the store."""

    folder: Path
    hexadecimal: str

    @property
    def whole(self) -> Path:
        """The blob, once it is complete."""
        return self.folder / self.hexadecimal

    @property
    def part(self) -> Path:
        """What has come of it."""
        return self.folder / f".{self.hexadecimal}.part"

    @property
    def known(self) -> Path:
        """How far the part is good."""
        return self.folder / f".{self.hexadecimal}.known"

    @property
    def lock(self) -> Path:
        """Who holds it may write the part."""
        return self.folder / f".{self.hexadecimal}.lock"

    @contextmanager
    def locked(self, report: Report) -> Iterator[None]:
        """Let one reader at a time have this blob; a full disk is said."""
        what = f"fetches {self.hexadecimal[:12]}"
        with held(self.lock, what, report), full_disk_is_said(self.folder):
            yield

    def intact(self, size: int, report: Report) -> bool:
        """Say whether the whole blob is here, hashed again now; a damaged one is removed."""
        if not self.whole.exists():
            return False
        with self.whole.open("rb") as file:
            same = file.seek(0, os.SEEK_END) == size
            file.seek(0)
            if same and hashlib.file_digest(file, "sha256").hexdigest() == self.hexadecimal:
                return True
        self.whole.unlink()
        report(f"{shown(self.whole)} is damaged: its hash is not the one that it is kept under; removed")
        return False

    def settle(self) -> None:
        """Give a verified part its name. It is hashed again at every use: it need not be forced to the disk."""
        self.part.replace(self.whole)
        self.known.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all of it."""
        for path in (self.known, self.part, self.whole):
            path.unlink(missing_ok=True)


def kept(blob: Descriptor, work: Path = WORK) -> Kept:
    """Return where a blob is kept; its digest must be one of SHA-256."""
    return Kept(work / "blobs" / "sha256", blob.digest.removeprefix("sha256:"))


def forget(blob: Descriptor, *, work: Path = WORK) -> int:
    """Remove what is kept of a blob; return the bytes that this frees: 0 while somebody fetches it just now."""
    place = kept(blob, work)
    if not place.folder.is_dir():
        return 0
    with place.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        size = sum(path.stat().st_size for path in (place.part, place.whole) if path.exists())
        place.remove()
    return size


class Growing:
    """A part that is being written: hashes what is appended, and writes down how far it is good."""

    def __init__(self, place: Kept) -> None:
        self._place = place
        self._file: IO[bytes] = place.part.open("r+b" if place.part.exists() else "w+b")
        self._hash: _Hash = hashlib.sha256()
        self._noted = 0
        self.size = 0

    def __enter__(self) -> Growing:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            if self.size > self._noted:
                self._note()

    def earlier(self, most: int) -> Iterator[bytes]:
        """Yield what an earlier run left, as far as it is good; the rest is cut off. At most ``most`` bytes."""
        size, digest = self._found()
        if 0 < size <= most and self._digest_to(size) == digest:
            self._noted = size
            self._file.seek(0)
            while self.size < size and (block := self._file.read(min(BLOCK, size - self.size))):
                self._hash.update(block)
                self.size += len(block)
                yield block
        self._file.seek(self.size)
        self._file.truncate()

    def append(self, block: bytes) -> None:
        """Write the next bytes."""
        self._file.write(block)
        self._hash.update(block)
        self.size += len(block)
        if self.size - self._noted >= CHECKPOINT:
            self._note()

    def digest(self) -> str:
        """Return "sha256:HEX" of all that is there."""
        return f"sha256:{self._hash.hexdigest()}"

    def _found(self) -> tuple[int, str]:
        known = self._place.known
        match = _KNOWN.fullmatch(known.read_text(encoding="ascii", errors="replace")) if known.exists() else None
        return (int(match[1]), match[2]) if match else (0, "")

    def _digest_to(self, size: int) -> str:
        self._file.seek(0)
        total = hashlib.sha256()
        left = size
        while left and (block := self._file.read(min(BLOCK, left))):
            total.update(block)
            left -= len(block)
        return total.hexdigest() if not left else ""

    def _note(self) -> None:
        """Write down how far the part is good, after the bytes themselves."""
        self._file.flush()
        self._noted = self.size
        self._place.known.write_text(f"{self.size} {self._hash.hexdigest()}\n", encoding="ascii")
