"""Wheels to every node's store: what is missing travels, over the slow link once, and is verified where it arrives.

The store is deploy/onnode/store.py; what runs on a node for the time of a push comes over the connection itself.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from core.config import Cluster, Node
from core.facts import Facts, NodeFacts
from core.plan import Step, Talk, megabytes
from deploy.sending import ARGV, Errand, send
from wheels.manifest import Manifest, Wheel

GONE = 1.25
"""A node gives us up after this many times the silence that counts as a loss: our own side has given up by then."""
PORT = 29778
"""Of the relay of wheels, on the fabric address of the node that has them first."""


def wheel_folder(cluster: Cluster) -> PurePosixPath:
    """Return the folder of the wheels' names on a node."""
    return PurePosixPath(cluster.root / "wheels")


def store_folder(cluster: Cluster) -> PurePosixPath:
    """Return the folder of the wheels on a node, by what they hash to."""
    return PurePosixPath(cluster.root / "store")


def lacking(seen: NodeFacts, manifest: Manifest) -> tuple[Wheel, ...]:
    """Return the wheels that a node has neither in its store nor by name."""
    return tuple(wheel for wheel in manifest.wheels if not _is_there(seen, wheel))


def _is_there(seen: NodeFacts, wheel: Wheel) -> bool:
    return wheel.size in (seen.store.get(wheel.sha256), seen.wheels.get(wheel.filename))


def coming(seen: NodeFacts, manifest: Manifest) -> int:
    """Return how many bytes have to come: those of the missing wheels, but what has arrived of them already."""
    parts = ((wheel.size, seen.store.get(f".incoming/{wheel.sha256}", 0)) for wheel in lacking(seen, manifest))
    return sum(max(0, size - part) for size, part in parts)


@dataclass(frozen=True)
class Way:
    """How the wheels reach the nodes, and why; ``source`` is the node that gives them to the others."""

    reason: str
    source: Node | None = None
    secret: str = field(default_factory=partial(secrets.token_hex, 32), repr=False, compare=False)
    """Of one relay, as hexadecimal digits."""


def way_of(cluster: Cluster, facts: Facts, manifest: Manifest) -> Way:
    """Choose from facts: over the fabric where it is faster than what the nodes are managed over, if it is there."""
    working = [node for node in cluster.nodes if not _is_done(facts[node.name], manifest)]
    short = [node for node in cluster.nodes if lacking(facts[node.name], manifest)]
    if cluster.push == "direct":
        return Way("push is direct in the cluster's file")
    if len(cluster.nodes) == 1 or not short:
        return Way("nothing travels between nodes")
    cut = next((node for node in cluster.nodes if not _fabric_up(node, facts[node.name])), None)
    if cut:
        return Way(f"{cut.name} has no interface with its fabric address {cut.fabric} that is up")
    source = min(cluster.nodes, key=lambda node: (not node.local, coming(facts[node.name], manifest)))
    others = [node for node in working if node != source]
    if not others:
        return Way(f"only {source.name} lacks wheels")
    if cluster.push == "relay":
        return Way("push is relay in the cluster's file", source)
    return _by_speed(cluster, facts, source)


def _by_speed(cluster: Cluster, facts: Facts, source: Node) -> Way:
    fabric, management = (_slowest(cluster, facts, kind) for kind in ("fabric", "management"))
    words = f"the fabric has {_rate(fabric)}, management {_rate(management)}"
    return Way(words, source if fabric is not None and fabric > (management or 0) else None)


def _slowest(cluster: Cluster, facts: Facts, kind: str) -> int | None:
    """Return the rate of the slowest interface with such an address, in Mb/s; None where one is not known."""
    found = [facts[node.name].interface_of(getattr(node, kind)) for node in cluster.nodes]
    speeds = [one.speed for one in found if one is not None and one.speed is not None]
    return min(speeds) if len(speeds) == len(found) else None


def _rate(speed: int | None) -> str:
    return "an unknown rate" if speed is None else f"{speed / 1000:g} Gb/s"


def _fabric_up(node: Node, seen: NodeFacts) -> bool:
    found = seen.interface_of(node.fabric)
    return found is not None and found.up


def _is_done(seen: NodeFacts, manifest: Manifest) -> bool:
    """Whether nothing is to do: before an installation all wheels are verified, after one they are only counted."""
    return manifest.release in seen.releases and not lacking(seen, manifest)


def push_steps(cluster: Cluster, facts: Facts, manifest: Manifest, source: Path) -> Iterator[Step]:
    """Bring the wheels of the manifest from the folder ``source`` into the store of every node, all at once."""
    way = way_of(cluster, facts, manifest)
    working = [node for node in cluster.nodes if not _is_done(facts[node.name], manifest)]
    takers = [node for node in working if way.source is not None and node != way.source]
    for node in cluster.nodes:
        push = _Push(cluster, node, facts[node.name], manifest, way)
        if node in takers:
            yield push.join()
        elif node in working or (takers and node == way.source):
            yield push.receive(source, takers)


@dataclass(frozen=True)
class _Push:
    """The push to one node."""

    cluster: Cluster
    node: Node
    seen: NodeFacts
    manifest: Manifest
    way: Way

    def receive(self, source: Path, takers: Sequence[Node]) -> Talk:
        """From here to the node, which gives it to others meanwhile where there are some."""
        told = self._told()
        if takers:
            told["offer"] = {**self._link(), "takers": [node.name for node in takers]}
        files = {wheel.sha256: (source / wheel.filename, wheel.size) for wheel in self.manifest.wheels}
        names = ", ".join(node.name for node in takers)
        on = f", and offer them to {names} over the fabric" if takers else ""
        return self._step("push", f"over management{on}", Errand(self.node.name, "receive", told, files))

    def join(self) -> Talk:
        """From the node that has them first, over the fabric."""
        assert self.way.source is not None
        told = {**self._told(), "node": self.node.name, "from": self._link()}
        where = f"from {self.way.source.name} over the fabric, {self.way.source.fabric} port {PORT}"
        return self._step("take", where, Errand(self.node.name, "join", told))

    def _told(self) -> dict[str, Any]:
        wheels = [(wheel.sha256, wheel.size, wheel.filename) for wheel in self.manifest.wheels]
        return {"root": str(self.cluster.root), "wheels": wheels, "silence": GONE * self.cluster.silence}

    def _link(self) -> dict[str, Any]:
        assert self.way.source is not None
        return {"address": str(self.way.source.fabric), "port": PORT, "secret": self.way.secret}

    def _step(self, verb: str, how: str, errand: Errand) -> Talk:
        missing, size = lacking(self.seen, self.manifest), coming(self.seen, self.manifest)
        known = all(wheel.size for wheel in missing)
        what = f"{len(missing)} wheels, {megabytes(size) if known else 'sizes not known yet'}"
        all_of = len(self.manifest.wheels)
        return Talk(
            node=self.node.name,
            title=f"{verb} {what}" if missing else f"verify {all_of} wheels",
            reason=f"{all_of - len(missing)} of {all_of} are there; {self.way.reason}",
            argv=ARGV,
            shown=f"{how} into {store_folder(self.cluster)}; all {all_of} are verified by hash",
            talk=partial(send, errand),
            size=size,
        )
