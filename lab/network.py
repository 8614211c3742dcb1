"""The networks of a lab: a bridge each, a fence that keeps test traffic on this host, and links that can be cut.

The host has an address only on the management bridge. Both subnets have an `unreachable` route of the least priority
from the first `up` until `purge`: while the bridge is there its own route wins, and when it is not, traffic for the
machines ends here instead of leaving by the default route.
"""

from __future__ import annotations

import ipaddress
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from core.config import Address, Cluster, Subnet
from core.errors import LabError
from core.process import run
from lab.place import Kind, Place, bridge, mark, networks

FENCE_METRIC = 4294967294
"""Least priority but one; a route of the kernel or of an administrator always wins."""
_DEFAULTS = 8
"""A shorter prefix is a default route in disguise (VPNs use 0.0.0.0/1 and 128.0.0.0/1)."""


@dataclass(frozen=True)
class Used:
    """A network that the host already knows: where it was found, in words."""

    subnet: Subnet
    where: str


def host_address(cluster: Cluster) -> Address:
    """Return the host's address on the management network: the first one that no machine has."""
    taken = {node.management for node in cluster.nodes}
    return next(address for address in cluster.management.subnet.hosts() if address not in taken)


def parse_addresses(data: list[dict[str, Any]], ours: str) -> tuple[Used, ...]:
    """Return, from `ip -json -4 address`, the networks on interfaces whose name does not start with ``ours``."""
    return tuple(
        Used(ipaddress.IPv4Network(f"{info['local']}/{info['prefixlen']}", strict=False), f"interface {link['ifname']}")
        for link in data
        if not link.get("ifname", "").startswith(ours)
        for info in link.get("addr_info", [])
        if info.get("family") == "inet"
    )


def parse_routes(data: list[dict[str, Any]], ours: str) -> tuple[Used, ...]:
    """Return, from `ip -json -4 route`, the networks routed elsewhere; default routes and fences do not count."""
    found = []
    for route in data:
        if route["dst"] == "default" or route.get("dev", "").startswith(ours) or route.get("type") == "unreachable":
            continue
        subnet = ipaddress.IPv4Network(route["dst"])
        if subnet.prefixlen >= _DEFAULTS:
            found.append(Used(subnet, f"route to {route['dst']} ({route.get('dev', route.get('type', '?'))})"))
    return tuple(found)


def check_free(cluster: Cluster) -> None:
    """Raise LabError when a subnet of the cluster is in use on this host by something that is not this lab."""
    ours = mark(cluster)
    used = parse_addresses(_ip("address"), ours) + parse_routes(_ip("route"), ours)
    for kind in networks(cluster):
        subnet: Subnet = getattr(cluster, kind).subnet
        for other in used:
            if other.subnet.overlaps(subnet):
                raise LabError(
                    f"{kind}.subnet {subnet} is in use on this host: {other.where}",
                    next_move="choose another subnet in the cluster's file, or take down the lab that has this one",
                )


def up(cluster: Cluster) -> bool:
    """Make what is missing of the fences and bridges; return whether something was. LabError as in `check_free`."""
    check_free(cluster)
    made = [fence(cluster), *(_bridge(cluster, kind) for kind in networks(cluster))]
    _let_bridged_traffic_pass(cluster)
    return any(made)


def down(cluster: Cluster) -> list[str]:
    """Remove the bridges, not the fences; return what was removed."""
    removed = []
    for rule in _pass_rules(cluster):
        if _has_rule(rule):
            run(["iptables", "-w", "-D", "FORWARD", *rule])
            removed.append(f"firewall rule for {rule[1]}")
    for kind in networks(cluster):
        if exists(bridge(cluster, kind)):
            run(["ip", "link", "delete", bridge(cluster, kind)])
            removed.append(f"bridge {bridge(cluster, kind)} ({kind})")
    return removed


def fence(cluster: Cluster) -> bool:
    """Set the `unreachable` routes; return whether one was missing."""
    absent = [kind for kind in networks(cluster) if not fenced(cluster, kind)]
    for kind in absent:
        run(["ip", "route", "add", *_fence_route(cluster, kind)])
    return bool(absent)


def unfence(cluster: Cluster) -> list[str]:
    """Remove the `unreachable` routes; return what was removed."""
    removed = []
    for kind in networks(cluster):
        if fenced(cluster, kind):
            run(["ip", "route", "delete", *_fence_route(cluster, kind)])
            removed.append(f"unreachable route {getattr(cluster, kind).subnet}")
    return removed


def fenced(cluster: Cluster, kind: Kind) -> bool:
    """Say whether the network's `unreachable` route is there."""
    subnet = str(getattr(cluster, kind).subnet)
    return any(r["dst"] == subnet and r.get("type") == "unreachable" for r in _ip("route"))


def _gone(interface: str) -> bool:
    return not exists(interface)


def exists(interface: str) -> bool:
    """Say whether the host has an interface of this name."""
    return (Path("/sys/class/net") / interface).exists()


