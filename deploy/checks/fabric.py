"""The fabric: the cable's two halves, their addresses, MTU and rate, and the way to the other nodes.

A cable of a Spark's QSFP port shows as two halves, each with a PCIe function, an interface and an RDMA device of its
own. That the fabric has its own address and interface is deploy/doctor.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from core.condition import JUMBO, Condition, RdmaPort
from core.config import Address, Node
from core.facts import NodeFacts
from core.findings import Finding, Severity
from core.parsers import Hca, Interface
from core.ports import same_port
from deploy.checks.case import Case

FAST = 25_000
"""Mb/s from which the MTU is felt."""
GB10, GB10_RATE = "NVIDIA GB10", 200_000
"""What a Spark's cable runs at, in Mb/s: both halves name the rate of the whole port."""
DOUBT = Severity.WARNING


@dataclass(frozen=True)
class Link:
    """A node's end of the fabric: the interface with its address, and the RDMA devices of both halves of its port."""

    node: Node
    seen: NodeFacts
    condition: Condition
    interface: Interface
    halves: tuple[Hca, ...]

    def ports(self) -> Iterator[tuple[Hca, RdmaPort]]:
        """Give the halves that are up and whose RDMA port was seen."""
        known = self.condition.rdma
        return ((half, known[half.device]) for half in self.halves if half.up and half.device in known)


def links(case: Case) -> list[Link]:
    """Return the ends of the fabric that are there; none where a single node needs no fabric."""
    found = []
    for node, seen, condition in case.nodes() if len(case.cluster.nodes) > 1 else ():
        interface = seen.interface_of(node.fabric)
        if interface is not None:
            halves = tuple(hca for hca in seen.hcas if same_port(hca.interface, interface.name))
            found.append(Link(node, seen, condition, interface, halves))
    return found


def halves(case: Case) -> Iterator[Finding]:
    """Half of the port is down, or the fabric is no RDMA port at all while the machine has some."""
    for link in links(case):
        down = [half for half in link.halves if not half.up]
        if link.interface.up and down:
            yield Finding(
                link.node.name,
                f"half of the port is down: {down[0].interface} ({down[0].device})",
                f"on the node: sudo ip link set {down[0].interface} up; then look into its netplan file",
                "the other half alone carries half of the rate",
                DOUBT,
            )
        if link.seen.hcas and not link.halves:
            devices = ", ".join(f"{hca.interface} ({hca.device})" for hca in link.seen.hcas)
            yield Finding(
                link.node.name,
                f"the fabric address is on {link.interface.name}, which is no port with RDMA: those are {devices}",
                "give the fabric address to the port that the cable is in",
                "NCCL falls back to TCP on a slow link",
                DOUBT,
            )


def one_subnet(case: Case) -> Iterator[Finding]:
    """Another interface that is up has an address in the fabric's subnet too."""
    for link in links(case):
        for other in link.seen.addresses.values():
            also = [address for address in other.ipv4 if address in case.cluster.fabric.subnet]
            if also and other.up and other.name != link.interface.name:
                yield Finding(
                    link.node.name,
                    f"{other.name} has {also[0]}, in the subnet of {link.interface.name}",
                    f"give each half a subnet of its own (here {other.name}), on every node",
                    "either interface may answer for the other's address: packets take the wrong half",
                    Severity.NOTE,
                )


def gids(case: Case) -> Iterator[Finding]:
    """A half that is up has no RoCE v2 address over IPv4."""
    for link in links(case):
        for half, port in link.ports():
            if not any(gid.version == "v2" and gid.ipv4 for gid in port.gids):
                yield Finding(
                    link.node.name,
                    f"{half.device} has no RoCE v2 address over IPv4 ({half.interface})",
                    f"give {half.interface} an address in a subnet of its own, on every node",
                    "NCCL may not use this half, or use it with an address that the other node does not know: half of "
                    "the rate, or a hang",
                    DOUBT,
                )


def _addresses(link: Link, half: Hca) -> tuple[Address, ...]:
    interface = link.seen.addresses.get(half.interface)
    return interface.ipv4 if interface else ()


