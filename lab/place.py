"""Where everything of a local machine lies on this host, and what it is called there.

Interface names have 15 characters at most, so they carry a short mark of the cluster: `spk` and six hex digits of the
hash of its name. `spkXXXXXXm` and `spkXXXXXXf` are the bridges, `spkXXXXXXm0` and `spkXXXXXXf0` the links of the first
machine. Units are called `sparkstack-lab-CLUSTER-NODE`, control groups `sparkstack-lab-spkXXXXXX-NODE`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from core.config import Cluster, Node
from core.errors import LabError

Kind = Literal["management", "fabric"]


class Running(TypedDict):
    """What a supervisor writes down about the machine that it runs (`run.json`)."""

    supervisor: int
    since: str
    """ISO 8601, UTC: the last power-on or reboot."""
    groups: list[str]
    """Folders of the control groups that hold every process of the machine."""


@dataclass(frozen=True)
class Place:
    """The files and names of one machine on this host."""

    cluster: Cluster
    node: Node

    @property
    def mark(self) -> str:
        """Short name of the machine on this host."""
        return f"{mark(self.cluster)}-{self.node.name}"[:63].rstrip("-.")

    @property
    def unit(self) -> str:
        """The supervisor's unit, on hosts that run systemd."""
        return f"sparkstack-lab-{self.cluster.name}-{self.node.name}.service"

    @property
    def folder(self) -> Path:
        """Folder of this machine in the cluster's state."""
        return self.cluster.state / "machines" / self.node.name

    @property
    def disk(self) -> Path:
        """The machine's disk: a sparse ext4 image."""
        return self.folder / "disk.img"

    @property
    def base(self) -> Path:
        """Names the root that the disk was made over: an overlay must keep the lower layer that it began with."""
        return self.folder / "base"

    @property
    def host_key(self) -> Path:
        """The machine's SSH host key, made here so that it can be enrolled before the machine first answers."""
        return self.folder / "ssh_host_ed25519_key"

    @property
    def console(self) -> Path:
        """What the machine wrote to its console, all boots."""
        return self.folder / "console.log"

    @property
    def log(self) -> Path:
        """What the supervisor said."""
        return self.folder / "supervisor.log"

    @property
    def lock(self) -> Path:
        """Held by the supervisor while it lives."""
        return self.folder / "lock"

    @property
    def pid(self) -> Path:
        """Process of the running systemd-nspawn."""
        return self.folder / "nspawn.pid"

    @property
    def alive(self) -> bool:
        """The supervisor lives, so the machine runs or starts again."""
        return held(self.lock)

    def link(self, kind: Kind) -> str:
        """Return the host side of the machine's link to a network."""
        return f"{mark(self.cluster)}{kind[0]}{self.cluster.nodes.index(self.node)}"

    def cut(self, kind: Kind) -> Path:
        """Return the file that says that this link is cut; a cut outlasts a reboot, as a pulled cable does."""
        return self.folder / f"cut-{kind}"

    def running(self) -> Running | None:
        """Return what the last supervisor wrote down; it may be dead."""
        try:
            found: Running = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found

    def write_running(self, value: Running | None) -> None:
        """Write down, or forget, what runs."""
        path = self.folder / "run.json"
        if value is None:
            path.unlink(missing_ok=True)
            return
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(value), encoding="utf-8")
        partial.replace(path)


def mark(cluster: Cluster) -> str:
    """Return the cluster's short mark in interface names: `spk` and six hex digits."""
    return f"spk{hashlib.sha256(cluster.name.encode()).hexdigest()[:6]}"


def bridge(cluster: Cluster, kind: Kind) -> str:
    """Return the name of a network's bridge."""
    return f"{mark(cluster)}{kind[0]}"


def networks(cluster: Cluster) -> tuple[Kind, ...]:
    """Return the networks to make: a single machine may have its fabric address on the management network."""
    return ("management",) if cluster.fabric.subnet.overlaps(cluster.management.subnet) else ("management", "fabric")


def places(cluster: Cluster) -> tuple[Place, ...]:
    """Return the place of every machine."""
    return tuple(Place(cluster, node) for node in cluster.nodes)


def identity(cluster: Cluster) -> Path:
    """Return the SSH key that opens the machines; LabError when the cluster names none."""
    if cluster.identity is None:
        raise LabError(
            f"cluster {cluster.name} names no SSH key",
            next_move=f'set identity = ".work/clusters/{cluster.name}/id_ed25519"',
        )
    return inside(cluster, cluster.identity)


def inside(cluster: Cluster, path: Path) -> Path:
    """Return ``path`` (relative to the project) when it is in the cluster's state folder; a lab writes nowhere else."""
    full = cluster.state.parent.parent.parent / path
    if not full.resolve().is_relative_to(cluster.state.resolve()):
        raise LabError(f"{path} is outside {cluster.state}", next_move=f"use .work/clusters/{cluster.name}/{path.name}")
    return full


def held(lock: Path) -> bool:
    """Say whether a living process holds the lock file."""
    if not lock.exists():
        return False
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def hold(lock: Path, seconds: float = 1) -> Iterator[bool]:
    """Hold the lock file and give True, or give False when another process has it; it lasts over a fork.

    It is tried for some time, because whoever looks whether it is held (`held`) has it for a moment.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + seconds
        while not (ours := _flock(descriptor)) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield ours
    finally:
        os.close(descriptor)


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
