"""Whether what the ranks say to each other goes over the fabric: counters and sockets around one request. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from core.config import Cluster, Node
from core.parsers import shown
from core.ports import same_port
from serve.view.said import mapping, number, rows, text

OURS = "sparkstack-"
WORD = 4
"""Bytes that an RDMA port counts as one (InfiniBand Architecture, PortXmitData)."""
LEAST = 256
"""Bytes that a token moves between two ranks at least: a vector of the smallest model, 128 numbers of two bytes."""

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Counter:
    """What an interface, or the RDMA port behind it, has received and sent since it came up, in bytes."""

    name: str
    interface: str
    received: int
    sent: int

    @property
    def rdma(self) -> bool:
        """Whether it is an RDMA port: an adapter counts that traffic apart from the interface's."""
        return self.name != self.interface


@dataclass(frozen=True)
class Socket:
    """An established TCP connection of a unit of ours; addresses without their zone."""

    unit: str
    process: str
    local: IpAddress
    local_port: int
    peer: IpAddress
    peer_port: int

    def __str__(self) -> str:
        return f"{self.unit} ({self.process}) {self.local}:{self.local_port} to {self.peer}:{self.peer_port}"


@dataclass(frozen=True)
class Reading:
    """One look at a node's network; ``at`` in seconds of the node's own count."""

    at: float
    counters: Mapping[str, Counter]
    sockets: tuple[Socket, ...]
    addresses: Mapping[IpAddress, str]
    """Address to interface."""


@dataclass(frozen=True)
class Answer:
    """What the request brought."""

    tokens: int
    seconds: float
    error: str


@dataclass(frozen=True)
class Moved:
    """Bytes that an interface moved during the request; ``more`` is what that is beyond its rate just before."""

    node: str
    name: str
    fabric: bool
    received: int
    sent: int
    more: int


@dataclass(frozen=True)
class Proof:
    """The verdict, and what it stands on; ``strays`` are connections between nodes beside the fabric."""

    good: bool
    verdict: str
    answer: Answer
    moved: tuple[Moved, ...]
    sockets: Mapping[str, int]
    strays: tuple[str, ...]
    elsewhere: tuple[str, ...]


def reading(data: Mapping[str, Any], addresses: Any) -> Reading:
    """Read what the meter printed; ``addresses`` is what `ip -j address` said, as data."""
    units = {key: text(value) for key, value in mapping(data.get("units")).items()}
    return Reading(
        at=number(data.get("at")) or 0.0,
        counters=counters(mapping(data.get("counters")), mapping(data.get("rdma"))),
        sockets=sockets(str(data.get("sockets", "")), units),
        addresses=dict(_addresses(addresses)),
    )


def answer(data: Mapping[str, Any]) -> Answer:
    """Read what the asker printed."""
    return Answer(int(number(data.get("tokens")) or 0), number(data.get("seconds")) or 0.0, text(data.get("error")))


def counters(files: Mapping[str, Any], rdma: Mapping[str, Any]) -> dict[str, Counter]:
    """Read counters by their paths in /sys/class/net and /sys/class/infiniband; one without its other half is none."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for path, content in files.items():
        parts, digits = path.split("/"), str(content).strip()
        if not (digits.isascii() and digits.isdecimal()) or len(parts) < 7 or len(digits) > 20:
            continue
        name = shown(parts[4])
        port = f"{name}/{shown(parts[6])}" if parts[3] == "infiniband" else name
        interface = _interface(rdma, parts[4]) if parts[3] == "infiniband" else name
        way = "received" if parts[-1] in ("rx_bytes", "port_rcv_data") else "sent"
        found.setdefault((port, interface), {})[way] = int(digits) * (WORD if parts[3] == "infiniband" else 1)
    return {
        port: Counter(port, interface, both["received"], both["sent"])
        for (port, interface), both in found.items()
        if len(both) == 2
    }


def _interface(rdma: Mapping[str, Any], device: str) -> str:
    names = [text(name) for name in rows(rdma.get(device))]
    return names[0] if names else ""


def sockets(listing: str, units: Mapping[str, str]) -> tuple[Socket, ...]:
    """Parse `ss -Htnp`: state, queues, local and peer address, users:(("name",pid=N,fd=N),...); those of our units."""
    return tuple(_sockets(listing, units))


def _sockets(listing: str, units: Mapping[str, str]) -> Iterator[Socket]:
    for line in listing.splitlines():
        words = line.split(None, 5)
        if len(words) < 6 or words[0] != "ESTAB":
            continue
        ends = [_end(word) for word in words[3:5]]
        for name, pid in re.findall(r'\("((?:[^"\\]|\\.)*)",pid=(\d+)', words[5]):
            unit = units.get(pid, "").removesuffix(".service")
            if unit.startswith(OURS) and ends[0] and ends[1]:
                yield Socket(unit, shown(name), *ends[0], *ends[1])
                break


def _end(word: str) -> tuple[IpAddress, int] | None:
    """Parse an end: 172.16.100.1:6379, [::ffff:172.16.100.1]:6379, [fe80::1%fab0]:22, 127.0.0.1%lo:53."""
    host, _, port = word.rpartition(":")
    try:
        return _plain(ipaddress.ip_address(re.sub(r"%[^\]]*|[\[\]]", "", host))), int(port)
    except ValueError:
        return None


def _plain(address: IpAddress) -> IpAddress:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _addresses(data: Any) -> Iterator[tuple[IpAddress, str]]:
    for one in rows(data):
        for row in rows(mapping(one).get("addr_info")):
            try:
                yield ipaddress.ip_address(str(mapping(row).get("local"))), text(mapping(one).get("ifname"))
            except ValueError:
                continue


@dataclass(frozen=True)
class Case:
    """Three readings of every node: before a pause, after it, and after the request."""

    cluster: Cluster
    first: Mapping[str, Reading]
    before: Mapping[str, Reading]
    after: Mapping[str, Reading]
    answer: Answer
    api_port: int

    def carries(self, node: Node, interface: str) -> bool:
        """Whether an interface of a node is the fabric's: it, or the other half of its port, has the fabric address."""
        found = self.after[node.name].addresses.get(node.fabric, "")
        return bool(found) and bool(interface) and same_port(found, interface)

    def on_fabric(self, node: Node, address: IpAddress) -> bool:
        """Whether an address of a node is one of the fabric."""
        return address in self.cluster.fabric.subnet or self.carries(
            node, self.after[node.name].addresses.get(address, "")
        )

    def owner(self, node: Node, address: IpAddress) -> Node | None:
        """Return the node that has an address; the one that speaks of it first: some are on every node."""
        order = (node, *(other for other in self.cluster.nodes if other != node))
        return next((one for one in order if address in self.after[one.name].addresses), None)


