"""What the doctor asks of a node besides: clock, swap, GPU processes, RDMA ports, the way to the other nodes.

Only `invoke doctor`, `facts` and `report` ask it, in the same round trip: a node that is silent costs a second, an MTU
of 1500 half of one. Pure parsers; no parser touches a machine.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from core import parsers, surroundings
from core.config import Cluster, Node
from core.reader import Reader

RDMA = "/sys/class/infiniband/*"
FIRST_GIDS = ("[0-9]", "1[0-5]")
"""A port has 256 entries, filled from the first on: four or so an address."""
JUMBO = 9000
"""MTU that a fast link wants, in bytes; drivers begin with 1500."""
LARGE = str(JUMBO - 28)
"""Bytes that make a packet of that size, with 20 of IPv4 and 8 of ICMP."""


@dataclass(frozen=True)
class Offset:
    """How far a node's clock is ahead of this host's, in seconds: what is sure is that it lies between the two."""

    least: float
    most: float


@dataclass(frozen=True)
class GpuProcess:
    """A process that computes on a GPU; ``memory`` in bytes, None where the driver does not say."""

    pid: int
    name: str
    memory: int | None


@dataclass(frozen=True)
class Owner:
    """Whose process it is, and the systemd unit that holds it ("-" for none)."""

    user: str
    unit: str


@dataclass(frozen=True)
class Gid:
    """An address of an RDMA port; ``version`` is "v1" or "v2" (of RoCE)."""

    index: int
    address: ipaddress.IPv6Address
    version: str

    @property
    def ipv4(self) -> ipaddress.IPv4Address | None:
        """The IPv4 address that it stands for."""
        return self.address.ipv4_mapped


@dataclass(frozen=True)
class RdmaPort:
    """An RDMA device's firmware, and the addresses of its port."""

    firmware: str
    gids: tuple[Gid, ...]


@dataclass(frozen=True)
class Condition:
    """A node's condition. None or nothing: it was not asked, or is not there."""

    clock: Offset | None = None
    swapped: int = 0
    """Bytes that lie in swap."""
    memory_free: int | None = None
    """Bytes that hold nothing at all, page cache neither."""
    gpu_processes: tuple[GpuProcess, ...] = ()
    owners: Mapping[int, Owner] = field(default_factory=dict)
    rdma: Mapping[str, RdmaPort] = field(default_factory=dict)
    lanes: Mapping[str, int] = field(default_factory=dict)
    """PCIe lanes in use, by interface."""
    reach: Mapping[str, bool | None] = field(default_factory=dict)
    """Whether a packet sent from the fabric address came back, by node; None where nothing could be sent."""
    reach_large: Mapping[str, bool | None] = field(default_factory=dict)
    """The same with a packet of 9000 bytes that nobody may divide."""
    routes: Mapping[str, str | None] = field(default_factory=dict)
    """The interface that packets for a node's fabric address leave by, by node."""
    dgx: Mapping[str, str] = field(default_factory=dict)
    """/etc/dgx-release without the serial number."""
    module: str | None = None
    """Version of the NVIDIA kernel module that is loaded."""
    sshd_oom: int | None = None
    """sshd's oom_score_adj: -1000 is never killed, 0 as any other process."""
    model_config: str = ""
    """The model's config.json as it is."""
    around: surroundings.Surroundings = field(default_factory=surroundings.Surroundings)


def request(cluster: Cluster, node: Node, model: PurePosixPath) -> dict[str, Any]:
    """Return what the probe is asked for a Condition: commands and files by fact. Pure."""
    others = [other for other in cluster.nodes if other != node]
    ping, way = ("ping", "-n", "-c", "1", "-W"), ("-I", str(node.fabric))
    whole = ("0.5", "-M", "do", "-s", LARGE)  # it waits in vain wherever the MTU is 1500
    around = surroundings.request(cluster.root, cluster.user)
    return {
        "commands": {
            "gpu_processes": ["nvidia-smi", "--query-compute-apps=pid,process_name,used_memory", "--format=csv"],
            "owners": ["ps", "-eww", "-o", "pid=,user:32=,unit:64="],
            "sshd": ["ps", "-C", "sshd", "-o", "ppid=,oomadj="],
            "dgx": ["grep", "-v", "SERIAL", "/etc/dgx-release"],
            **{f"reach {other.name}": [*ping, "1", *way, str(other.fabric)] for other in others},
            **{f"large {other.name}": [*ping, *whole, *way, str(other.fabric)] for other in others},
            **{f"route {other.name}": ["ip", "-o", "route", "get", str(other.fabric)] for other in others},
            **around["commands"],
        },
        "files": {
            **around["files"],
            "module": ["/proc/driver/nvidia/version"],
            "lanes": ["/sys/class/net/*/device/current_link_width"],
            "rdma": [f"{RDMA}/fw_ver"],
            "gids": [f"{RDMA}/ports/1/{what}/{entry}" for what in ("gids", "gid_attrs/types") for entry in FIRST_GIDS],
            "model_config": [f"{model}/config.json"],
        },
    }


