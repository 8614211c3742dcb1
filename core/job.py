"""Long work that outlives our connection: a transient systemd unit on the node, whose log is read as it grows.

A lost connection ends nothing: the same command finds the unit and follows it from its first line. On this host the
work is a child process and ends with us.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from time import monotonic
from typing import Any

from core.errors import FactsError, Interrupted
from core.host import Host
from core.parsers import record
from core.plan import Job, as_job

INTERVAL = 1.0
"""Seconds between two looks at a log."""

# Runs on the node: what the log has beyond an offset, and how the unit is. Reads only.
_LOOK = """
import base64, json, subprocess, sys
unit, log, offset = sys.argv[1:]
asked = ["systemctl", "show", unit, "--property=ActiveState,Result,ExecMainStatus"]
shown = subprocess.run(asked, capture_output=True, text=True).stdout
try:
    with open(log, "rb") as file:
        file.seek(int(offset))
        new = file.read(1 << 18)
except OSError:
    new = b""
state = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
print(json.dumps({"new": base64.b64encode(new).decode(), "state": state}))
"""


@dataclass
class _Log:
    """The lines of a log as it grows; ``offset`` in bytes."""

    offset: int = 0
    rest: bytes = b""

    def take(self, new: bytes) -> list[str]:
        """Return the lines that are whole now."""
        self.offset += len(new)
        *lines, self.rest = (self.rest + new).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def last(self) -> list[str]:
        """Return what came after the last line's end, once nothing more comes."""
        return [self.rest.decode(errors="replace")] if self.rest else []


def follow_job(step: Job, host: Host, on_line: Callable[[str], None], interrupted: Event) -> None:
    """Run a job to its end, or follow the one that runs. Raises what ``step.failure`` makes of a bad end.

    Ctrl-C ends a child process, and leaves a unit running: hours of work are not lost by looking away.
    """
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        on_line(line)

    ended = _child(step, host, take) if step.unit is None else _unit(step, host, take, interrupted)
    if ended:
        raise step.failure(ended, lines)


def _child(step: Job, host: Host, take: Callable[[str], None]) -> str:
    done = host.run(step.argv, check=False, timeout=step.timeout, on_line=take)
    if done.code < 0:
        return f"it was ended by signal {-done.code}"
    return f"it ended with {done.code}" if done.code else ""


def _unit(step: Job, host: Host, take: Callable[[str], None], interrupted: Event) -> str:
    log, deadline = _Log(), monotonic() + step.timeout
    if _look(step, host, log)["state"].get("ActiveState") not in ("active", "activating"):
        host.run(("systemctl", "reset-failed", str(step.unit)), privileged=True, check=False)
        host.run(as_job(step), privileged=True)
    while True:
        seen = _look(step, host, log)
        new = base64.b64decode(seen["new"])
        for line in log.take(new):
            take(line)
        if not new and seen["state"].get("ActiveState") not in ("active", "activating", "deactivating"):
            for line in log.last():
                take(line)
            return _how_it_ended(seen["state"])
        if monotonic() > deadline:
            return f"it did not end within {step.timeout:.0f} s and still runs"
        if not new and interrupted.wait(INTERVAL):
            raise Interrupted(
                f"{step.title} goes on without us as the unit {step.unit}",
                node=step.node,
                next_move=f"the same command follows it again; to end it: {step.hint}",
            )


def _look(step: Job, host: Host, log: _Log) -> dict[str, Any]:
    done = host.run(("python3", "-c", _LOOK, str(step.unit), str(step.log), str(log.offset)))
    try:
        return record(done.out)
    except ValueError as error:
        raise FactsError(
            f"the state of {step.unit} cannot be read",
            node=host.name,
            next_move="run the same command again",
            evidence=done.tail(5),
        ) from error


def _how_it_ended(state: dict[str, str]) -> str:
    """Return how a unit ended, in words; nothing when it ended well."""
    result, code = state.get("Result", ""), state.get("ExecMainStatus", "0")
    if result == "oom-kill":
        return "it was ended for memory (oom-kill)"
    if result in ("", "success"):
        return ""
    return f"it ended with {code}" if result == "exit-code" else f"it was ended ({result}, {code})"
