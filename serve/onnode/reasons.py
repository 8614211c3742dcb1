"""Why a unit ended: systemd's result in words, and of a program's own log the line that names the cause. Pure."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping

PROPERTIES = ("Id", "ActiveState", "Job", "Result", "ExecMainCode", "ExecMainStatus", "InvocationID", "ControlGroup")
LONGEST = 400
_TOOLS = re.compile(
    r"(Check failed: .+|\b\w{1,40} fatal +: .+|^.*?error while loading shared libraries.*|\b\w[\w ]{0,80}: error: .+)",
    re.MULTILINE,
)
"""No part of it begins at every character of a line and runs to its end: vLLM's lines are 50 kB long when it fails."""


def real_error(log: str) -> str:
    """Return the first exception of a log that names a cause; the ones that point elsewhere come last.

    Without one: the first line of a failed check, of a tool's fatal error or of the loader, else the last line.
    """
    lines = re.findall(r"(?:^|[ \]])((?:\w+\.)*\w*(?:Error|Exception)\b: .+)", log, re.MULTILINE)
    telling = [line for line in lines if "See root cause above" not in line and "Engine core proc" not in line]
    other = [] if telling else _TOOLS.findall(log)
    detail = re.search(r"^.*?(Value error, .+?)(?: \[type=|$)", log, re.MULTILINE)  # pydantic says it on the next line
    if telling and detail and "validation error" in telling[0]:
        telling = [f"{telling[0].split(': ')[0]}: {detail[1]}"]
    last = (log.strip().splitlines() or ["it left no line in the journal"])[-1]
    return str((telling or other or lines or [last])[0]).strip()[:LONGEST]


def shows(text: str) -> dict[str, dict[str, str]]:
    """Parse `systemctl show UNIT... -p ...`: blocks of KEY=VALUE, an empty line between them; by unit."""
    blocks = (dict(line.partition("=")[::2] for line in block.splitlines()) for block in text.split("\n\n"))
    return {block["Id"].removesuffix(".service"): block for block in blocks if block.get("Id")}


def active(show: Mapping[str, str]) -> str:
    """Return the unit's state; one whose start was asked for and has not begun is on its way."""
    state = show.get("ActiveState", "inactive")
    pending = show.get("Job", "0") not in ("", "0")
    return "activating" if state in ("inactive", "failed") and pending else state


def how(show: Mapping[str, str]) -> str:
    """Return how a unit ended, in words; empty where its own log has to say it (an exit code)."""
    result, status = show.get("Result", ""), show.get("ExecMainStatus", "0")
    match result:
        case "signal" | "core-dump":
            return f"killed by {_signal(status)}"
        case "watchdog":
            return "no token came within its time (watchdog)"
        case "oom-kill":
            return "killed by the kernel: out of memory"
        case "timeout":
            return "it was not ready in time"
        case "success":
            return "it ended by itself"
    return ""


def _signal(number: str) -> str:
    try:
        return signal.Signals(int(number)).name
    except ValueError:
        return f"signal {number}"