def condition(reader: Reader) -> Condition:
    """Read a capture. Raises FactsError naming the fact that cannot be read."""
    memory = reader.memory()
    return Condition(
        clock=reader.out("clock", lambda text: offset(text, reader.out("asked", str))),
        swapped=memory.swapped,
        memory_free=memory.free,
        gpu_processes=reader.out("gpu_processes", gpu_processes),
        owners=reader.out("owners", owners),
        rdma=reader.parsed("gids", lambda _: rdma_ports(reader.files("rdma"), reader.files("gids")), ""),
        lanes=reader.parsed("lanes", lambda _: lanes(reader.files("lanes")), ""),
        reach=reader.by_name("reach", came_back),
        reach_large=reader.by_name("large", came_back),
        routes=reader.by_name("route", route_device),
        dgx=reader.out("dgx", parsers.os_release),
        module=module_version(reader.file("module")),
        sshd_oom=reader.out("sshd", sshd_oom),
        model_config=reader.file("model_config"),
        around=surroundings.surroundings(reader),
    )


def offset(node: str, here: str) -> Offset | None:
    """Parse the node's clock at the probe's begin and end, and this host's when it asked and when it was answered."""
    if not node.strip() or not here.strip():
        return None
    (began, ended), (asked, answered) = ([float(word) for word in text.split()[:2]] for text in (node, here))
    return Offset(ended - answered, began - asked)


def gpu_processes(text: str) -> tuple[GpuProcess, ...]:
    """Parse `nvidia-smi --query-compute-apps=pid,process_name,used_memory --format=csv`, with or without its header."""
    rows = re.findall(r"^\s*(\d+), (.*), (?:(\d+) MiB|\[.*\]|\S+)\s*$", text, re.MULTILINE)
    return tuple(
        GpuProcess(int(pid), parsers.shown(name), int(used) * 2**20 if used else None) for pid, name, used in rows
    )


def owners(text: str) -> dict[int, Owner]:
    """Parse `ps -e -o pid=,user:32=,unit:64=`."""
    rows = (line.split() for line in text.splitlines())
    return {int(row[0]): Owner(row[1], row[2]) for row in rows if len(row) == 3 and row[0].isdecimal()}


def rdma_ports(firmware: Mapping[str, str], gids: Mapping[str, str]) -> dict[str, RdmaPort]:
    """Parse /sys/class/infiniband (Documentation/ABI/stable/sysfs-class-infiniband of Linux), by device.

    ``firmware`` are the files fw_ver, ``gids`` the entries of the ports and their types.
    """
    devices = sorted({path.split("/")[4] for path in firmware})
    return {device: _rdma_port(RDMA.replace("*", device), firmware, gids) for device in devices}


def _rdma_port(folder: str, firmware: Mapping[str, str], gids: Mapping[str, str]) -> RdmaPort:
    return RdmaPort(firmware.get(f"{folder}/fw_ver", "").strip(), _gids(f"{folder}/ports/1", gids))


def _gids(port: str, files: Mapping[str, str]) -> tuple[Gid, ...]:
    """Return the entries of a port that are in use: the others are zero and have no type."""
    found = []
    for index in range(16):
        address = ipaddress.IPv6Address(files.get(f"{port}/gids/{index}", "::").strip())
        kind = files.get(f"{port}/gid_attrs/types/{index}", "")
        if int(address) and kind.strip():
            found.append(Gid(index, address, "v2" if "v2" in kind else "v1"))
    return tuple(found)


def lanes(files: Mapping[str, str]) -> dict[str, int]:
    """Parse /sys/class/net/*/device/current_link_width, by interface."""
    return {path.split("/")[4]: int(text) for path, text in files.items() if text.strip().isdecimal()}


def came_back(text: str) -> bool | None:
    """Parse `ping -c 1`: whether the packet came back; None where ping did not run."""
    match = re.search(r"(\d+) received", text)
    return int(match[1]) > 0 if match else None


def route_device(text: str) -> str | None:
    """Parse `ip -o route get ADDRESS`: the interface after "dev"."""
    match = re.search(r"\bdev (\S+)", text)
    return match[1] if match else None


def module_version(text: str) -> str | None:
    """Parse /proc/driver/nvidia/version: "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.142 ..."."""
    match = re.search(r"^NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s", text, re.MULTILINE)
    return match[1] if match else None


def sshd_oom(text: str) -> int | None:
    """Parse `ps -C sshd -o ppid=,oomadj=`: the value of the one that listens, a child of PID 1."""
    match = re.search(r"^\s*1\s+(-?\d+)\s*$", text, re.MULTILINE)
    return int(match[1]) if match else None
