"""What a measurement says of the machine that it was made on; no names, no addresses."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from core.process import run


def machine() -> dict[str, str | int]:
    """Return processor, cores, memory (GiB), kernel, distribution, compiler and Python of this host."""
    return {
        "processor": _first(r"^model name\s*: (.*)$", "/proc/cpuinfo") or platform.machine(),
        "architecture": platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_gib": int(_first(r"^MemTotal:\s*(\d+) kB$", "/proc/meminfo") or 0) // 1024**2,
        "kernel": platform.release().split("-")[0],
        "distribution": platform.freedesktop_os_release()["PRETTY_NAME"],
        "compiler": run(["g++", "--version"]).out.splitlines()[0],
        "python": platform.python_version(),
        "virtual": "hypervisor" in Path("/proc/cpuinfo").read_text(encoding="utf-8"),
    }


def load() -> float:
    """Return how many processes wanted to run during the last minute: what else is going on on this machine."""
    return round(os.getloadavg()[0], 1)


def _first(pattern: str, path: str) -> str:
    found = re.search(pattern, Path(path).read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""
