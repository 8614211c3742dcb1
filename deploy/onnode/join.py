"""Takes wheels that another node offers on the fabric into the store of this node, while they arrive there.

The request: {"root": "/opt/sparkstack", "wheels": [[SHA256, SIZE, NAME], ...], "node": "gx10-c6fb", "from": {"address":
"172.16.100.1", "port": 29778, "secret": HEX}}; the wheels in the same order as there. It ends when its stdin does.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from deploy.onnode import common
from deploy.onnode.calling import Caller, at_work, copied, require_all, tell
from deploy.onnode.common import BLOCK, Again, Progress, Refused, say
from deploy.onnode.store import Store, Wheel, hash_so_far, wheels_of

STREAMS = 3
PAUSE = 0.1
PATIENCE = 60.0
"""Seconds that the other node is given to begin."""

LOST = 10.0
"""Seconds without an answer after which it is given up, once it has answered."""


def main(told: Mapping[str, Any]) -> int:
    """Take what the request names; return the exit code."""
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    return common.ended(lambda: join(told))


def _end_with_stdin() -> None:
    while os.read(0, BLOCK):
        pass
    os._exit(1)


def join(told: Mapping[str, Any]) -> None:
    """Take all wheels that are not there and good. Raises Refused."""
    store, wanted = Store(Path(told["root"])), wheels_of(told)
    with store.held(), closing(Caller(told["from"])) as caller:
        try:
            with at_work(caller, f"/here/{told['node']}"):
                _take(store, wanted, caller)
        finally:
            tell(caller, f"/done/{told['node']}")
    say(json.dumps({"done": True}))


def _take(store: Store, wanted: tuple[Wheel, ...], caller: Caller) -> None:
    missing = store.missing(wanted)
    there = sum(store.arrived(wheel) for wheel in missing)
    total = sum(wheel.size for wheel in missing)
    common.require_room(store.root, total - there)
    with Progress(total, there, interval=0.5).shown() as progress, common.threads(STREAMS) as streams:
        taking = _Taking(store, caller, progress)
        for one in [streams.submit(taking.take, wanted.index(wheel), wheel) for wheel in missing]:
            one.result()
    store.name(wanted)


class _Taking:
    """Files of one relay, each from where it stands."""

    def __init__(self, store: Store, caller: Caller, progress: Progress) -> None:
        self._store, self._caller, self._progress = store, caller, progress
        self._moved, self._patience = monotonic(), PATIENCE

    def take(self, number: int, wheel: Wheel) -> None:
        """Bring one file, and keep it once it is what it must hash to. Raises Refused."""
        begun = self._store.arrived(wheel)
        found = self._patiently(number, wheel)
        if found != wheel.sha256:
            self._store.part(wheel).unlink()
            self._progress.add(-wheel.size)
            found = self._patiently(number, wheel) if begun else found
        if found != wheel.sha256:
            raise common.wrong(wheel.name, "run the same command again")
        self._store.keep(wheel)

    def _patiently(self, number: int, wheel: Wheel) -> str:
        while True:
            try:
                return self._once(number, wheel)
            except Again as again:
                if isinstance(again.__cause__, http.client.RemoteDisconnected):
                    self._heard()  # it is there, and waits for the bytes itself
                if monotonic() - self._moved > self._patience:
                    cause = f"nothing came over the fabric for {self._patience:.0f} s: {again}"
                    raise Refused("network", cause, "check the cable between the nodes, then run it again") from again
                sleep(PAUSE)

    def _heard(self) -> None:
        self._moved, self._patience = monotonic(), min(self._patience, LOST)

    def _once(self, number: int, wheel: Wheel) -> str:
        """Bring the rest of a file; return what it hashes to. Raises Again where the connection ends too early."""
        at = self._store.arrived(wheel)
        with self._store.part(wheel).open("a+b", buffering=0) as file:
            total = hash_so_far(file)
            if at < wheel.size:
                answer = self._caller.file(number, at, wheel.size, wheel.size)
                for piece in copied(answer, file.fileno(), at, wheel.size):
                    total.update(piece)
                    at += len(piece)
                    self._heard()
                    self._progress.add(len(piece))
                answer.close()
        require_all(self._caller, wheel.name, at, wheel.size)
        return total.hexdigest()
