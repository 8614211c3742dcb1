"""What a test holds in its hand: two running machines."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from core.config import ROOT, Cluster
from core.process import Completed
from lab import lifecycle, machine, network, power
from lab.lifecycle import MachineStatus
from lab.place import Place

CLUSTER = Path(os.environ.get("SPARKSTACK_TEST_CLUSTER", "") or ROOT / "tests" / "clusters" / "lab-tests.toml")
"""Two checkouts that test on one host at once need subnets of their own: then the variable names another file."""


@dataclass(frozen=True)
class Lab:
    """Two running machines; ``said`` is what the lab reported."""

    cluster: Cluster
    said: list[str] = field(default_factory=list)
    booted: dict[str, datetime | None] = field(default_factory=dict)
    """When each was switched on or last rebooted."""

    def place(self, name: str) -> Place:
        """Return where a machine lies."""
        return Place(self.cluster, self.cluster.node(name))

    def ssh(self, name: str, command: str, timeout: float = 60) -> Completed:
        """Run a shell line in a machine as the cluster's user; the code is not checked."""
        return power.ssh(self.place(name), command, timeout=timeout)

    def output(self, name: str, command: str) -> str:
        """Return what a shell line prints in a machine; it must end with 0."""
        done = self.ssh(name, command)
        assert done.code == 0, done
        return done.out.strip()

    def pgrep(self, name: str, arguments: str) -> list[str]:
        """Return what pgrep prints of a machine; that it finds nothing is an answer, any other failure is none."""
        done = self.ssh(name, f"pgrep {arguments}")
        assert done.code in (0, 1), done
        return done.out.splitlines()

    def paths(self, name: str, pattern: str) -> list[str]:
        """Return the paths of a machine that a shell pattern names."""
        return self.output(name, f'for path in {pattern}; do [ ! -e "$path" ] || echo "$path"; done').splitlines()

    def as_root(self, name: str, command: str) -> str:
        """Return what a shell line without single quotes prints as root; sudo is given the lab's password."""
        password = machine.password_file(self.cluster).read_text(encoding="utf-8").strip()
        return self.output(name, f"echo {password} | sudo -S -p '' sh -c '{command}'")

    def each(self, work: Callable[[str], object]) -> None:
        """Do something on both machines at once; the first failure is raised when both have ended."""
        names = [node.name for node in self.cluster.nodes]
        with ThreadPoolExecutor(len(names)) as both:
            begun = [both.submit(work, name) for name in names]
        for one in begun:
            one.result()

    def up(self) -> None:
        """Bring everything into order."""
        lifecycle.up(self.cluster, self.said.append)
        self.booted.update({status.name: status.since for status in lifecycle.status(self.cluster)})

    def in_order(self) -> bool:
        """Whether both run as `up` saw them last, with their cables in: nobody is asked, this host's files say it."""
        found = lifecycle.status(self.cluster)
        runs = all(one.running and one.management_link and one.fabric_link for one in found)
        return runs and self.booted == {one.name: one.since for one in found}

    def status(self, name: str) -> MachineStatus:
        """Look at one machine."""
        return next(status for status in lifecycle.status(self.cluster) if status.name == name)

    @contextmanager
    def slow_links(self, rate: str) -> Iterator[None]:
        """Slow what comes to the machines, by either network, so that it takes its time."""
        nodes = [node.name for node in self.cluster.nodes]
        with ExitStack() as stack:
            for link in (self.place(name).link(kind) for name in nodes for kind in ("management", "fabric")):
                stack.enter_context(network.shaped(link, rate))
            yield


def eventually(done: Callable[[], bool], seconds: float = 30) -> bool:
    """Return True as soon as ``done`` says so, False when it has not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