def attach(place: Place, kind: Kind, seconds: float = 20) -> None:
    """Wait for the machine's link to appear, then put it into its bridge; a link that is cut stays down."""
    link = place.link(kind)
    _wait(lambda: exists(link), seconds, f"systemd-nspawn made no interface {link}", place)
    run(["ip", "link", "set", link, "master", bridge(place.cluster, kind)])
    if not place.cut(kind).exists():
        run(["ip", "link", "set", link, "up"])


def clear(place: Place) -> None:
    """See that the links of an earlier run are gone: the kernel removes them after the machine's end, mostly at once.

    Where connections of the machine still end it takes its time; then the host's end is removed, and the other with it.
    """
    for kind in networks(place.cluster):
        link = place.link(kind)
        deadline = time.monotonic() + 3
        while not _gone(link) and time.monotonic() < deadline:
            time.sleep(0.05)
        if not _gone(link):
            run(["ip", "link", "delete", link], check=False)  # it may have gone just now
        _wait(partial(_gone, link), 10, f"interface {link} of an earlier run does not go away", place)


def cut(place: Place, kind: Kind) -> None:
    """Take the machine's link down, on the host's side: the machine sees a pulled cable."""
    place.cut(kind).touch()
    if exists(place.link(kind)):
        run(["ip", "link", "set", place.link(kind), "down"])


def heal(place: Place, kind: Kind) -> bool:
    """Undo `cut`; return whether the link was not in order."""
    wrong = place.cut(kind).exists() or (exists(place.link(kind)) and not linked(place, kind))
    place.cut(kind).unlink(missing_ok=True)
    if wrong and exists(place.link(kind)):
        run(["ip", "link", "set", place.link(kind), "master", bridge(place.cluster, kind), "up"])
    return wrong


@contextmanager
def shaped(device: str, rate: str) -> Iterator[None]:
    """Let no more than ``rate`` (as tc names it, "300mbit") leave by a device of this host, until the block ends."""
    shape = ["root", "tbf", "rate", rate, "burst", "128kb", "latency", "20ms"]
    run(["tc", "qdisc", "replace", "dev", device, *shape])
    try:
        yield
    finally:
        if exists(device):  # that of a machine that was killed has gone
            run(["tc", "qdisc", "delete", "dev", device, "root"])


def linked(place: Place, kind: Kind) -> bool:
    """Say whether the machine's link is up and in its bridge."""
    folder = Path("/sys/class/net") / place.link(kind)
    try:
        up = int((folder / "flags").read_text(encoding="ascii"), 16) & 1
        return bool(up) and (folder / "master").readlink().name == bridge(place.cluster, kind)
    except OSError:  # it is not there, or vanishes while we look at it: the machine reboots
        return False


def _ip(what: str) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = json.loads(run(["ip", "-json", "-details", "-4", what, "show"]).out or "[]")
    return data


def _fence_route(cluster: Cluster, kind: Kind) -> list[str]:
    return ["unreachable", str(getattr(cluster, kind).subnet), "metric", str(FENCE_METRIC)]


def _bridge(cluster: Cluster, kind: Kind) -> bool:
    name = bridge(cluster, kind)
    made = not exists(name)
    if made:
        # its own hardware address: otherwise it changes with the first machine that joins or leaves
        hardware = f"02:{mark(cluster)[3:5]}:{mark(cluster)[5:7]}:{mark(cluster)[7:9]}:00:{ord(kind[0]):02x}"
        run(["ip", "link", "add", name, "address", hardware, "type", "bridge", "stp_state", "0", "forward_delay", "0"])
        run(["ip", "link", "set", name, "addrgenmode", "none"])
    if kind == "management":
        address = f"{host_address(cluster)}/{cluster.management.subnet.prefixlen}"
        run(["ip", "address", "replace", address, "dev", name])
    run(["ip", "link", "set", name, "up"])
    return made


def _pass_rules(cluster: Cluster) -> list[list[str]]:
    names = [bridge(cluster, kind) for kind in networks(cluster)]
    return [["-i", name, "-o", name, "-m", "comment", "--comment", "sparkstack lab", "-j", "ACCEPT"] for name in names]


def _let_bridged_traffic_pass(cluster: Cluster) -> None:
    """Let the machines talk where Docker sends bridged traffic through iptables and drops what it does not know.

    https://docs.docker.com/engine/network/packet-filtering-firewalls/
    """
    for rule in _pass_rules(cluster):
        if _filters_bridges() and not _has_rule(rule):
            run(["iptables", "-w", "-I", "FORWARD", *rule])


def _filters_bridges() -> bool:
    """Say whether iptables is here and sees what passes a bridge (br_netfilter)."""
    switch = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    return bool(shutil.which("iptables")) and switch.exists() and switch.read_text(encoding="ascii").strip() == "1"


def _has_rule(rule: list[str]) -> bool:
    return bool(shutil.which("iptables")) and run(["iptables", "-w", "-C", "FORWARD", *rule], check=False).code == 0


def _wait(done: Callable[[], bool], seconds: float, cause: str, place: Place) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise LabError(cause, next_move=f"read {place.log} and {place.console}", node=place.node.name)
        time.sleep(0.05)
