"""The control groups that hold a machine: its memory limit, and the list of every process it has.

A host has either one unified hierarchy (v2) or several (v1, often with v2 beside them). A machine has a group of the
same name in each one that matters: where memory is limited, and where systemd keeps its own tree.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from core.errors import LabError


@dataclass(frozen=True)
class Hierarchy:
    """A mounted tree of control groups; ``name`` is "" for v2, else the controllers as /proc/self/cgroup names them."""

    mount: Path
    name: str

    @property
    def unified(self) -> bool:
        """It is v2."""
        return self.name == ""


def parse_mounts(text: str) -> tuple[Hierarchy, ...]:
    """Return, from /proc/mounts, the hierarchies that a machine needs a group in: v2, memory, systemd's own."""
    found = []
    for line in text.splitlines():
        _, where, kind, options, *_ = line.split(" ")
        words = options.split(",")
        if kind == "cgroup2":
            found.append(Hierarchy(Path(where), ""))
        elif kind == "cgroup" and ("memory" in words or "name=systemd" in words):
            found.append(Hierarchy(Path(where), "memory" if "memory" in words else "name=systemd"))
    return tuple(found)


def parse_membership(text: str) -> dict[str, str]:
    """Return, from /proc/PID/cgroup, the group in each hierarchy by controller name ("" is v2)."""
    groups = {}
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        groups.update(dict.fromkeys(names.split(","), path))
    return groups


def folders(
    hierarchies: Iterable[Hierarchy], membership: Mapping[str, str], name: str, *, delegated: bool
) -> tuple[Path, ...]:
    """Return the machine's folder in each hierarchy.

    Under systemd (``delegated``) it is below our own unit's group, on a bare host `sparkstack-lab-NAME` at the top.
    """
    if delegated:
        return tuple(h.mount / membership.get(h.name, "/").strip("/") / "machine" for h in hierarchies)
    return tuple(h.mount / f"sparkstack-lab-{name}" for h in hierarchies)


def hierarchies() -> tuple[Hierarchy, ...]:
    """Read the host's mounts."""
    return parse_mounts(Path("/proc/self/mounts").read_text(encoding="utf-8"))


def limits_memory(found: Iterable[Hierarchy]) -> bool:
    """Say whether one of the hierarchies can limit memory."""
    return any(h.name == "memory" or "memory" in _read(h.mount / "cgroup.controllers").split() for h in found)


def make(groups: Iterable[Path], limit: int) -> None:
    """Make the groups anew and set the memory limit (bytes) where there is one to set.

    Those of an earlier boot are removed: in v2 a group that has handed controllers down takes no process any more.
    """
    groups = tuple(groups)
    kill(groups)
    remove(groups)
    for group in groups:
        _hand_down(group)
        group.mkdir(parents=True, exist_ok=True)
        set_limit(group, limit)


def set_limit(group: Path, limit: int) -> None:
    """Limit memory, swap included: a machine that asks for more is killed, as it would be with that much RAM."""
    if (group / "memory.max").exists():
        (group / "memory.max").write_text(str(limit), encoding="ascii")
        if (group / "memory.swap.max").exists():
            (group / "memory.swap.max").write_text("0", encoding="ascii")
    elif (group / "memory.limit_in_bytes").exists():
        (group / "memory.limit_in_bytes").write_text(str(limit), encoding="ascii")
        if (group / "memory.memsw.limit_in_bytes").exists():
            (group / "memory.memsw.limit_in_bytes").write_text(str(limit), encoding="ascii")


def leave_for_keeper(groups: Iterable[Path]) -> None:
    """Move our own process into a leaf beside the machine: in v2 a group with members cannot hand controllers down."""
    for group in groups:
        keeper = group.parent / "keeper"
        keeper.mkdir(exist_ok=True)
        (keeper / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")


def processes(groups: Iterable[Path]) -> set[int]:
    """Return every process in the groups and below them."""
    found: set[int] = set()
    for group in groups:
        for folder, _, _ in os.walk(group):  # a group below may vanish while we look: os.walk goes on without it
            found.update(int(word) for word in _read(Path(folder) / "cgroup.procs").split())
    return found - {0}


def kill(groups: Iterable[Path], seconds: float = 60) -> None:
    """Kill every process at once, as a power loss would; LabError when some are still there after ``seconds``."""
    groups = tuple(groups)
    deadline = time.monotonic() + seconds
    while members := processes(groups):
        if time.monotonic() > deadline:
            raise LabError(f"processes {sorted(members)} do not end", next_move="look at them with ps")
        for process in members:
            _signal(process)
        time.sleep(0.02)


def remove(groups: Iterable[Path]) -> None:
    """Remove the groups, deepest first; they must be empty."""
    for group in groups:
        for folder, _, _ in os.walk(group, topdown=False):
            _rmdir(Path(folder))


def _hand_down(group: Path) -> None:
    """Make the groups above ``group``, and let each hand the memory controller down (v2)."""
    for above in reversed(group.parents):
        if (above.parent / "cgroup.procs").exists():
            above.mkdir(exist_ok=True)
        control = above / "cgroup.subtree_control"
        if "memory" in _read(above / "cgroup.controllers").split() and "memory" not in _read(control).split():
            control.write_text("+memory", encoding="ascii")


def _rmdir(path: Path) -> None:
    try:
        path.rmdir()
    except FileNotFoundError:  # systemd removes a unit's groups too
        return


def _signal(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:  # a group can vanish while we look at it
        return ""
