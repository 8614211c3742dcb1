"""Processor time of everything that runs in the machines of a lab, from the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from core.config import Cluster
from lab import cgroup
from lab.place import Place

ACCOUNTS = Path("/sys/fs/cgroup/cpuacct")
"""Where a host without the unified hierarchy counts."""


class Meter:
    """Counts what the processes of some control groups use, ended ones too."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    @classmethod
    @contextmanager
    def of(cls, cluster: Cluster) -> Iterator[Meter]:
        """Count for the machines of a cluster, which run."""
        own: list[Path] = []
        files = [_file(Place(cluster, node), own) for node in cluster.nodes]
        try:
            yield cls(files)
        finally:
            for group in own:
                _dissolve(group)

    def seconds(self) -> float:
        """Return what all have used so far."""
        return sum(_used(file) for file in self._files)


def _file(place: Place, own: list[Path]) -> Path:
    """Return where the kernel counts for a machine: in its own group, or in one that all its processes join now."""
    running = place.running()
    groups = [Path(group) for group in running["groups"]] if running else []
    unified = next((group / "cpu.stat" for group in groups if (group / "cpu.stat").exists()), None)
    if unified is not None:
        return unified
    account = ACCOUNTS / f"sparkstack-bench-{place.node.name}"
    account.mkdir(exist_ok=True)
    own.append(account)
    for process in cgroup.processes(groups):
        (account / "cgroup.procs").write_text(str(process), encoding="ascii")
    return account / "cpuacct.usage"


def _dissolve(group: Path) -> None:
    for process in (group / "cgroup.procs").read_text(encoding="ascii").split():
        (group.parent / "cgroup.procs").write_text(process, encoding="ascii")
    group.rmdir()


def _used(file: Path) -> float:
    text = file.read_text(encoding="ascii")
    return int(text) / 1e9 if file.name == "cpuacct.usage" else int(text.split()[1]) / 1e6
