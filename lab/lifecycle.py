"""What can be done with the local machines of a cluster: up, down, purge, look, and the accidents that tests need.

`up` makes whatever is missing and repairs what is half there; when nothing is missing it does nothing. `down` leaves
only the machines' disks and keys, and the routes that keep test traffic on this host. Both can be run again at any
time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from core.config import ROOT, Address, Cluster, Lab
from core.errors import LabError, LockHeld
from lab import base as roots
from lab import disk, host, keys, network, power
from lab.place import Kind, Place, hold, networks, places

Report = Callable[[str], None]


@dataclass(frozen=True)
class MachineStatus:
    """How a machine is; sizes in bytes."""

    name: str
    running: bool
    """Its supervisor lives: it runs, boots or reboots."""
    management: Address
    fabric: Address
    management_link: bool
    fabric_link: bool
    pid: int | None
    """Process of the supervisor."""
    disk_used: int
    """What the disk takes on this host."""
    memory_limit: int
    since: datetime | None
    """When it was switched on or last rebooted."""


def up(cluster: Cluster, report: Report) -> None:
    """Make the machines run and answer over SSH; return when all do.

    Raises LabError with the node and its log when one does not, LockHeld when another command works on this lab.
    """
    lab = _lab(cluster)
    host.require()
    network.check_free(cluster)
    base = roots.ensure(report)
    with _locked(cluster):
        keys.ensure(cluster)
        _note_configuration(cluster, report)
        for place in places(cluster):
            disk.ensure(place, lab.disk, base, report)
        if network.up(cluster):
            report(f"networks {', '.join(str(getattr(cluster, kind).subnet) for kind in networks(cluster))} are there")
        _each(places(cluster), lambda place: _make_run(place, report))


def down(cluster: Cluster, report: Report) -> None:
    """Power the machines off and remove everything but their disks, keys and logs; the subnets stay unreachable."""
    _lab(cluster)
    _require_root()
    with _locked(cluster):
        network.fence(cluster)
        _down(cluster, report)


def purge(cluster: Cluster, report: Report, *, base: bool = False) -> list[str]:
    """Remove the lab as if it had never been, its unreachable routes too; with ``base`` the shared root as well.

    Returns what was removed, in words.
    """
    _lab(cluster)
    _require_root()
    existed = cluster.state.exists()
    with _locked(cluster):
        removed = _down(cluster, report)
        removed += [f"disk of {place.node.name}" for place in places(cluster) if place.disk.exists()]
        removed += network.unfence(cluster)
        shutil.rmtree(cluster.state)
    removed += [f"state {cluster.state.relative_to(ROOT)}"] if existed else []
    return removed + (roots.remove() if base else [])


def status(cluster: Cluster) -> tuple[MachineStatus, ...]:
    """Look at every machine; nothing is changed."""
    lab = _lab(cluster)
    return tuple(_status(place, lab) for place in places(cluster))


def cut(cluster: Cluster, node_name: str, report: Report, network_name: str = "fabric") -> None:
    """Pull a machine's cable; it stays pulled over reboots, until `heal` or `up`."""
    place = place_of(cluster, node_name)
    network.cut(place, known_network(cluster, network_name))
    report(f"{node_name}: {network_name} is cut")


def heal(cluster: Cluster, node_name: str, report: Report, network_name: str = "fabric") -> None:
    """Put a machine's cable back."""
    place = place_of(cluster, node_name)
    network.heal(place, known_network(cluster, network_name))
    report(f"{node_name}: {network_name} is connected")


def kill(cluster: Cluster, node_name: str, report: Report) -> None:
    """Power loss: every process of the machine is killed at once; it stays off until `boot` or `up`."""
    power.kill(place_of(cluster, node_name))
    report(f"{node_name}: killed")


