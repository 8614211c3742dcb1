"""Receives wheels over stdin into the store of this node, and offers them to the other nodes while they arrive.

The request: {"root": "/opt/sparkstack", "wheels": [[SHA256, SIZE, NAME], ...], "silence": SECONDS without a byte after
which the controller counts as gone}, and to offer them on the fabric as well
"offer": {"address": "172.16.100.1", "port": 29778, "secret": HEX, "takers": ["gx10-c6fb"]}.

A line on stdout, {"need": [[SHA256, BYTES THAT ARE THERE], ...]}, asks for bytes: the rest of each of these files, one
after the other, has to follow on stdin. A file that went on from bytes of an earlier run and is not what it must hash
to is asked for again, whole. {"done": true} ends it: all files are whole, verified, on the disk, and have their names.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any, BinaryIO

from deploy.onnode import common
from deploy.onnode.common import BLOCK, Refused, say
from deploy.onnode.serving import Served, server
from deploy.onnode.store import Store, Wheel, hash_so_far, wheels_of

SILENCE = 25.0
"""Seconds without a byte after which who sends, or who is waited for, counts as gone; ssh itself gives up after 20."""

WAIT = 15.0
"""Seconds that a node waits for new bytes of a file before it has to ask again."""

GATHER = 256 << 10
PAUSE = 0.002
"""Seconds in which bytes may gather, where fewer came at once."""

FLUSH = 64 << 20
"""Bytes after which what has come is brought to the disk, so that little is left to do at the end of a file."""


def main(told: Mapping[str, Any]) -> int:
    """Receive what the request names; return the exit code."""
    return common.ended(lambda: receive(told))


def receive(told: Mapping[str, Any], descriptor: int = 0) -> None:
    """Bring all wheels of the request into the store; raises Refused."""
    store, wanted = Store(Path(told["root"])), wheels_of(told)
    arriving = Arriving(store, wanted, float(told.get("silence", SILENCE)))
    with store.held(), _offered(told.get("offer"), arriving) as wait:
        missing = store.missing(wanted)
        arriving.begin(missing)
        common.require_room(store.root, sum(wheel.size - store.arrived(wheel) for wheel in missing))
        wrong = _round(arriving, missing, descriptor)
        _round(arriving, wrong, descriptor)  # all of them come whole now: one that is wrong again is refused
        store.name(wanted)
        say(json.dumps({"done": True}))
        wait()


def _round(arriving: Arriving, missing: Sequence[Wheel], descriptor: int) -> list[Wheel]:
    """Ask for the rest of files and take it; return those that went on from bytes that were not good."""
    if not missing:
        return []
    store = arriving.store
    say(json.dumps({"need": [[wheel.sha256, store.arrived(wheel)] for wheel in missing]}))
    with ThreadPoolExecutor(1) as keeper:
        kept: list[Future[None]] = []
        wrong = [wheel for wheel in missing if not _arrive(arriving, wheel, descriptor, keeper, kept)]
        for one in kept:
            one.result()
    return wrong


def _arrive(
    arriving: Arriving, wheel: Wheel, descriptor: int, keeper: ThreadPoolExecutor, kept: list[Future[None]]
) -> bool:
    """Take the rest of one file; False where it has to come again. Raises Refused for one that came whole and wrong."""
    part, store = arriving.store.part(wheel), arriving.store
    begun = at = store.arrived(wheel)
    with part.open("a+b", buffering=0) as file:
        total = hash_so_far(file)
        for block in _blocks(descriptor, wheel.size - at, arriving.silence):
            common.write_all(file.fileno(), block, at)
            total.update(block)
            at += len(block)
            arriving.grow(wheel, at)
            if at // FLUSH > (at - len(block)) // FLUSH:
                kept.append(keeper.submit(_flush, part))
    if total.hexdigest() == wheel.sha256:
        kept.append(keeper.submit(store.keep, wheel))
        return True
    part.unlink()
    arriving.grow(wheel, 0)
    if not begun:
        raise common.wrong(wheel.name, "build or fetch the wheels again (invoke build-wheels), then run it again")
    return False


def _flush(part: Path) -> None:
    try:
        with part.open("rb") as file:
            os.fdatasync(file.fileno())
    except FileNotFoundError:
        return  # it was not what it must be


def _blocks(descriptor: int, left: int, silence: float) -> Iterator[memoryview]:
    """Yield so many bytes as they come. Raises Refused where they end, or nothing comes."""
    buffer, roomy = memoryview(bytearray(BLOCK)), _roomy(descriptor)
    while left:
        ready, _, _ = select.select([descriptor], [], [], silence)
        count = os.readv(descriptor, [buffer[:left]]) if ready else 0
        if not count:
            raise Refused("network", "the connection ended in the middle", "run it again: what has arrived is kept")
        left -= count
        yield buffer[:count]
        if roomy and left and count < GATHER:
            sleep(PAUSE)


def _roomy(descriptor: int) -> bool:
    """Make a pipe hold more; whether it does. It came in pieces of 32 kB, each of which wakes two nodes."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, BLOCK) >= BLOCK
    except OSError:
        return False  # it is none, or root's limit forbids it


class Arriving:
    """The wheels as what is offered to other nodes, some of them still on their way."""

    manifest = b""

    def __init__(self, store: Store, wanted: Sequence[Wheel], silence: float = SILENCE) -> None:
        self.store = store
        self.silence = silence
        self._wanted = wanted
        self._there: dict[Wheel, int] = {}
        self._changed = threading.Condition()
        self.left: set[str] = set()
        """Names of nodes that still take."""

    def begin(self, missing: Sequence[Wheel]) -> None:
        """Say what is there: all but these."""
        with self._changed:
            self._there = {wheel: wheel.size for wheel in self._wanted if wheel not in missing}
            self._there |= {wheel: self.store.arrived(wheel) for wheel in missing}
            self._changed.notify_all()

    def grow(self, wheel: Wheel, size: int) -> None:
        """Say that so much of a file is there."""
        with self._changed:
            self._there[wheel] = size
            self._changed.notify_all()

    def size(self, number: int) -> int | None:
        """Return a file's size, by its number in the request."""
        return self._wanted[number].size if number < len(self._wanted) else None

    def open(self, number: int) -> BinaryIO:
        """Open a file, whole or not, once something of it is there."""
        self.reach(number, 0)
        wheel = self._wanted[number]
        try:
            return self.store.part(wheel).open("rb")
        except FileNotFoundError:
            return self.store.whole(wheel).open("rb")

    def reach(self, number: int, at: int) -> int:
        """Return how much of it is there, once it is more than ``at``. Raises TimeoutError."""
        wheel = self._wanted[number]
        with self._changed:
            if not self._changed.wait_for(lambda: self._there.get(wheel, 0) > at, WAIT):
                raise TimeoutError
            return self._there[wheel]

    def said(self, path: str) -> bool:
        """Note what a node says: it is at work (/here/NODE), or has ended its taking (/done/NODE)."""
        found = re.fullmatch(r"/(here|done)/([a-z0-9.-]+)", path)
        if found and found[1] == "done":
            self.left.discard(found[2])
        return found is not None


@contextmanager
def _offered(told: Mapping[str, Any] | None, arriving: Arriving) -> Iterator[Any]:
    """Offer the wheels, where this is asked for; gives what waits until the others have taken them."""
    if told is None:
        yield lambda: None
        return
    arriving.left.update(told["takers"])
    served = Served(arriving, told["secret"])
    with server(told, served) as made:
        threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()

        def wait() -> None:
            while arriving.left and served.idle < SILENCE:
                sleep(0.02)

        try:
            yield wait
        finally:
            made.shutdown()
