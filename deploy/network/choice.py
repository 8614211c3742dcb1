"""Which interface of a node carries the fabric: out of facts, never by position, refused where it is not sure.

An interface that has the fabric's address already is it. Otherwise it is the port of the ConnectX device that the cable
is in: the one whose halves are up. An interface that carries anything of somebody else is never touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from core.config import Cluster, Node
from core.errors import FactsError, UnfitNode, UsageError
from core.facts import NodeFacts
from core.mistakes import nearest
from core.ports import same_port
from core.wiring import Wire, Wiring

PLAIN = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
"""Names that need no quotes in any of the files that we write."""


@dataclass(frozen=True)
class End:
    """A node's end of the fabric: the interface that gets the address, and the other half of its port, if any."""

    node: Node
    wiring: Wiring
    wire: Wire
    halves: tuple[Wire, ...]
    why: str
    """How it was chosen, in words."""
    left: tuple[Wire, ...] = ()
    """Other halves that carry an address of somebody else: they are not touched."""


def named(cluster: Cluster, flags: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the interfaces that `--interface` names for each node: NAME for all, NODE=NAME for one.

    Raises ConfigError for a node that the cluster does not have, UsageError for a name that is none.
    """
    found: dict[str, tuple[str, ...]] = {node.name: () for node in cluster.nodes}
    for flag in flags:
        node, _, name = flag.rpartition("=")
        if not re.fullmatch(PLAIN, name):
            raise UsageError(f"--interface {flag} names no interface", next_move="say --interface NAME, or NODE=NAME")
        for one in [cluster.node(node).name] if node else found:
            found[one] = (*found[one], name)
    return found


def choose(cluster: Cluster, node: Node, seen: NodeFacts, names: Sequence[str] = ()) -> End:
    """Return the node's end of the fabric. Raises UnfitNode, naming what there is to choose from."""
    wiring = wiring_of(node, seen)
    wire, why = _wire(cluster, node, seen, wiring, names)
    for reason, move in _objections(cluster, node, wiring, wire):
        raise UnfitNode(f"{wire.name} {reason}", node=node.name, next_move=move, evidence=_listed(wiring, seen))
    others = [one for one in wiring.wires.values() if one.name != wire.name and same_port(one.name, wire.name)]
    free = [one for one in others if one.up and not one.given and not _foreign(cluster, node, wiring, one)]
    return End(node, wiring, wire, tuple(free), why, tuple(one for one in others if one.up and one not in free))


def wiring_of(node: Node, seen: NodeFacts) -> Wiring:
    """Return the node's wiring. Raises FactsError for facts that were saved without it."""
    if seen.wiring is None:
        raise FactsError(
            "the facts say nothing of its network",
            node=node.name,
            next_move="save them again: invoke facts --save FILE",
        )
    return seen.wiring


def _wire(cluster: Cluster, node: Node, seen: NodeFacts, wiring: Wiring, names: Sequence[str]) -> tuple[Wire, str]:
    """Return the interface and how it was chosen."""
    has = [one for one in wiring.wires.values() if any(a.ip == node.fabric for a in one.addresses)]
    if names:
        return _named_wire(cluster, node, wiring, names, has), "--interface names it"
    if cluster.fabric.interface:
        return _named_wire(cluster, node, wiring, [cluster.fabric.interface], has), "the cluster's file names it"
    rdma = {hca.interface for hca in seen.hcas}
    if has and (has[0].name in rdma or not rdma):
        return has[0], f"it has {node.fabric}"
    if has:
        raise _unsure(cluster, node, wiring, seen, f"{node.fabric} is on {has[0].name}, which is no ConnectX port")
    return _cabled(cluster, node, seen, wiring)


def _named_wire(cluster: Cluster, node: Node, wiring: Wiring, names: Sequence[str], has: Sequence[Wire]) -> Wire:
    there = [wiring.wires[name] for name in names if name in wiring.wires]
    if not there:
        raise UnfitNode(
            f"it has no interface {names[0]}{nearest(names[0], list(wiring.wires))}",
            node=node.name,
            next_move=f"name one of: {', '.join(wiring.wires)}",
        )
    if any(not same_port(there[0].name, one.name) for one in there):
        raise UnfitNode(
            f"--interface names several of its ports: {', '.join(one.name for one in there)}",
            node=node.name,
            next_move=f"say which for this node: --interface {node.name}={there[0].name}",
        )
    if has and has[0].name not in {one.name for one in there}:
        raise UnfitNode(
            f"{node.fabric} is on {has[0].name} already",
            node=node.name,
            next_move=f"take it off there first, or name {has[0].name}; cluster {cluster.flag} says who has which",
        )
    return next((one for one in there if one in has), there[0])


def _cabled(cluster: Cluster, node: Node, seen: NodeFacts, wiring: Wiring) -> tuple[Wire, str]:
    """Return the first half (PCI domain 0) of the one ConnectX port that has a carrier."""
    names = [hca.interface for hca in seen.hcas if hca.interface in wiring.wires]
    if not names:
        raise _unsure(cluster, node, wiring, seen, "no ConnectX device was found (ibdev2netdev, /sys/class/infiniband)")
    up = [name for name in names if wiring.wires[name].up]
    taken = [name for name in names if _foreign(cluster, node, wiring, wiring.wires[name])]
    usable = [name for name in up if not any(same_port(name, other) for other in taken)]
    ports: list[list[str]] = []
    for name in sorted(usable, key=_domain):
        port = next((port for port in ports if same_port(port[0], name)), None)
        port.append(name) if port is not None else ports.append([name])
    if not up:
        raise UnfitNode(
            f"no ConnectX port has a cable that is up: {', '.join(names)}",
            node=node.name,
            next_move="plug the QSFP cable in to the end, on both nodes; then look with ibdev2netdev",
            evidence=_listed(wiring, seen),
        )
    if len(ports) != 1:
        said = f"{len(ports) or 'none'} of its ConnectX ports could be the fabric"
        raise _unsure(cluster, node, wiring, seen, f"{said}: up are {', '.join(up)}")
    return wiring.wires[ports[0][0]], "the cable is in this port of the ConnectX device"


def _domain(name: str) -> tuple[str, str]:
    """Order halves by PCI domain: enp1s0f0np0 (domain 0) comes before enP2p1s0f0np0."""
    match = re.match(r"enP(\d+)", name)
    return (match[1] if match else "", name)


def _unsure(cluster: Cluster, node: Node, wiring: Wiring, seen: NodeFacts, said: str) -> UnfitNode:
    return UnfitNode(
        said,
        node=node.name,
        next_move=f"say which one: invoke network --cluster {cluster.flag} --interface {node.name}=NAME",
        evidence=_listed(wiring, seen),
    )


def _listed(wiring: Wiring, seen: NodeFacts) -> str:
    rdma: Mapping[str, str] = {hca.interface: hca.device for hca in seen.hcas}
    return "\n".join(
        f"{one.name}: {'up' if one.up else 'down'}, MTU {one.mtu}, {', '.join(map(str, one.addresses)) or 'no address'}"
        + (f", {rdma[one.name]}" if one.name in rdma else "")
        + (", default route" if one.name in wiring.default else "")
        for one in wiring.wires.values()
        if not one.loopback
    )


def _objections(cluster: Cluster, node: Node, wiring: Wiring, wire: Wire) -> Iterator[tuple[str, str]]:
    """Give what forbids to touch an interface, each with the next move."""
    another = "name another with --interface; this one is never changed"
    yield from ((reason, another) for reason in _foreign(cluster, node, wiring, wire))
    others = [one for one in wire.given if one.ip != node.fabric]
    if others:
        yield (
            f"has {', '.join(map(str, others))}, which is not this node's fabric address {node.fabric}",
            "take that address away where it was set, or write it into the cluster's file if it is the fabric's",
        )
    if not wire.up:
        yield "is down", "plug the cable in to the end, on both nodes; or name another with --interface"
    if not re.fullmatch(PLAIN, wire.name):
        yield "has a name that configuration files would have to quote", another


def _foreign(cluster: Cluster, node: Node, wiring: Wiring, wire: Wire) -> list[str]:
    """Say what makes an interface somebody else's."""
    said = []
    if any(one.ip == node.management for one in wire.addresses):
        said.append(f"carries the management address {node.management}")
    if any(one.ip in cluster.management.subnet for one in wire.given if one.version == 4):
        said.append(f"has an address in the management network {cluster.management.subnet}")
    if wire.name in wiring.default:
        said.append("carries the default route")
    if wire.master:
        said.append(f"belongs to {wire.master}")
    if wire.loopback:
        said.append("is the loopback")
    return said