def judge(case: Case) -> Proof:
    """Say whether the traffic between the ranks was on the fabric."""
    moved = tuple(one for node in case.cluster.nodes for one in _moved(case, node))
    between, strays, elsewhere = _sorted_sockets(case)
    wrong = [
        f"{one.node}: RDMA port {one.name} moved {size(one.received + one.sent)}"
        for one in moved
        if "/" in one.name and not one.fabric and one.more >= LEAST * max(1, case.answer.tokens)
    ]
    good, verdict = _verdict(case, moved, between, [*strays, *wrong])
    return Proof(good, verdict, case.answer, moved, between, (*strays, *wrong), elsewhere)


def _moved(case: Case, node: Node) -> Iterator[Moved]:
    first, before, after = (one[node.name] for one in (case.first, case.before, case.after))
    for name, now in after.counters.items():
        then = before.counters.get(name)
        if name == "lo" or then is None or now.received < then.received or now.sent < then.sent:
            continue  # it came up meanwhile, and counts from 0
        received, sent = now.received - then.received, now.sent - then.sent
        idle = _idle(first.counters.get(name), then, before.at - first.at) * (after.at - before.at)
        fabric = case.carries(node, now.interface)
        if received + sent or fabric:
            yield Moved(node.name, name, fabric, received, sent, int(received + sent - idle))


def _idle(first: Counter | None, then: Counter, seconds: float) -> float:
    """Return the bytes a second that an interface moved before the request."""
    if first is None or seconds <= 0:
        return 0.0
    return max(0.0, then.received + then.sent - first.received - first.sent) / seconds


def _sorted_sockets(case: Case) -> tuple[dict[str, int], tuple[str, ...], tuple[str, ...]]:
    """Return how many connections each node has to others on the fabric, those beside it, and those to no node."""
    between = {node.name: 0 for node in case.cluster.nodes}
    strays, elsewhere = [], []
    for node in case.cluster.nodes:
        for socket in case.after[node.name].sockets:
            other = case.owner(node, socket.peer)
            if socket.local_port == case.api_port or socket.peer.is_loopback or other == node:
                continue  # a client of the API, or within the node
            if other is None and not case.on_fabric(node, socket.peer):
                elsewhere.append(f"{node.name}: {socket}")
            elif case.on_fabric(node, socket.local) and case.on_fabric(other or node, socket.peer):
                between[node.name] += 1
            else:
                strays.append(f"{node.name}: {socket}")
    return between, tuple(strays), tuple(elsewhere)


def _verdict(case: Case, moved: tuple[Moved, ...], between: Mapping[str, int], strays: list[str]) -> tuple[bool, str]:
    if case.answer.error or not case.answer.tokens:
        return False, f"no token came, so nothing is shown: {case.answer.error or 'the answer was empty'}"
    if not case.cluster.workers:
        return True, "there is one node: nothing is distributed"
    if strays:
        return False, f"not all of what the nodes say to each other is on the fabric: {len(strays)} ways beside it"
    more = {name: sum(one.more for one in moved if one.node == name and one.fabric) for name in between}
    slow = [name for name, size_ in more.items() if size_ < LEAST * case.answer.tokens]
    if slow:
        return False, (
            f"the fabric of {', '.join(slow)} moved hardly more than before the request: "
            "nothing is shown (other requests hide this one)"
        )
    rdma = {one.node for one in moved if "/" in one.name and one.fabric and one.more >= LEAST * case.answer.tokens}
    apart = [name for name, number_ in between.items() if not number_ and name not in rdma]
    if apart:
        return False, f"{', '.join(apart)} has no connection to another node"
    return True, "the traffic between the ranks was on the fabric, and none of it beside it"


def size(number_: int) -> str:
    """Return bytes as people read them."""
    value, unit = float(number_), "B"
    for larger in ("KB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def as_text(proof: Proof) -> str:
    """Return the proof for people."""
    found = proof.answer
    lines = [f"probe: {found.tokens} tokens in {found.seconds:.1f} s", proof.verdict]
    for one in proof.moved:
        name = f"{one.name} (fabric)" if one.fabric else one.name
        lines.append(f"  {one.node}: {name}: received {size(one.received)}, sent {size(one.sent)}")
    lines += [
        f"  {node}: {number_} connections to other nodes on the fabric" for node, number_ in proof.sockets.items()
    ]
    lines += [f"  beside the fabric: {one}" for one in proof.strays]
    lines += [f"  to no node of this cluster: {one}" for one in proof.elsewhere]
    return "\n".join(lines)
