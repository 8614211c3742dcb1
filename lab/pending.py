"""What each of the lab's commands would do now, in words; empty when that is nothing. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterator

from core.config import Cluster
from lab import base, network, power
from lab.place import Kind, Place, bridge, networks, places


def up(cluster: Cluster) -> list[str]:
    """Say what keeps the machines from running, with both cables in, and answering over SSH."""
    wanted = base.host_distribution()
    missing = [] if base.folder(wanted).is_dir() else [f"make the root of the machines ({wanted.id} {wanted.suite})"]
    missing += [f"make the network {getattr(cluster, kind).subnet}" for kind in _networks_missing(cluster)]
    return [*missing, *(word for place in places(cluster) for word in _machine_up(place))]


def down(cluster: Cluster) -> list[str]:
    """Say what is left to power off and remove but disks, keys and fences."""
    fences = [kind for kind in networks(cluster) if not network.fenced(cluster, kind)]
    return [
        *(f"make the network {getattr(cluster, kind).subnet} unreachable" for kind in fences),
        *_running(cluster),
        *_bridges(cluster),
    ]


def clean(cluster: Cluster, *, with_base: bool) -> list[str]:
    """Say what there is of the lab at all."""
    fences = [kind for kind in networks(cluster) if network.fenced(cluster, kind)]
    return [
        *_running(cluster),
        *_bridges(cluster),
        *(f"remove the disk of {place.node.name}" for place in places(cluster) if place.disk.exists()),
        *(f"remove the unreachable route {getattr(cluster, kind).subnet}" for kind in fences),
        *([f"remove {cluster.state}"] if cluster.state.exists() else []),
        *(["remove the cached root of the machines"] if with_base and base.cached() else []),
    ]


def cut(place: Place, kind: Kind) -> list[str]:
    """Say which cable is to be pulled."""
    return [] if place.cut(kind).exists() else [f"pull the {kind} cable of {place.node.name}"]


def heal(place: Place, kind: Kind) -> list[str]:
    """Say which cable is to be put back."""
    return [f"put the {kind} cable of {place.node.name} back"] if _is_out(place, kind) else []


def kill(place: Place) -> list[str]:
    """Say which machine is to lose its power."""
    return [f"cut the power of {place.node.name}"] if place.alive or power.orphaned(place) else []


def boot(place: Place) -> list[str]:
    """Say which machine is to be switched on, or waited for."""
    return [] if _answers(place) else [f"boot {place.node.name}"]


def _machine_up(place: Place) -> Iterator[str]:
    if not place.disk.exists():
        yield f"make the disk of {place.node.name}"
    for kind in networks(place.cluster):
        yield from heal(place, kind)
    yield from boot(place)


def _answers(place: Place) -> bool:
    return place.alive and power.ssh(place, "true", timeout=10).code == 0


def _is_out(place: Place, kind: Kind) -> bool:
    return place.cut(kind).exists() or (place.alive and not network.linked(place, kind))


def _networks_missing(cluster: Cluster) -> list[Kind]:
    return [kind for kind in networks(cluster) if not network.exists(bridge(cluster, kind))]


def _running(cluster: Cluster) -> list[str]:
    alive = [place for place in places(cluster) if place.alive or power.orphaned(place)]
    return [f"power {place.node.name} off" for place in alive]


def _bridges(cluster: Cluster) -> list[str]:
    return [
        f"remove the bridge {bridge(cluster, kind)}"
        for kind in networks(cluster)
        if kind not in _networks_missing(cluster)
    ]
