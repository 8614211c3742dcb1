"""What `invoke network` asks of a node besides: links with all addresses, default routes, and who configures them.

Pure parsers; no parser touches a machine.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from core import parsers
from core.reader import Reader

GUARD = PurePosixPath("/var/lib/sparkstack-network")
"""Where a node keeps what it needs to take a change of its network back (deploy/network/guard.py)."""
NETPLAN = PurePosixPath("/etc/netplan/90-sparkstack-fabric.yaml")
"""Our own file for netplan: read after what installers and NVIDIA's instructions write (01-, 40-, 50-)."""
NETWORKD = PurePosixPath("/etc/systemd/network/05-sparkstack-fabric.network")
"""Our own file for systemd-networkd, where the first file that fits an interface is the one that counts."""
NETWORKD_HALF = PurePosixPath("/etc/systemd/network/05-sparkstack-fabric-half.network")
"""The same for the other half of the port."""
MANAGERS = ("systemd-networkd", "NetworkManager")

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True)
class Wire:
    """An interface with every address that somebody gave it; ``up`` says that it has a carrier."""

    name: str
    up: bool
    mtu: int
    addresses: tuple[Interface, ...]
    master: str | None = None
    """The bridge or bond that it belongs to."""
    loopback: bool = False

    @property
    def given(self) -> tuple[Interface, ...]:
        """Addresses that are not link-local: an interface gives those to itself."""
        return tuple(one for one in self.addresses if not one.is_link_local)


@dataclass(frozen=True)
class Wiring:
    """A node's network as it is, and the files of ours that made it so."""

    wires: Mapping[str, Wire]
    default: frozenset[str]
    """Interfaces that a default route leaves by."""
    managers: frozenset[str]
    """Those of MANAGERS that run."""
    netplan: bool
    files: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Path to size and time of change (whole seconds) of our own files; only root may read netplan's."""
    pending: Mapping[str, Any] | None = None
    """The guard's record of a change that waits to be confirmed; an empty one where it is damaged."""
    confirmed: Mapping[str, Any] | None = None
    """The guard's record of the last change that was confirmed."""


def request() -> dict[str, Any]:
    """Return what the probe is asked for a Wiring: commands and files by fact. Pure."""
    return {
        "commands": {
            "wires": ["ip", "-j", "addr"],
            "default_routes": ["ip", "-j", "route", "show", "default"],
            "default_routes6": ["ip", "-j", "-6", "route", "show", "default"],
            "managers": ["systemctl", "is-active", *MANAGERS],
            "netplan": ["which", "netplan"],
            "network_files": ["stat", "-c", "%n %s %Y", *map(str, (NETPLAN, NETWORKD, NETWORKD_HALF))],
        },
        "files": {"network_guard": [f"{GUARD}/pending.json", f"{GUARD}/confirmed.json"]},
    }


def wiring(reader: Reader) -> Wiring | None:
    """Read a capture; None where it was not asked. Raises FactsError naming the fact that cannot be read."""
    found = reader.asked("wires", wires)
    if found is None:
        return None
    records = {PurePosixPath(path).stem: text for path, text in reader.files("network_guard").items()}
    kept = {name: parsers.record_or_none(text) for name, text in records.items()}
    return Wiring(
        wires=found,
        default=reader.out("default_routes", route_devices) | reader.out("default_routes6", route_devices),
        managers=reader.out("managers", managers),
        netplan=reader.out("netplan", lambda text: bool(text.strip())),
        files=reader.out("network_files", file_states),
        pending=kept.get("pending"),
        confirmed=kept.get("confirmed"),
    )


def wires(text: str) -> dict[str, Wire]:
    """Parse `ip -j addr`: interfaces by name. Raises ValueError."""
    return {str(one["ifname"]): _wire(one) for one in _objects(text) if "ifname" in one}


def _wire(data: Mapping[str, Any]) -> Wire:
    flags, addresses = data.get("flags", []), data.get("addr_info", [])
    if not isinstance(flags, list) or not isinstance(addresses, list):
        raise ValueError("flags and addr_info are lists")
    return Wire(
        name=str(data["ifname"]),
        up="LOWER_UP" in flags,
        mtu=_whole(data.get("mtu")),
        addresses=tuple(_address(one) for one in addresses if isinstance(one, dict) and "local" in one),
        master=str(data["master"]) if "master" in data else None,
        loopback="LOOPBACK" in flags,
    )


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError("an MTU is a whole number")
    return value


def _address(info: Mapping[str, Any]) -> Interface:
    return ipaddress.ip_interface(f"{info['local']}/{info['prefixlen']}")


def route_devices(text: str) -> frozenset[str]:
    """Parse `ip -j route show default`: the interfaces of these routes. Raises ValueError."""
    return frozenset(str(route["dev"]) for route in _objects(text) if "dev" in route)


def _objects(text: str) -> list[dict[str, Any]]:
    """Parse a JSON list of objects; nothing at all is an empty one."""
    try:
        found = json.loads(text or "[]")
    except RecursionError as error:
        raise ValueError("it is nested without end") from error
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError("it is no list of objects")
    return found


def managers(text: str) -> frozenset[str]:
    """Parse `systemctl is-active NAME...`: a state a line, in the order of MANAGERS."""
    return frozenset(name for name, state in zip(MANAGERS, text.split(), strict=False) if state == "active")


def file_states(text: str) -> dict[str, tuple[int, int]]:
    """Parse `stat -c '%n %s %Y'`: path to size and time of change."""
    rows = (line.rsplit(" ", 2) for line in text.splitlines())
    return {row[0]: (int(row[1]), int(row[2])) for row in rows if len(row) == 3}
