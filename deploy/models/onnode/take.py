"""Takes a model from another node over the fabric: ranges in several streams, verified by the manifest.

`python3 -m deploy.models.onnode.take REQUEST` reads and removes the request, which is that of offer.py on the other
node but for the folder. Interrupted, it goes on with the ranges that are not there yet.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from deploy.models.onnode import files, offer
from deploy.models.onnode.files import Entry
from deploy.onnode import common
from deploy.onnode.calling import Caller, at_work, copied, require_all
from deploy.onnode.common import Progress, Refused, say

STREAMS = 4
RANGE = 64 << 20
"""Bytes that one request asks for: what is done again after a cut."""


def main(request: Path) -> int:
    """Take what the file names; return the exit code."""
    return common.ended(lambda: take(common.taken(request)))


@dataclass(frozen=True)
class Arrival:
    """A file that arrives in ranges, in any order; `.ranges` beside it says which are there."""

    number: int
    entry: Entry
    blobs: Path

    @property
    def whole(self) -> Path:
        """Where it is once verified."""
        return self.blobs / self.entry.key

    @property
    def part(self) -> Path:
        """Where it grows."""
        return self.blobs / f"{self.entry.key}.part"

    @property
    def record(self) -> Path:
        """Numbers of the ranges that are there, one a line."""
        return self.blobs / f"{self.entry.key}.ranges"

    def missing(self) -> list[int]:
        """Return the numbers of the ranges that have to come."""
        text = self.record.read_text(encoding="ascii") if self.record.exists() and self.part.exists() else ""
        there = {int(line) for line in text.split("\n")[:-1] if line.isdecimal()}
        return [number for number in range(-(-self.entry.size // RANGE)) if number not in there]

    def bounds(self, number: int) -> tuple[int, int]:
        """Return the first byte of a range, and the first behind it."""
        return number * RANGE, min(self.entry.size, (number + 1) * RANGE)

    def forget(self) -> None:
        """Begin anew."""
        self.part.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)


def take(told: Mapping[str, Any]) -> None:
    """Bring the model that the other node serves into the folder; whole and verified, or not at all."""
    target = Path(told["folder"])
    with files.held(target), closing(Caller(told)) as caller, at_work(caller, offer.HERE):
        _take(caller, target)


def _take(caller: Caller, target: Path) -> None:
    text: bytes = common.patiently(caller.manifest)
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise Refused("damaged", "the other node's manifest is damaged", "fetch the model there again") from error
    entries = files.entries_of(manifest)
    blobs = files.begin(target, {key: value for key, value in manifest.items() if key != "files"})
    _clear(blobs, entries)
    for entry in entries:
        _reuse(target / entry.path, entry, blobs)
    _bring_all(caller, [Arrival(number, entry, blobs) for number, entry in enumerate(entries)])
    files.place(files.staging_of(target), target, entries, text.decode())
    say(f"whole and verified in {target}")


def _clear(blobs: Path, entries: Sequence[Entry]) -> None:
    wanted = {f"{entry.key}{end}" for entry in entries for end in ("", ".part", ".ranges")}
    for path in blobs.iterdir():
        if path.name not in wanted:
            path.unlink()


def _reuse(path: Path, entry: Entry, blobs: Path) -> None:
    """Take a file that the folder has already and that is good."""
    whole = blobs / entry.key
    fits = not whole.exists() and path.is_file() and path.stat().st_size == entry.size
    if fits and common.digests(path)["sha256"] == entry.digest:
        common.link(path, whole)


def _bring_all(caller: Caller, arrivals: Sequence[Arrival]) -> None:
    """Fetch ranges in several streams; each file is verified while others still come. Raises the first Refused."""
    first = {arrival.entry.key: arrival for arrival in reversed(arrivals)}
    coming = {arrival: arrival.missing() for arrival in first.values() if not arrival.whole.exists()}
    bounds = [arrival.bounds(number) for arrival, missing in coming.items() for number in missing]
    wanted = sum(end - start for start, end in bounds)
    total = sum(arrival.entry.size for arrival in arrivals)
    common.require_room(arrivals[0].blobs if arrivals else Path("/"), wanted)
    with (
        Progress(total, total - wanted).shown() as progress,
        common.threads(STREAMS) as checks,
        common.threads(STREAMS) as streams,
    ):
        link, moved = _Link(caller, progress), {arrival: list[Future[None]]() for arrival in coming}
        for arrival, missing in coming.items():
            _begin(arrival, missing)
        for arrival, number in _in_turn(coming):
            moved[arrival].append(streams.submit(common.patiently, partial(_range, link, arrival, number)))
        _all([checks.submit(_finish, arrival) for arrival, ranges in moved.items() if _all(ranges)])


def _all(futures: Sequence[Future[None]]) -> bool:
    """Wait for all; raise the first error."""
    for future in futures:
        future.result()
    return True


@dataclass(frozen=True)
class _Link:
    """What ranges come over; the lock is for their records."""

    caller: Caller
    progress: Progress
    lock: threading.Lock = field(default_factory=threading.Lock)


def _begin(arrival: Arrival, missing: Sequence[int]) -> None:
    """Make room for the ranges that a file lacks."""
    if len(missing) == -(-arrival.entry.size // RANGE):
        arrival.forget()
    arrival.part.touch()
    os.truncate(arrival.part, arrival.entry.size)


def _in_turn(coming: Mapping[Arrival, Sequence[int]]) -> Iterator[tuple[Arrival, int]]:
    """Yield ranges of as many files as there are streams in turn: where two write to one file, one waits."""
    ranges = [[(arrival, number) for number in missing] for arrival, missing in coming.items()]
    for first in range(0, len(ranges), STREAMS):
        for row in zip_longest(*ranges[first : first + STREAMS]):
            yield from filter(None, row)


def _range(link: _Link, arrival: Arrival, number: int) -> None:
    """Bring one range to its place in the file. Raises Again when the connection ends too early."""
    start, end = arrival.bounds(number)
    answer = link.caller.file(arrival.number, start, end, arrival.entry.size)
    with arrival.part.open("r+b", buffering=0) as file:
        at = start
        for block in copied(answer, file.fileno(), start, end):
            at += len(block)
            link.progress.add(len(block))
    answer.close()
    if at < end:
        link.progress.add(start - at)
    require_all(link.caller, arrival.entry.path, at, end)
    with link.lock, arrival.record.open("a", encoding="ascii") as record:
        record.write(f"{number}\n")


def _finish(arrival: Arrival) -> None:
    """Verify a file and give it its name; a wrong one is forgotten, so that the next run brings all of it."""
    found = common.digests(arrival.part)["sha256"]
    if found != arrival.entry.digest:
        arrival.forget()
        raise common.wrong(arrival.entry.path, "verify the other node's (invoke model.verify), then run it again")
    common.keep(arrival.part, arrival.whole)
    arrival.record.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
