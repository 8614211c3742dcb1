"""Keeps the service up on this node: decides on the head, obeys on a worker (`python3 -m serve.onnode.supervisor`).

Nothing here needs the controller: it goes on while that is off, and after each boot. Told to end, it ends what it has
started; killed and started again, it goes on with what runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from serve.onnode import clock, decide, link, record
from serve.onnode.agent import Agent, Unseen
from serve.onnode.decide import Order, Phase, Seen, State
from serve.onnode.notify import notify
from serve.onnode.wanted import CREDENTIALS, SERVICE, Wanted, parse

TURN, QUICK = 0.5, 0.1
"""Seconds between two looks, and while something happens: a start is a chain of looks and orders."""
LIVELY = 10.0
"""Seconds after a change within which the next one is expected."""
WRITTEN = 2.0
"""Seconds after which the state is written down again, changed or not: its age tells that it is alive."""
FIREWALL = Path("/etc/sparkstack/firewall.nft")
DOORS = 3.0
"""Seconds between two looks at the firewall."""
HOOK = 60
"""Seconds that the hook may take."""


class Head:
    """The supervisor that decides."""

    def __init__(self, wanted: Wanted, secret: bytes, text: str) -> None:
        self._wanted, self._secret = wanted, secret
        now = clock.now()
        found = record.state(text, wanted.generation)
        self._state = found or decide.first(now, int(now), record.served(wanted.generation))
        self._agent = Agent(wanted, *record.order(text, wanted.generation))
        self._patience = now + (wanted.limits.lost if found else 0)
        self.changed = now
        self._own: dict[str, Seen] = {}
        self._desk = link.Desk()
        self._server: link.Server | None = None

    def turn(self) -> dict[str, Any]:
        """Look, decide, act; return the state to write down."""
        trouble = self._listen()
        now = clock.now()
        with suppress(Unseen):  # a look that failed makes the last one older, as a node's silence does
            self._own = {self._wanted.node: self._agent.report(now)}
        seen = {**self._desk.reports(), **self._own}
        if now >= self._patience or set(seen) >= set(self._wanted.members):
            self._move(decide.step(self._state, self._wanted, seen, now))
        orders = {node: decide.order_for(self._state, self._wanted, node) for node in self._wanted.nodes}
        self._desk.publish(orders)
        self._agent.obey(orders[self._wanted.node])
        data = record.head(self._state, self._wanted, seen, now)
        return {**data, "reason": trouble} if trouble else data

    def _move(self, after: State) -> None:
        before, self._state = self._state, after
        if (before.phase, before.stage) != (after.phase, after.stage):
            self.changed = clock.now()
        if (before.phase, before.reason) != (after.phase, after.reason):
            say(f"{after.phase}: {after.reason}")
        if after.phase is Phase.SERVING is not before.phase:
            self._remember()
        if after.phase is Phase.GIVEN_UP is not before.phase and self._wanted.hook:
            data = record.head(after, self._wanted, {}, clock.now())
            Thread(target=run_hook, args=(self._wanted, data), daemon=True).start()

    def _remember(self) -> None:
        """Write down that it has served: after the next boot it is not a new one, which is given up sooner."""
        try:
            record.serve(self._wanted.generation, time.time())
        except OSError as error:
            say(f"that it serves cannot be written down: {error}")

    def _listen(self) -> str:
        """Open the door for the workers; the address may not be there yet while the machine boots."""
        if self._server is not None or len(self._wanted.nodes) == 1:
            return ""
        address = (self._wanted.addresses[self._wanted.node], self._wanted.port)
        try:
            self._server = link.Server(address, self._secret, self._desk)
        except OSError as error:
            return f"{address[0]} port {address[1]} cannot be listened at: {error.strerror}"
        return ""

    def end(self) -> None:
        """End this node's units."""
        self._agent.end()


