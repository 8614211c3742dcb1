"""Memory that is available on a node, in bytes: the machine's, or what the limit of a container leaves."""

from __future__ import annotations

import re
from pathlib import Path

GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
"""Limit, use and parts of the control group at the top of what we see, in versions 2 and 1."""


def available() -> int:
    """Look at the machine and at the limits of the container that it may be."""
    found = _machine(_read("/proc/meminfo"))
    for limit, usage, stat in GROUPS:
        found = min(found, in_group(_read(limit), _read(usage), _read(stat), found))
    return found


def free() -> int:
    """Look as available() does, but without the page cache: what some versions of vLLM take for available."""
    found = _machine(_read("/proc/meminfo"), "MemFree")
    for limit, usage, _ in GROUPS:
        found = min(found, in_group(_read(limit), _read(usage), "", found))
    return found


def _machine(meminfo: str, key: str = "MemAvailable") -> int:
    match = re.search(rf"^{key}: +(\d+) kB", meminfo, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def in_group(limit: str, usage: str, stat: str, otherwise: int) -> int:
    """Return what a control group has left; page cache counts as available. ``otherwise`` where it has no limit.

    https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
    """
    if not limit.strip().isdecimal() or not usage.strip().isdecimal():
        return otherwise
    counts = dict(re.findall(r"^(\w+) (\d+)", stat, re.MULTILINE))
    whole = "total_" if "total_active_file" in counts else ""  # version 1 counts what is below under other names
    cache = sum(int(counts.get(f"{whole}{kind}_file", 0)) for kind in ("active", "inactive"))
    return max(0, int(limit) - max(0, int(usage) - cache))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""