def boot(cluster: Cluster, node_name: str, report: Report) -> None:
    """Switch a machine on and wait until it answers; cut links stay cut. LabError when `up` has never made it."""
    place = place_of(cluster, node_name)
    host.require()
    if not place.disk.exists():
        raise LabError("this machine has never been made", next_move="run `invoke lab.up`", node=node_name)
    with _locked(cluster):
        network.up(cluster)
        if not place.alive:
            report(f"{node_name}: booting")
            power.start(place)
        power.wait_ready(place, report)


def _lab(cluster: Cluster) -> Lab:
    if cluster.lab is None:
        raise LabError(f"cluster {cluster.name} is of real machines", next_move="use one with [lab], as `local`")
    if cluster.user == "root":
        raise LabError("root cannot log into local machines", next_move=f"set another user in {cluster.name}.toml")
    return cluster.lab


def _require_root() -> None:
    if os.geteuid() != 0:
        raise LabError("local machines need root", next_move="run as root or with sudo")


def place_of(cluster: Cluster, node_name: str) -> Place:
    """Return a machine's place. Raises LabError without a [lab] table or root, ConfigError for an unknown name."""
    _lab(cluster)
    _require_root()
    return Place(cluster, cluster.node(node_name))


def known_network(cluster: Cluster, kind: str) -> Kind:
    """Return ``kind`` when the lab has that network. Raises LabError."""
    if kind not in networks(cluster):
        names = " or ".join(networks(cluster))
        raise LabError(f"cluster {cluster.name} has no network {kind!r}", next_move=f"use {names}")
    return kind


@contextmanager
def _locked(cluster: Cluster) -> Iterator[None]:
    cluster.state.mkdir(parents=True, exist_ok=True)
    with hold(cluster.state / "lab.lock") as ours:
        if not ours:
            raise LockHeld(f"another command works on the machines of {cluster.name}", next_move="wait for it to end")
        yield


def _each(all_places: tuple[Place, ...], work: Callable[[Place], object]) -> None:
    """Do the work on all machines at once; the first machine's error is raised after all have ended."""
    with ThreadPoolExecutor(max_workers=len(all_places)) as pool:
        futures = [pool.submit(work, place) for place in all_places]
    for future in futures:
        future.result()


def _note_configuration(cluster: Cluster, report: Report) -> None:
    """Hand the cluster to the supervisors; say so when machines still run with an earlier configuration."""
    path = cluster.state / "cluster.json"
    text = cluster.model_dump_json(indent=2)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    if path.exists() and any(place.alive for place in places(cluster)):
        report("the configuration has changed: machines that run take it up at their next `lab.down` and `lab.up`")
    keys.write(path, text, 0o644)


def _make_run(place: Place, report: Report) -> None:
    if place.alive:
        healed = [kind for kind in networks(place.cluster) if network.heal(place, kind)]
        report(f"{place.node.name}: runs already{''.join(f', {kind} connected again' for kind in healed)}")
    else:
        for kind in networks(place.cluster):
            place.cut(kind).unlink(missing_ok=True)
        report(f"{place.node.name}: booting")
        power.start(place)
    power.wait_ready(place, report)


def _down(cluster: Cluster, report: Report) -> list[str]:
    removed = [f"machine {place.node.name}" for place in places(cluster) if place.alive or power.orphaned(place)]
    _each(places(cluster), lambda place: power.stop(place, report))
    for place in places(cluster):
        for kind in networks(cluster):
            place.cut(kind).unlink(missing_ok=True)
    removed += network.down(cluster)
    for what in removed:
        report(f"removed: {what}")
    return removed


def _status(place: Place, lab: Lab) -> MachineStatus:
    found = place.running() if place.alive else None
    return MachineStatus(
        name=place.node.name,
        running=place.alive,
        management=place.node.management,
        fabric=place.node.fabric,
        management_link=network.linked(place, "management"),
        fabric_link="fabric" in networks(place.cluster) and network.linked(place, "fabric"),
        pid=found["supervisor"] if found else None,
        disk_used=disk.used(place),
        memory_limit=lab.memory,
        since=datetime.fromisoformat(found["since"]) if found else None,
    )
