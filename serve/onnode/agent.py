"""One node's hands: starts and stops its units as it is ordered, and reports how they are."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from serve.onnode import memory, pagecache, reasons, shm
from serve.onnode.decide import DOWN, UP, Order, Seen, Unit
from serve.onnode.ranks import Ranks
from serve.onnode.wanted import Wanted

PATIENCE = 20.0
"""Seconds that systemd may take to answer; it kills a supervisor that is silent for longer (WatchdogSec)."""
READING = 5.0
"""Seconds that the journal may take to tell why a unit ended: the others run on meanwhile."""
SYNC = 3.0
"""Seconds that are waited for dirty pages."""
ROOM = 4 << 30
"""Bytes that stay free besides what the service needs, where the page cache is left as it is: for what starts around it
and for the files that are read meanwhile."""
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


class Unseen(Exception):
    """systemd did not say how the units are: it is starting itself anew, or has no time."""


class Agent:
    """Obeys orders on one node. A unit is started once an order: what ends is not started again by itself.

    ``serial`` and ``started`` are where the supervisor before it was, if that was killed.
    """

    def __init__(self, wanted: Wanted, serial: int, started: Iterable[str] = ()) -> None:
        self._wanted = wanted
        self._serial = serial
        self._units = wanted.units_of(wanted.node)
        self._started = set(started)
        self._notes: dict[str, str] = {}
        self._ranks = Ranks()
        self._whys: dict[str, str] = {}
        """Invocation of a unit that has ended to why it did: its journal is read once."""

    def report(self, now: float) -> Seen:
        """Look at the units and the memory. Raises Unseen: a unit of which nobody tells is not one that has ended."""
        shows = self._shows()
        if not set(shows) >= set(self._units):
            raise Unseen("systemd does not say how the units are")
        units = {name: self._unit(shows[name]) for name in self._units}
        notes, started = tuple(self._notes.values()), frozenset(self._started)
        return Seen(now, self._wanted.generation, self._serial, units, memory.available(), started, notes)

    def obey(self, order: Order) -> None:
        """Bring the units to what is ordered; an order of another generation is none of ours."""
        if order.generation != self._wanted.generation:
            return
        if order.serial != self._serial:
            self._serial = order.serial
            self._started = set()
        over = [name for name in self._units if name not in order.run]
        if over:
            self.kill(over)
        for name in self._units:
            if name in order.run and name not in self._started:
                self._start(name)

    def kill(self, names: Sequence[str] = ()) -> None:
        """End units at once: they are of no use without the others, and their clients wait."""
        names = names or self._units
        shows = self._shows()
        for name in names:
            if name not in shows or reasons.active(shows[name]) not in DOWN:
                _out("systemctl", "kill", "--signal=SIGKILL", f"{name}.service")
                _out("systemctl", "stop", "--no-block", f"{name}.service")

    def end(self) -> None:
        """End the units in order, the API first, and wait for it."""
        for name in reversed(self._units):
            _out("systemctl", "stop", f"{name}.service", timeout=120)

    def _shows(self) -> dict[str, dict[str, str]]:
        names = [f"{name}.service" for name in self._units]
        return reasons.shows(_out("systemctl", "show", *names, "-p", ",".join(reasons.PROPERTIES))) if names else {}

    def _start(self, name: str) -> None:
        if not self._started:
            self._prepare()
        self._started.add(name)
        _out("systemctl", "reset-failed", f"{name}.service")
        _out("systemctl", "start", "--no-block", f"{name}.service")

    def _prepare(self) -> None:
        """Make room: what killed ranks have left, and the page cache where vLLM could take it for memory in use."""
        self._notes.clear()
        swept = shm.sweep(pwd.getpwnam(self._wanted.user).pw_uid)
        if swept:
            self._notes["shm"] = f"removed {len(swept)} segments of shared memory that a killed rank left"
        needed = self._wanted.memory.get(self._wanted.node, 0)
        if needed and memory.free() > needed + ROOM:
            return  # libraries and weights are read from the page cache, and nobody misses the memory
        self._write_back()
        try:
            DROP_CACHES.write_text("3\n", encoding="ascii")
        except OSError as error:
            if self._wanted.root:
                pagecache.forget(Path(self._wanted.root))
            self._notes["cache"] = f"page cache not dropped, but of our own files: {error.strerror}"

    def _write_back(self) -> None:
        """Have dirty pages written, so that they can be dropped; where a disk is slow, for a few seconds only."""
        with suppress(subprocess.TimeoutExpired):
            subprocess.Popen(["sync"]).wait(SYNC)  # it goes on by itself: our own turn must not be late

    def _unit(self, show: dict[str, str]) -> Unit:
        state = reasons.active(show)
        why = self._why(show) if state in DOWN and show.get("InvocationID") else ""
        return Unit(state, why, self._ranks.lost(show) if state in UP else "")

    def _why(self, show: dict[str, str]) -> str:
        run = show["InvocationID"]
        if run not in self._whys:
            self._whys = {**self._whys, run: reasons.how(show) or reasons.real_error(_journal(run))}
        return self._whys[run]


def _journal(invocation: str) -> str:
    match = f"_SYSTEMD_INVOCATION_ID={invocation}"
    return _out("journalctl", "-b", match, "-o", "cat", "--no-pager", "-n", "2000", timeout=READING)


def _out(*argv: str, timeout: float | None = None) -> str:
    """Return what a command printed, nothing where it did not end in time: what it was to do shows in the next look."""
    own = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}  # ours alone speaks to systemd
    timeout = PATIENCE if timeout is None else timeout
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=timeout, check=False, env=own
        )
    except subprocess.TimeoutExpired:
        sys.stdout.write(f"{argv[0]} {argv[1]} did not end within {timeout:g} s\n")
        return ""
    return done.stdout
