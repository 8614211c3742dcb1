"""Whether a rank has gone while its unit goes on: with Ray a rank is a child of the raylet, and vLLM may only hang."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

GROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/systemd"))
"""Where systemd's control groups lie, in versions 2 and 1."""
TITLE = re.compile(r"VLLM::Worker\w*|ray::RayWorker\w*")
"""What vLLM and Ray call the process of a rank."""


class Ranks:
    """Remembers the ranks that each start of a unit has had."""

    def __init__(self, groups: tuple[Path, ...] = GROUPS, processes: Path = Path("/proc")) -> None:
        self._groups, self._processes = groups, processes
        self._had: dict[str, tuple[str, dict[int, str]]] = {}
        """Unit to its invocation, and process number to title."""

    def lost(self, show: Mapping[str, str]) -> str:
        """Look at a running unit (`systemctl show`); say which of the ranks that it had are gone, or nothing."""
        name, run, group = (show.get(key, "") for key in ("Id", "InvocationID", "ControlGroup"))
        if not run or not group:
            return ""
        living = self._living(group)
        before, had = self._had.get(name, ("", {}))
        had = {**had, **living} if before == run else living
        self._had[name] = run, had
        gone = [f"{title} (process {number})" for number, title in had.items() if number not in living]
        return f"its rank {', '.join(gone)} is gone" if gone else ""

    def _living(self, group: str) -> dict[int, str]:
        # a process that has ended and is not yet waited for is not in the list
        listed = [
            number for root in self._groups for number in _read(root / group.lstrip("/") / "cgroup.procs").split()
        ]
        titles = {number: TITLE.match(_read(self._processes / number / "cmdline")) for number in listed}
        named = {number: title[0] for number, title in titles.items() if title}
        # what a rank starts (a compiler) has its title until it is another program: fork(2) copies it
        return {int(number): title for number, title in named.items() if self._parent(number) not in ("", *named)}

    def _parent(self, number: str) -> str:
        """Return the number of a process's parent; nothing where it has ended meanwhile."""
        found = re.search(r"^PPid:\s*(\d+)", _read(self._processes / number / "status"), re.MULTILINE)
        return found[1] if found else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # it ended between two looks
        return ""
