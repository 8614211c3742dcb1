"""The wheels of a node: files by what they hash to, and beside them the names that pip and uv want.

ROOT/store/SHA256             whole, verified and on the disk: nothing else gets such a name
ROOT/store/.incoming/SHA256   what has come of one so far; the next run goes on at its end
ROOT/wheels/NAME.whl          a hard link to the file that was deployed last under this name
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from deploy.onnode.common import BLOCK, Refused, alone, digests, keep, link, say, sync_folder

READERS = 4
PATIENCE = 60.0
"""Seconds that an earlier run is given to end: its connection may have died without a word."""


@dataclass(frozen=True)
class Wheel:
    """A file that the node needs, and its name."""

    sha256: str
    size: int
    name: str


def wheels_of(told: Mapping[str, Any]) -> tuple[Wheel, ...]:
    """Return the wheels of a request: [[sha256, size, name]]."""
    return tuple(Wheel(str(sha256), int(size), str(name)) for sha256, size, name in told["wheels"])


@dataclass(frozen=True)
class Store:
    """The store below the suite's folder ``root``."""

    root: Path

    def whole(self, wheel: Wheel) -> Path:
        """Return where a file is once it is verified."""
        return self.root / "store" / wheel.sha256

    def part(self, wheel: Wheel) -> Path:
        """Return where it grows."""
        return self.root / "store" / ".incoming" / wheel.sha256

    def named(self, wheel: Wheel) -> Path:
        """Return its name for installers."""
        return self.root / "wheels" / wheel.name

    def arrived(self, wheel: Wheel) -> int:
        """Return how many bytes of an unfinished file are there; one that is too long is begun anew."""
        part = self.part(wheel)
        size = part.stat().st_size if part.exists() else 0
        if size > wheel.size:
            part.unlink()
        return size if size <= wheel.size else 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have the store for ourselves. Raises Refused where another run does not end."""
        for folder in (self.root / "store" / ".incoming", self.root / "wheels"):
            folder.mkdir(parents=True, exist_ok=True)
        with alone(self.root / "store" / ".lock", PATIENCE, "another push works on its store"):
            yield

    def missing(self, wanted: Sequence[Wheel]) -> list[Wheel]:
        """Return what has to come: all that is not there and good. What is damaged is removed, and said."""
        self._forget_others(wanted)
        with ThreadPoolExecutor(READERS) as readers:
            good = list(readers.map(self._is_here, wanted))
        return [wheel for wheel, here in zip(wanted, good, strict=True) if not here]

    def _forget_others(self, wanted: Sequence[Wheel]) -> None:
        names = {wheel.sha256 for wheel in wanted}
        for path in (self.root / "store" / ".incoming").iterdir():
            if path.name not in names:
                path.unlink()

    def _is_here(self, wheel: Wheel) -> bool:
        whole, named = self.whole(wheel), self.named(wheel)
        if whole.exists():
            if _is(whole, wheel):
                return True
            say(json.dumps({"damaged": wheel.name}))
            whole.unlink()
        # put there by name, by an earlier version or by hand
        if named.is_file() and _is(named, wheel):
            link(named, whole)
            return True
        return False

    def keep(self, wheel: Wheel) -> None:
        """Give a verified file its place, once its bytes are on the disk. Raises Refused where some of them are not."""
        size = self.part(wheel).stat().st_size
        if size != wheel.size:
            cause = f"{size} of the {wheel.size} bytes of {wheel.name} are on the disk"
            raise Refused("disk", cause, "look at the disk on the node, then run the same command again")
        keep(self.part(wheel), self.whole(wheel))

    def name(self, wanted: Iterable[Wheel]) -> None:
        """Give every file its name for installers, and bring all names to the disk."""
        for wheel in wanted:
            if not _same(self.named(wheel), self.whole(wheel)):
                link(self.whole(wheel), self.named(wheel))
        for folder in (self.root / "store", self.root / "wheels"):
            sync_folder(folder)


def hash_so_far(file: BinaryIO) -> hashlib._Hash:
    """Return the SHA-256 of what a file holds, to go on with."""
    total = hashlib.sha256()
    file.seek(0)
    while block := file.read(BLOCK):
        total.update(block)
    return total


def _is(path: Path, wheel: Wheel) -> bool:
    return path.stat().st_size == wheel.size and digests(path)["sha256"] == wheel.sha256


def _same(one: Path, other: Path) -> bool:
    return one.exists() and one.samefile(other)