class Worker:
    """The supervisor that obeys."""

    def __init__(self, wanted: Wanted, secret: bytes, text: str) -> None:
        self._wanted = wanted
        head = (wanted.addresses[wanted.head], wanted.port)
        self._caller = link.Caller(head, wanted.addresses[wanted.node], secret)
        serial, started = record.order(text, wanted.generation)
        self._agent = Agent(wanted, serial, started)
        self._seen = Seen(clock.now(), wanted.generation, serial, {}, 0, started)
        self._heard = self._since = self.changed = clock.now()
        self._order: Order | None = None
        self._alone = ""

    def turn(self) -> dict[str, Any]:
        """Report, obey; without a head for too long, end what runs. Return the state to write down."""
        why = self._speak()
        now = clock.now()
        if not why:
            self._heard = now
        elif now - self._heard > self._wanted.limits.lost:
            self._agent.obey(Order(self._wanted.generation, self._seen.serial))
        if bool(why) != bool(self._alone):
            self._since = now
            say(why or f"obeys {self._wanted.head}")
        self._alone = why
        return record.worker(self._wanted, self._seen, why, now, self._since)

    def _speak(self) -> str:
        """Report and obey; say why there is nobody to obey, or nothing."""
        try:
            self._seen = self._agent.report(clock.now())
            order = self._caller.exchange(link.report_message(self._wanted.node, self._seen))
        except Unseen as unseen:
            return str(unseen)
        except link.Broken as broken:
            return f"no word from {self._wanted.head}: {broken}"
        if order.generation != self._wanted.generation:
            return f"{self._wanted.head} has another configuration: invoke serve gives both the same"
        if order != self._order:
            self._order, self.changed = order, clock.now()
        self._agent.obey(order)
        return ""

    def end(self) -> None:
        """End this node's units."""
        self._agent.end()


class Doors:
    """The node's own rules against the management network: whoever loads theirs anew (`flush ruleset`) drops ours."""

    def __init__(self) -> None:
        self._looked = time.monotonic()

    def keep_closed(self) -> None:
        """Load the rules again where they are gone."""
        if time.monotonic() - self._looked < DOORS:
            return
        self._looked = time.monotonic()
        if _code("nft", "list", "table", "inet", "sparkstack_serve"):
            failed = _code("nft", "-f", str(FIREWALL))
            say(f"our rules of the firewall were gone: {f'nft ended with {failed}' if failed else 'loaded again'}")


def _code(*argv: str) -> int:
    return subprocess.run(argv, capture_output=True, timeout=30, check=False).returncode


def say(text: str) -> None:
    """Print a line to the journal."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def run_hook(wanted: Wanted, data: dict[str, Any]) -> None:
    """Tell the owner's program that the service was given up, as the service's user; its end is its own matter.

    In a unit of its own: ours is shut in too tightly for a mail program.
    """
    argv = ("systemd-run", f"--uid={wanted.user}", "--quiet", "--collect", "--pipe", "--wait")
    limit = (f"--property=RuntimeMaxSec={HOOK}", "--unit=sparkstack-hook")
    own = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
    try:
        done = subprocess.run(
            (*argv, *limit, "--", *wanted.hook),
            input=json.dumps(data),
            text=True,
            errors="replace",
            capture_output=True,
            timeout=HOOK + 10,
            check=False,
            env=own,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"the hook {wanted.hook[0]} could not be run to its end: {error}")
        return
    said = (done.stderr or done.stdout).strip().splitlines()
    say(f"the hook {wanted.hook[0]} ended with {done.returncode}" + (f": {said[-1]}" if said else ""))


def keep(data: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Write the state down where it has changed or is old; return what lies there now. A full disk stops nothing."""
    volatile = {"at", "nodes"}
    changed = {key: value for key, value in data.items() if key not in volatile} != {
        key: value for key, value in before.items() if key not in volatile
    }
    if not changed and data["at"] - before.get("at", 0) < WRITTEN:
        return before
    try:
        # who reads it goes by the time of day, the next supervisor by its own clock
        written = {**data, "at": time.time(), "clock": clock.BEGAN}
        record.write(record.STATE, json.dumps(written) + "\n")
        record.write(record.METRICS, record.metrics(data))
    except OSError as error:
        say(f"the state cannot be written down: {error}")
    return data


def main() -> None:
    """Turn until told to end."""
    wanted = parse(SERVICE.read_text(encoding="utf-8"))
    secret = Path(CREDENTIALS / "link-key").read_text(encoding="ascii").strip().encode()
    text = record.STATE.read_text(encoding="utf-8") if record.STATE.exists() else ""
    over = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    side: Head | Worker = (Head if wanted.node == wanted.head else Worker)(wanted, secret, text)
    notify("READY=1")
    before: dict[str, Any] = {}
    doors = Doors()
    while not over.is_set():
        doors.keep_closed()
        before = keep(side.turn(), before)
        notify("WATCHDOG=1", f"STATUS={before['phase']}: {before['reason']}"[:200])
        over.wait(QUICK if clock.now() - side.changed < LIVELY else TURN)
    notify("STOPPING=1", "STATUS=ends what it started")
    side.end()


if __name__ == "__main__":
    main()