def gid_index(case: Case) -> Iterator[Finding]:
    """The RoCE v2 address stands at different places: one NCCL_IB_GID_INDEX fits not all."""
    found = {
        f"{link.node.name} {half.device}": gid.index
        for link in links(case)
        for half, port in link.ports()
        for gid in port.gids
        if gid.version == "v2" and gid.ipv4 in _addresses(link, half)
    }
    if len(set(found.values())) > 1:
        yield Finding(
            case.cluster.head.name,
            "the RoCE v2 addresses have different indices: " + ", ".join(f"{key} {at}" for key, at in found.items()),
            "leave NCCL_IB_GID_INDEX unset (NCCL finds it), and look for a second address on these interfaces",
            "a fixed NCCL_IB_GID_INDEX would fail on some of them",
            Severity.NOTE,
        )


def mtu(case: Case) -> Iterator[Finding]:
    """The two ends have different MTUs, or a small one on a fast link."""
    ends = [link for link in links(case) if link.interface.mtu]
    for one, other in pairwise(ends):
        if one.interface.mtu != other.interface.mtu:
            yield Finding(
                other.node.name,
                f"the MTU of {other.interface.name} is {other.interface.mtu}, of {one.node.name}'s "
                f"{one.interface.name} {one.interface.mtu}",
                f"set both to {JUMBO}: invoke network --cluster {case.cluster.flag}",
                "large packets vanish: small ones pass, and the first collective hangs without a message",
            )
            return
    for link in ends:
        if (link.interface.mtu or 0) < JUMBO and (link.interface.speed or 0) >= FAST:
            yield Finding(
                link.node.name,
                f"the MTU of {link.interface.name} is {link.interface.mtu}",
                f"set it to {JUMBO} on every node: invoke network --cluster {case.cluster.flag}",
                "the link does not reach its rate",
                DOUBT,
            )


def speed(case: Case) -> Iterator[Finding]:
    """The link is slower than a Spark's, or than the management network."""
    for link in links(case):
        rate, management = link.interface.speed, link.seen.interface_of(link.node.management)
        spark = any(gpu.name == GB10 for gpu in link.seen.gpus)
        other = (management.speed if management else None) or 0
        if rate and spark and rate < GB10_RATE:
            against = f"a Spark's port has {GB10_RATE}"
        elif rate and rate < other:
            against = f"the management network has {other}"
        else:
            continue
        yield Finding(
            link.node.name,
            f"{link.interface.name} runs at {rate} Mb/s, {against}",
            "check that the fabric is the port with the cable, and the cable (200G, plugged in to the end)",
            "what every token waits for takes longer",
            DOUBT,
        )


def lanes(case: Case) -> Iterator[Finding]:
    """A half runs on fewer PCIe lanes than the others of the cluster."""
    found = {
        (link.node.name, half.interface): width
        for link in links(case)
        for half in link.halves
        if (width := link.condition.lanes.get(half.interface))
    }
    widest = max(found.values(), default=0)
    for (node, interface), width in found.items():
        if width < widest:
            yield Finding(
                node,
                f"{interface} has {width} PCIe lanes, other halves have {widest}",
                "switch the node off, take its power away for a minute, start it again",
                "this half carries less than its share; if it stays so, the machine is faulty",
                DOUBT,
            )


def way(case: Case) -> Iterator[Finding]:
    """Packets for another node's fabric address leave by another interface (a wrong netmask, a VPN)."""
    for link in links(case):
        for other, device in link.condition.routes.items():
            if device not in (None, link.interface.name):
                yield Finding(
                    link.node.name,
                    f"its way to {other}'s fabric address is {device}, not {link.interface.name}",
                    f"on the node: ip route get; correct the netmask of {link.interface.name}, or what routes there",
                    "distributed traffic takes the wrong network: a crawl or a hang, without a message",
                )


def reach(case: Case) -> Iterator[Finding]:
    """No packet comes back from another node over the fabric."""
    for link in links(case):
        for other, answered in link.condition.reach.items():
            if answered is False and link.interface.up:
                yield Finding(
                    link.node.name,
                    f"{other} does not answer over the fabric",
                    "check that the cable is in the same port on both, the addresses, and the firewall",
                    "Ray and NCCL would wait for each other",
                )


def large(case: Case) -> Iterator[Finding]:
    """Small packets come back from another node, and packets of the interface's own MTU do not."""
    for link in links(case):
        for other, answered in link.condition.reach_large.items():
            if answered is False and link.condition.reach.get(other) and (link.interface.mtu or 0) >= JUMBO:
                yield Finding(
                    link.node.name,
                    f"packets of {JUMBO} bytes do not come back from {other}, small ones do",
                    f"set the MTU to {JUMBO} on both ends, and on the switch where there is one",
                    "the first collective hangs without a message",
                )
