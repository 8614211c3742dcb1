"""What this host needs to run local machines, and whether it can."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable
from pathlib import Path

from core.errors import LabError
from core.process import run
from lab import base, cgroup

_PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "debootstrap": "debootstrap",
    "mkfs.ext4": "e2fsprogs",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "losetup": "mount",
    "unshare": "util-linux",
}
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_MKNOD": 27}


def requirements() -> tuple[str, ...]:
    """Return the Debian packages that a host needs for local machines."""
    return tuple(sorted({*_PROGRAMS.values(), "rsync"}))


def missing(packages: Iterable[str]) -> tuple[str, ...]:
    """Return those of the Debian packages that are not installed here."""
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}"]
    return tuple(name for name in packages if run([*query, name], check=False).out != "installed")


def can_run() -> str | None:
    """Return why this host cannot run local machines, or None when it can."""
    if platform.system() != "Linux":
        return f"local machines need Linux, this is {platform.system()}"
    if os.geteuid() != 0:
        return "local machines need root: run as root or with sudo"
    return next((reason for reason in (_distribution(), _capabilities(), _programs(), _kernel()) if reason), None)


def require() -> None:
    """Raise LabError when this host cannot run local machines."""
    reason = can_run()
    if reason is None:
        return
    absent = missing(requirements()) if shutil.which("dpkg-query") else ()
    move = (
        f"apt-get install {' '.join(absent)}"
        if absent
        else "run as root or with sudo, on a Linux host that is not a container"
    )
    raise LabError(reason, next_move=move)


def runs_systemd() -> bool:
    """Say whether systemd is PID 1 here; then a supervisor runs as a unit."""
    return Path("/run/systemd/system").is_dir()


def parse_capabilities(status: str) -> int:
    """Return the effective capabilities of /proc/PID/status as a bit mask."""
    return next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)


def _distribution() -> str | None:
    try:
        base.host_distribution()
    except LabError as error:
        return error.cause
    return None


def _capabilities() -> str | None:
    mask = parse_capabilities(Path("/proc/self/status").read_text(encoding="utf-8"))
    absent = [name for name, bit in _CAPABILITIES.items() if not mask >> bit & 1]
    return f"this root lacks {', '.join(absent)}: is this a container?" if absent else None


def _programs() -> str | None:
    absent = [
        f"{program} (package {package})" for program, package in _PROGRAMS.items() if shutil.which(program) is None
    ]
    return f"missing here: {', '.join(absent)}" if absent else None


def _kernel() -> str | None:
    if not Path("/dev/loop-control").exists():
        return "this host has no loop devices (/dev/loop-control)"
    if not _overlay():
        return "this kernel has no overlay file system"
    if not cgroup.limits_memory(cgroup.hierarchies()):
        return "no control group can limit memory here"
    return None


def _overlay() -> bool:
    """Say whether the kernel has overlay; a module is loaded for the answer."""
    known = Path("/proc/filesystems")
    if "overlay" not in known.read_text(encoding="ascii") and shutil.which("modprobe"):
        run(["modprobe", "overlay"], check=False)
    return "overlay" in known.read_text(encoding="ascii")
